"""The expression space in which predictions are compared with real cells, fitted on training cells."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from sklearn.decomposition import PCA

from scgde.components import subsample
from scgde.perturbation.features import cells_at_most
from scgde.perturbation.metrics import log_normalise

if TYPE_CHECKING:
    from scgde.data import CellTable

N_GENES = 2000
N_COMPONENTS = 50


@dataclass(frozen=True)
class ExpressionSpace:
    """Principal components of the most variable genes of log-normalised cells.

    Attributes
    ----------
    is_count
        Whether rows are counts; others are left as they are.
    genes
        Positions of the genes that take part, ``(g,)``.
    centre, axes
        ``(g,)`` and ``(g, r)``.
    """

    is_count: bool
    genes: np.ndarray
    centre: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, table: CellTable, rows: np.ndarray, *, is_count: bool, seed: int = 0) -> ExpressionSpace:
        """Fit on the cells ``rows`` of a table, or on a random sample of them."""
        chosen = subsample(rows, cells_at_most(table.matrix.shape[1]), seed)
        values = log_normalise(table.rows(chosen)) if is_count else np.asarray(table.rows(chosen), dtype=np.float64)
        genes = _most_variable(values) if is_count else np.arange(values.shape[1])
        values = values[:, genes]
        count = min(N_COMPONENTS, len(genes), max(len(values) - 1, 1))
        model = PCA(count, svd_solver="randomized", random_state=seed).fit(values)
        return cls(is_count, genes, model.mean_, model.components_.T.copy())

    def normalise(self, rows: Any) -> np.ndarray:
        """Log-normalised rows ``(cells, n_vars)``."""
        if self.is_count:
            return log_normalise(rows)
        return np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows, dtype=np.float64)

    def project(self, values: np.ndarray) -> np.ndarray:
        """Components ``(cells, r)`` of log-normalised rows."""
        return (values[:, self.genes] - self.centre) @ self.axes

    def to_dict(self) -> dict[str, Any]:
        """Plain arrays by name."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ExpressionSpace:
        """Inverse of :meth:`to_dict`."""
        arrays = {name: np.asarray(content[name]) for name in ("genes", "centre", "axes")}
        return cls(bool(content["is_count"]), **arrays)


def _most_variable(values: np.ndarray) -> np.ndarray:
    """Positions of the 2,000 most variable genes, by scanpy's default."""
    if values.shape[1] <= N_GENES:
        return np.arange(values.shape[1])
    import scanpy as sc

    cells = AnnData(values.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.uns["log1p"] = {"base": None}
        sc.pp.highly_variable_genes(cells, n_top_genes=N_GENES)
    return np.flatnonzero(cells.var["highly_variable"].to_numpy())
