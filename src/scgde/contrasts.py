"""Linear contrasts between populations: what the cell latent should not lose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from scgde.components import CellComponents
    from scgde.data.cells import CellTable


def population_contrasts(table: CellTable, indices: np.ndarray, components: CellComponents) -> np.ndarray | None:
    """Discriminant scores of cells, each weighted by how surely its direction differs between populations.

    Cells' principal components are centred by batch. Within-population spread is whitened, directions are ordered by the variance ``b`` that population means have along them (less what sampling
    alone gives), and a direction's score is multiplied by :math:`(b / (b + 1/n_0))^{1/2}`, where ``n_0`` is the mean
    number of cells per population: one that populations do not differ along is shrunk to nothing. This is linear
    discriminant analysis with empirical-Bayes shrinkage.

    Parameters
    ----------
    table
        Cells.
    indices
        Training cells.
    components
        Principal components of cells.

    Returns
    -------
    ``(len(indices), n)`` float32 scores, or None when fewer than two populations have replicates.
    """
    codes = table.codes[indices]
    sizes = np.bincount(codes[codes >= 0])
    if (sizes > 1).sum() < 2:
        return None
    rows = components.transform(table, indices)
    batch = table.batch[indices]
    for b in np.unique(batch):
        rows[batch == b] -= rows[batch == b].mean(0)
    scores = discriminant_scores(rows, codes)
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
