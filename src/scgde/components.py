"""Principal components of log-normalised rows: where the cell encoder and the contrasts between populations start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA

if TYPE_CHECKING:
    from scgde.data.cells import CellTable

MAX_COMPONENTS = 50
MAX_CELLS = 20_000
MAX_FIT_ENTRIES = 60_000_000


@dataclass(frozen=True)
class CellComponents:
    r"""Principal axes of :math:`\log(1 + t x / \sum x)`, fitted on training cells without the effects of batch and covariates.

    Attributes
    ----------
    target
        The depth ``t`` to which rows are scaled: the median of the cells it was fitted on.
    centre
        Mean log-normalised row, ``(n_vars,)``.
    axes
        Orthonormal axes, ``(n_vars, r)``.
    sd
        Standard deviation of cells within batches along each axis, ``(r,)``, falling.
    """

    target: float
    centre: np.ndarray
    axes: np.ndarray
    sd: np.ndarray

    @classmethod
    def fit(cls, table: CellTable, indices: np.ndarray, seed: int = 0) -> CellComponents:
        """Fit on the cells ``indices`` of a table, or on a random sample of bounded size."""
        sample = table.sample(indices, _cells_at_once(table), seed)
        rows = table.rows(sample)
        target = max(float(np.median(rows.sum(1))), 1.0)
        rows = log_normalised(rows, target)
        centre = rows.mean(0)
        # axes along which cells of one batch differ: a batch effect is not what an encoder should look at first
        design = nuisance_design(table, sample)
        rows -= (design @ nuisance_effects(design, rows)).astype(rows.dtype)
        n_components = max(min(MAX_COMPONENTS, len(sample) // 4, rows.shape[1] - 1), 1)
        model = PCA(n_components, svd_solver="randomized", random_state=seed).fit(rows)
        return cls(target, centre, model.components_.T.copy(), np.sqrt(model.explained_variance_))

    def scores(self, rows: Any) -> np.ndarray:
        """Scores ``(cells, r)`` of count rows ``(cells, n_vars)``, sparse or not."""
        if not (sp.issparse(rows) and rows.format == "csr" and rows.dtype == np.float32):
            rows = sp.csr_matrix(rows, dtype=np.float32)  # one way for all formats, so that they give the same numbers
        totals = np.maximum(np.asarray(rows.sum(axis=1)).reshape(-1), 1.0)
        scale = np.repeat((self.target / totals).astype(np.float32), np.diff(rows.indptr))
        logs = sp.csr_matrix((np.log1p(rows.data * scale), rows.indices, rows.indptr), shape=rows.shape)
        return np.asarray(logs @ self.axes) - self.centre @ self.axes

    def transform(self, table: CellTable, indices: np.ndarray) -> np.ndarray:
        """Scores ``(len(indices), r)`` in double precision of cells of a table, read block by block."""
        blocks = np.array_split(indices, max(int(np.ceil(len(indices) / _cells_at_once(table))), 1))
        return np.concatenate([self.scores(table.matrix[block]) for block in blocks]).astype(np.float64)


def nuisance_design(table: CellTable, indices: np.ndarray) -> sp.csr_matrix:
    """What is to be taken out of cells, ``(len(indices), p)``: indicators of batch and categories, and continuous covariates."""
    codes = [table.batch, *table.categorical.T]
    columns = [
        sp.csr_matrix(
            (np.ones(len(indices)), (np.arange(len(indices)), np.maximum(code[indices], 0))),
            shape=(len(indices), max(int(code.max(initial=0)) + 1, 1)),
        )
        for code in codes
    ]
    if table.continuous.shape[1]:
        columns.append(sp.csr_matrix(table.continuous[indices].astype(np.float64)))
    return sp.hstack(columns, format="csr")


def nuisance_effects(design: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Least-squares effects ``(p, r)`` of a design on rows ``(cells, r)``: the mean of each batch where there are no covariates."""
    # columns in like units, or covariates of large numbers would hide the others from the pseudo-inverse
    size = np.sqrt(np.maximum(np.asarray(design.multiply(design).sum(axis=0)).reshape(-1), 1e-300))
    scaled = sp.csr_matrix(design.multiply(1 / size))
    inverse = np.linalg.pinv((scaled.T @ scaled).toarray(), rcond=1e-10, hermitian=True)
    return (inverse @ (scaled.T @ rows)) / size[:, None]


def _cells_at_once(table: CellTable) -> int:
    """Number of dense rows that are held in memory at a time."""
    return max(min(MAX_CELLS, MAX_FIT_ENTRIES // table.matrix.shape[1]), 500)


def subsample(indices: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most ``limit`` of the indices, drawn at random, in order."""
    if len(indices) <= limit:
        return indices
    return np.sort(np.random.default_rng(seed).choice(indices, limit, replace=False))


def log_normalised(rows: np.ndarray, target: float) -> np.ndarray:
    """Log of one plus rows scaled to a common total."""
    return np.log1p(rows * (target / np.maximum(rows.sum(1, keepdims=True), 1.0)))
