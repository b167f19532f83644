"""Counts of fewer reads, by binomial thinning."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def thin_counts(counts: sp.csr_matrix, keep: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Thin each row binomially.

    Parameters
    ----------
    counts
        Counts, ``(cells, genes)``; they are rounded to integers.
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
