"""Linear contrasts between populations: what the cell latent should not lose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA

if TYPE_CHECKING:
    from scgde.data.cells import CellTable

MAX_COMPONENTS = 50
MAX_CELLS = 20_000
MAX_FIT_ENTRIES = 60_000_000


def population_contrasts(table: CellTable, indices: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Discriminant scores of cells, each weighted by how surely its direction differs between populations.

    Cells' log-normalised rows are reduced to principal components and centred by batch. Within-population spread is
    whitened, directions are ordered by the variance ``b`` that population means have along them (less what sampling
    alone gives), and a direction's score is multiplied by :math:`(b / (b + 1/n_0))^{1/2}`, where ``n_0`` is the mean
    number of cells per population: one that populations do not differ along is shrunk to nothing. This is linear
    discriminant analysis with empirical-Bayes shrinkage.

    Parameters
    ----------
    table
        Cells.
    indices
        Training cells.
    seed
        Seed of the randomised decomposition and of the sample it is fitted on.

    Returns
    -------
    ``(len(indices), n)`` float32 scores, or None when fewer than two populations have replicates.
    """
    codes = table.codes[indices]
    sizes = np.bincount(codes[codes >= 0])
    if (sizes > 1).sum() < 2:
        return None
    components = _components(table, indices, seed)
    batch = table.batch[indices]
    for b in np.unique(batch):
        components[batch == b] -= components[batch == b].mean(0)
    scores = discriminant_scores(components, codes)
    return None if scores is None else scores.astype(np.float32)


def discriminant_scores(components: np.ndarray, codes: np.ndarray) -> np.ndarray | None:
    """Shrunk discriminant scores of ``components`` ``(cells, r)`` given population codes (negative: none)."""
    assigned = codes >= 0
    labels, inverse, sizes = np.unique(codes[assigned], return_inverse=True, return_counts=True)
    one_hot = sp.csr_matrix((np.ones(len(inverse)), (inverse, np.arange(len(inverse)))))
    means = (one_hot @ components[assigned]) / sizes[:, None]
    residual = components[assigned] - means[inverse]
    freedom = len(inverse) - len(labels)
    r = components.shape[1]
    if freedom < 2:
        return None
    within = residual.T @ residual / freedom
    # few residual degrees of freedom make the small eigenvalues far too small; pull towards a multiple of identity
    pull = min(r / (r + freedom), 0.99)
    within = (1 - pull) * within + pull * np.trace(within) / r * np.eye(r)
    values, axes = np.linalg.eigh(within)
    white = axes / np.sqrt(np.maximum(values, 1e-6 * values[-1]))
    centred = (means - means.mean(0)) @ white
    between = centred.T @ centred / max(len(labels) - 1, 1) - np.eye(r) * np.mean(1 / sizes)
    variance, rotation = np.linalg.eigh(between)
    variance, rotation = variance[::-1], rotation[:, ::-1]
    keep = variance > 0
    if not keep.any():
        return None
    weight = np.sqrt(variance[keep] / (variance[keep] + 1 / sizes.mean()))
    return (components - components.mean(0)) @ white @ rotation[:, keep] * weight


def _components(table: CellTable, indices: np.ndarray, seed: int) -> np.ndarray:
    """Principal components of log-normalised rows, ``(cells, r)``, fitted on a bounded sample of the cells."""
    rng = np.random.default_rng(seed)
    limit = max(min(MAX_CELLS, MAX_FIT_ENTRIES // table.matrix.shape[1]), 500)
    sample = indices if len(indices) <= limit else np.sort(rng.choice(indices, limit, replace=False))
    rows = table.rows(sample)
    target = max(float(np.median(rows.sum(1))), 1.0)
    n_components = max(min(MAX_COMPONENTS, len(sample) // 4, rows.shape[1] - 1), 1)
    model = PCA(n_components, svd_solver="randomized", random_state=seed).fit(_log_normalised(rows, target))
    blocks = np.array_split(indices, max(int(np.ceil(len(indices) / limit)), 1))
    return np.concatenate([model.transform(_log_normalised(table.rows(b), target)) for b in blocks]).astype(np.float64)


def _log_normalised(rows: np.ndarray, target: float) -> np.ndarray:
    return np.log1p(rows * (target / np.maximum(rows.sum(1, keepdims=True), 1.0)))
