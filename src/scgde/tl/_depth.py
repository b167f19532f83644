"""Components of cells whose groups are compared at one distribution of depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgde.inference import components_of
from scgde.observations.thinning import matching_shares, thin_counts

if TYPE_CHECKING:
    import scipy.sparse as sp

    from scgde.module import GDEModule

CELLS_PER_PASS = 10_000


def matched_components(
    module: GDEModule, counts: sp.csr_matrix, codes: np.ndarray, block: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Components ``(cells, r)`` of counts thinned until groups ``codes`` have one distribution of depth in each block."""
    keep = matching_shares(np.asarray(counts.sum(axis=1)).reshape(-1), codes, rng, block)
    thinned = thin_counts(counts, keep, rng)
    starts = range(0, thinned.shape[0], CELLS_PER_PASS)
    return np.concatenate([components_of(module, thinned[start : start + CELLS_PER_PASS]) for start in starts])
