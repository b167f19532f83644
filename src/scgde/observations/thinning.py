"""Counts of fewer reads, by binomial thinning."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def thin_counts(counts: sp.csr_matrix, keep: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Thin each row binomially.

    Parameters
    ----------
    counts
        Counts, ``(cells, genes)``; thinned ones are rounded to integers first.
    keep
        Share of the reads that each cell keeps, ``(cells,)``; rows with 1 stay as they are.
    rng
        Randomness.

    Returns
    -------
    A new matrix of the same shape.
    """
    share = np.repeat(keep, np.diff(counts.indptr))
    thinned = share < 1
    data = counts.data.copy()
    data[thinned] = rng.binomial(np.rint(data[thinned]).astype(np.int64), share[thinned])
    result = sp.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    result.eliminate_zeros()
    return result


def matching_shares(
    total: np.ndarray, codes: np.ndarray, rng: np.random.Generator, block: np.ndarray | None = None
) -> np.ndarray:
    """Share of its reads that each cell keeps so that all groups have one distribution of depth.

    A cell at quantile ``q`` of its group keeps as many reads as the cell at ``q`` of the group that has fewest there.

    Parameters
    ----------
    total
        Reads of each cell, ``(cells,)``.
    codes
        Group of each cell, -1 for cells in none, which keep all.
    rng
        Breaks ties.
    block
        Block of each cell, such as its batch, within which groups are matched; one by default. Cells of a group that is alone
        in its block keep all.

    Returns
    -------
    Shares between 0 and 1, ``(cells,)``.
    """
    total = np.asarray(total, dtype=np.float64)
    keep = np.ones(len(total))
    block = np.zeros(len(total), dtype=np.int64) if block is None else block
    for b in np.unique(block):
        groups = [np.flatnonzero((codes == k) & (block == b)) for k in np.unique(codes[(codes >= 0) & (block == b)])]
        ordered = [own[np.lexsort((rng.random(len(own)), total[own]))] for own in groups]
        places = [(np.arange(len(own)) + 0.5) / len(own) for own in ordered]
        for own, place in zip(ordered, places, strict=True):
            target = np.min([np.interp(place, p, total[o]) for o, p in zip(ordered, places, strict=True)], axis=0)
            keep[own] = np.minimum(target / np.maximum(total[own], 1.0), 1.0)
    keep[total == 0] = 1.0
    return keep
