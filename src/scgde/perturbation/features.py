"""Descriptions of perturbations that the data themselves give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from scgde.components import subsample
from scgde.perturbation.metrics import log_normalise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgde import GDEModel
    from scgde.data import CellTable

MAX_ENTRIES = 40_000_000
"""Entries of the dense expression that components are fitted on."""


def cells_at_most(n_genes: int) -> int:
    """Cells that are held dense at a time."""
    return int(np.clip(MAX_ENTRIES // max(n_genes, 1), 1000, 20_000))


def gene_loadings(model: GDEModel, genes: Sequence[Any], n_components: int = 20, seed: int = 0) -> pd.DataFrame | None:
    """How genes go together in the cells that a model was trained on, as features of perturbations that target them.

    Loadings of genes on the principal components of log-normalised expression, every gene scaled to unit variance: the inner product
    of two rows is the part of the genes' correlation that the components explain. Nothing but expression goes into them.

    Parameters
    ----------
    model
        Trained model with its AnnData.
    genes
        Genes to describe; those that are no genes of the data are left out.
    n_components
        Number of components.
    seed
        Seed of the choice of cells where there are too many.

    Returns
    -------
    DataFrame, genes x components; None if no gene is of the data or rows are no counts.
    """
    if not model.module.observation.is_count:
        return None
    return loadings_of(model._table(), np.asarray(model.train_indices_), genes, n_components, seed)


def loadings_of(
    table: CellTable, rows: np.ndarray, genes: Sequence[Any], n_components: int = 20, seed: int = 0
) -> pd.DataFrame | None:
    """:func:`gene_loadings` of the cells ``rows`` of a table of counts."""
    names = pd.Index(np.asarray(table.var_names, dtype=object).astype(str))
    chosen = [str(g) for g in genes if str(g) in names]
    if not chosen:
        return None
    values = log_normalise(table.rows(subsample(rows, cells_at_most(len(names)), seed)))
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
    count = min(n_components, *(n - 1 for n in values.shape))
    if count < 1:
        return None
    components = PCA(count, svd_solver="randomized", random_state=seed).fit(values)
    loadings = components.components_.T * np.sqrt(components.explained_variance_)
    frame = pd.DataFrame(loadings, index=names, columns=[f"loading_{i}" for i in range(count)])
    return frame.loc[list(dict.fromkeys(chosen))]
