"""Counts of fewer reads, by binomial thinning."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MAX_RATIO = 2.0
"""Ratio of median depths of two populations above which a comparison warns."""


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


def matching_shares(total: np.ndarray, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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

    Returns
    -------
    Shares between 0 and 1, ``(cells,)``.
    """
    total = np.asarray(total, dtype=np.float64)
    groups = [np.flatnonzero(codes == k) for k in np.unique(codes[codes >= 0])]
    ordered = [own[np.lexsort((rng.random(len(own)), total[own]))] for own in groups]
    places = [(np.arange(len(own)) + 0.5) / len(own) for own in ordered]
    keep = np.ones(len(total))
    for own, place in zip(ordered, places, strict=True):
        target = np.min([np.interp(place, p, total[o]) for o, p in zip(ordered, places, strict=True)], axis=0)
        keep[own] = np.minimum(target / np.maximum(total[own], 1.0), 1.0)
    keep[total == 0] = 1.0
    return keep


def match_depth(
    adata: AnnData,
    groupby: str,
    *,
    groups: Sequence[Any] | None = None,
    layer: str | None = None,
    seed: int | None = None,
) -> AnnData:
    """Thin the counts of groups of cells to one common distribution of sequencing depth.

    Every group keeps the order of its cells by depth. At each quantile all come down to the group with fewest reads
    there, by binomial thinning; no cell gets more reads. Large cells have more reads too, and lose them here.

    Parameters
    ----------
    adata
        Cells with raw counts.
    groupby
        Column of ``obs`` with the groups.
    groups
        Values of it to match; all by default. Other cells, and cells with none, stay as they are.
    layer
        Layer with the counts; ``X`` by default.
    seed
        Seed of the thinning; ``scvi.settings.seed`` by default, else fresh.

    Returns
    -------
    A copy with thinned counts (CSR) in ``X`` or the layer.

    Raises
    ------
    KeyError
        If ``groupby``, ``layer`` or a group is unknown.
    ValueError
        If there are fewer than two groups, or values are no counts.

    Examples
    --------
    >>> import scgde
    >>> adata = scgde.datasets.simulate_populations(6, n_genes=50, cells_per_population=(20, 40))
    >>> matched = scgde.pp.match_depth(adata, "population", seed=0)
    >>> bool(matched.X.sum() < adata.X.sum())
    True
    """
    from scvi import settings

    from scgde.data.cells import check_counts

    if groupby not in adata.obs:
        message = f"groupby={groupby!r} is not in adata.obs; there are {list(adata.obs.columns)}."
        raise KeyError(message)
    if layer is not None and layer not in adata.layers:
        message = f"layer={layer!r} is not in adata.layers; there are {list(adata.layers)}."
        raise KeyError(message)
    column = adata.obs[groupby]
    codes, names = pd.factorize(column)
    if groups is not None:
        unknown = [g for g in groups if g not in names]
        if unknown:
            message = f"groups={unknown} are no values of obs[{groupby!r}]."
            raise KeyError(message)
        codes = np.where(column.isin(list(groups)).to_numpy(), codes, -1)
    if len(np.unique(codes[codes >= 0])) < 2:
        message = f"There are fewer than two groups with cells in obs[{groupby!r}]; nothing can be matched."
        raise ValueError(message)
    rows = adata.X if layer is None else adata.layers[layer]
    check_counts(rows, "zinb")
    counts = sp.csr_matrix(rows)
    seed = settings.seed if seed is None else seed
    rng = np.random.default_rng(seed)
    keep = matching_shares(np.asarray(counts.sum(axis=1)).reshape(-1), codes, rng)
    result = adata.copy()
    thinned = thin_counts(counts, keep, rng)
    if layer is None:
        result.X = thinned
    else:
        result.layers[layer] = thinned
    return result


def warn_of_unequal_depth(source: str, target: str, totals: tuple[np.ndarray, np.ndarray], stacklevel: int = 3) -> None:
    """Warn if the median depths of the cells of two populations differ more than :data:`MAX_RATIO`-fold."""
    one, two = (max(float(np.median(t)), 1.0) for t in totals)
    if max(one, two) <= MAX_RATIO * min(one, two):
        return
    message = (
        f"Cells of {source!r} have {one:,.0f} reads and those of {target!r} {two:,.0f} (medians): part of their "
        "difference may be one of sequencing depth. Thin them to the same depths (scgde.pp.match_depth) before they are compared."
    )
    warnings.warn(message, UserWarning, stacklevel=stacklevel)
