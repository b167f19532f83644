"""Components of cells whose groups are compared at one distribution of depth."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from scgde.inference import components_of
from scgde.observations.thinning import matching_shares, thin_counts

if TYPE_CHECKING:
    import scipy.sparse as sp

    from scgde.module import GDEModule

CELLS_PER_PASS = 10_000

DEPTH_RATIO = 1.1
"""Ratio of the median depths of two populations above which their counts are thinned before they are compared: with 300 cells, the
components tell depths apart from a ratio of about 1.3 on, and thinning by a tenth costs no power that could be measured."""

LEVEL = 0.05
"""Of the test by which medians must differ as well: with few cells they do by chance, and thinning would cost power for nothing. What it lets
pass is too little for as few cells to be told apart by it."""

MEDIAN_ERROR = 1.2533
"""Standard error of the median of normal numbers over that of their mean."""

MEDIAN_RESIDUAL = 1.4826
"""Standard deviation of normal numbers over the median of their absolute residuals."""


def depths_differ(total: np.ndarray, codes: np.ndarray, block: np.ndarray | None, ratio: float = DEPTH_RATIO) -> bool:
    """Whether median depths of two groups differ more than ``ratio``-fold and by more than chance, in some block or over all.

    Parameters
    ----------
    total
        Reads of each cell, ``(cells,)``.
    codes, block
        Group and block of each cell; one block if None.
    ratio
        Smallest ratio that counts.
    """
    block = np.zeros(len(total), dtype=np.int64) if block is None else block
    logs = np.log1p(total)
    n_groups = len(np.unique(codes))
    level = LEVEL / max(n_groups * (n_groups - 1) / 2, 1)
    for pair in combinations(np.unique(codes), 2):
        shared = [b for b in np.unique(block) if all(((codes == k) & (block == b)).any() for k in pair)]
        inside = [[(codes == k) & (block == b) for k in pair] for b in shared]
        medians = np.array([[np.median(total[own]) for own in both] for both in inside]).reshape(-1, 2)
        seen = medians.min(axis=1) > 0  # cells without counts cannot be matched: nothing would be left of the others
        if not seen.any():
            continue
        inside = [both for both, kept in zip(inside, seen, strict=True) if kept]
        size = np.array([[own.sum() for own in both] for both in inside])
        # by the median of residuals: cells next to empty would hide all others in a mean square
        residuals = np.concatenate([np.abs(logs[own] - np.median(logs[own])) for both in inside for own in both])
        residuals = residuals[residuals > 0]  # without those that are medians themselves
        every = logs[np.any([own for both in inside for own in both], axis=0)]
        free = size.sum() - size.size
        sd = every.std()
        if free > 0 and len(residuals):
            sd = MEDIAN_RESIDUAL * np.median(residuals) * np.sqrt(size.sum() / free)
        gap = np.log(medians[seen, 0] / medians[seen, 1])
        error = np.maximum(MEDIAN_ERROR * sd * np.sqrt((1 / size).sum(axis=1)), 1e-12)
        weight = error**-2 / (error**-2).sum()
        of_blocks = norm.isf(level / 2 / len(gap)) * error
        overall, of_all = abs(weight @ gap), norm.isf(level / 2) / np.sqrt((error**-2).sum())
        least = np.log(ratio)
        if (np.abs(gap) > np.maximum(least, of_blocks)).any() or overall > max(least, of_all):
            return True
    return False


def matched_components(
    module: GDEModule, counts: sp.csr_matrix, codes: np.ndarray, block: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Components ``(cells, r)`` of counts thinned until groups ``codes`` have one distribution of depth in each block."""
    keep = matching_shares(np.asarray(counts.sum(axis=1)).reshape(-1), codes, rng, block)
    thinned = thin_counts(counts, keep, rng)
    starts = range(0, thinned.shape[0], CELLS_PER_PASS)
    return np.concatenate([components_of(module, thinned[start : start + CELLS_PER_PASS]) for start in starts])
