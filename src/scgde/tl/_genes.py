"""Which genes separate two populations, as the model sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde.data.populations import as_label
from scgde.generation import find_labels

if TYPE_CHECKING:
    from anndata import AnnData

    from scgde import GDEModel

LIBRARY_SIZE = 10_000.0
"""Total to which decoded profiles are scaled before the logarithm, as in scanpy's tutorials."""


def rank_genes_between(
    model: GDEModel,
    source: Any,
    target: Any,
    *,
    adata: AnnData | None = None,
    n_cells: int = 1000,
    batch: Any = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Rank genes by the difference of two populations in decoded expression.

    Every cell is decoded from its latent, under the same batches and the same library size for both populations, so that
    neither depth nor the mix of batches makes a difference. On :math:`\log(1 + 10^4 \rho)` the score of a gene is the
    difference of the two means over its standard error,

    .. math:: z_g = (m_g - m'_g) / (s_g^2 / n + s_g'^2 / n')^{1/2},

    with the means and variances over the ``n`` and ``n'`` cells.

    No p-values are given. Decoded profiles are smooth functions of a few latent coordinates: they leave out the noise of the
    counts and the error of the model, genes move together, and a small shift of the latent makes thousands of genes
    "significant". The score ranks genes, and its size says how far apart the populations are along a gene in units of
    the sampling of cells. To decide *whether* two populations differ use :func:`scgde.tl.test_populations`; to test a
    single gene, use the counts, with replicates as the units.

    Parameters
    ----------
    model
        Trained model.
    source, target
        Labels; positive scores mean higher in ``source``.
    adata
        Cells; the model's own by default.
    n_cells
        Cells to decode of each population at most, drawn at random.
    batch
        Batch to decode under. By default every batch of training in turn, averaged. Covariates stay those of the cells.
    seed
        Seed of the draw; ``scvi.settings.seed`` by default, else fresh.

    Returns
    -------
    DataFrame with one row for each gene, highest score first, with the names of
    :func:`scanpy.get.rank_genes_groups_df`:

    ``names``, ``scores``
        Gene and score; NaN for one cell.
    ``logfoldchanges``
        Binary logarithm of the ratio of mean expression at the common library size (counts only).
    ``difference``, ``standard_error``
        Difference of means on the logarithmic scale and its standard error. For continuous rows columns are ranked,
        on their own scale.
    ``mean_source``, ``mean_target``
        The two means.

    Raises
    ------
    KeyError
        If a population or the batch is unknown.
    ValueError, TypeError
        If an argument is out of range or of the wrong type.
    """
    from scgde.model import GDEModel

    if not isinstance(model, GDEModel):
        message = f"model is a {type(model).__name__} and must be a trained GDEModel; pass cells as adata=."
        raise TypeError(message)
    if isinstance(n_cells, bool) or not isinstance(n_cells, int | np.integer) or n_cells < 1:
        message = f"n_cells={n_cells!r} must be a positive integer: the largest number of cells of each population."
        raise ValueError(message)
    model._require_trained()
    table = model._table(adata)
    labels = [as_label(source), as_label(target)]
    if labels[0] == labels[1]:
        message = f"source and target are both {labels[0]!r}: name two populations."
        raise ValueError(message)
    present = [table.labels[k] for k in np.unique(table.codes[table.codes >= 0])]
    for name, label in zip(("source", "target"), labels, strict=True):
        find_labels([label], present, name)
    rng, _ = model._randomness(seed)
    chosen = []
    for label in labels:
        rows = np.flatnonzero(table.codes == table.labels.index(label))
        chosen.append(rows if len(rows) <= n_cells else np.sort(rng.choice(rows, n_cells, replace=False)))
    profiles = _decode(model, adata, np.concatenate(chosen), batch)
    is_count = model.module.observation.is_count
    scaled = np.log1p(profiles) if is_count else profiles
    n = [len(rows) for rows in chosen]
    parts = scaled[: n[0]], scaled[n[0] :]
    means = [part.mean(0) for part in parts]
    variance = sum(
        part.var(0, ddof=1) / len(part) if len(part) > 1 else np.full(part.shape[1], np.nan) for part in parts
    )
    error = np.sqrt(variance)
    difference = means[0] - means[1]
    frame = pd.DataFrame({"names": np.asarray(model._variables()).astype(str)})
    with np.errstate(divide="ignore", invalid="ignore"):
        # columns without spread, such as constants, separate nothing
        frame["scores"] = np.where((error == 0) & (difference == 0), 0.0, difference / error)
    if is_count:
        ratio = [profiles[: n[0]].mean(0), profiles[n[0] :].mean(0)]
        frame["logfoldchanges"] = np.log2((ratio[0] + 1e-9) / (ratio[1] + 1e-9))
    frame = frame.assign(difference=difference, standard_error=error, mean_source=means[0], mean_target=means[1])
    by = frame["scores"] if frame["scores"].notna().any() else frame["difference"]
    return frame.loc[by.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def _decode(model: GDEModel, adata: AnnData | None, rows: np.ndarray, batch: Any) -> np.ndarray:
    """Expected rows of cells, ``(cells, n_vars)``, at a common library size and averaged over batches."""
    key = model.registry_["setup_args"]["batch_key"]
    batches = [batch] if batch is not None or key is None else model._mapping("batch", key)
    size = LIBRARY_SIZE if model.module.observation.is_count else 1.0
    total = np.zeros((len(rows), len(model._variables())))
    for name in batches:
        total += model.get_normalized_expression(
            adata, indices=rows.tolist(), transform_batch=name, library_size=size, return_numpy=True
        )
    return total / len(batches)
