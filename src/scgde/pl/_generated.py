"""Generated cells beside real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import sparse

from . import _style
from ._axes import principal_axes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_TARGET_SUM = 1e4
# Principal axes need no more genes than this, and a dense matrix of more cells would not be legible.
_MAX_GENES = 1000


def real_vs_generated(
    real: AnnData,
    generated: AnnData,
    *,
    kind: Literal["pca", "genes"] = "pca",
    population: str | None = None,
    population_key: str = "population",
    layer: str | None = None,
    max_cells: int = 2000,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Compare generated cells with real ones.

    Counts are scaled to 10,000 per cell and ``log1p`` is taken; anything else is compared as it is.

    Parameters
    ----------
    real, generated
        Cells, e.g. the training data and the result of :meth:`scgde.GDEModel.sample`. Every variable of `generated`
        must exist in `real`; they are matched by name.
    kind
        ``"pca"``: both sets in the plane of the first two principal axes of the *real* cells, so that the plane owes
        nothing to the generator. ``"genes"``: the mean of each gene, real against generated, with the Pearson
        correlation.
    population
        Show only the cells of this population.
    population_key
        Column of both ``obs`` that holds `population`.
    layer
        Layer of `real` that holds the same kind of values as ``generated.X``; ``X`` by default.
    max_cells
        Draw at most this many cells of each kind, spread evenly over the rows. Means of genes use all cells.
    title
        Title of the axes.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If the column or the layer is absent, or `real` lacks variables of `generated`.
    ValueError
        If `kind` is unknown, or there are fewer than two cells of a kind to compare.
    """
    if kind not in {"pca", "genes"}:
        msg = f"kind={kind!r} is unknown. Use 'pca' or 'genes'."
        raise ValueError(msg)
    if max_cells < 2:
        msg = f"max_cells={max_cells} must be at least 2."
        raise ValueError(msg)
    absent = generated.var_names.difference(real.var_names)
    if len(absent):
        msg = (
            f"real lacks {len(absent)} of the {generated.n_vars} variables of generated, e.g. {absent[0]!r}. "
            "Pass the data that the model was trained on."
        )
        raise KeyError(msg)
    if layer is not None and layer not in real.layers:
        msg = f"layer={layer!r} is not a layer of real. Choose from {sorted(real.layers)} or pass None for X."
        raise KeyError(msg)
    columns = real.var_names.get_indexer(generated.var_names)
    matrices = {}
    for name, adata, key in (("real", real, layer), ("generated", generated, None)):
        rows = _rows(adata, name, population, population_key)
        values = adata.X if key is None else adata.layers[key]
        matrices[name] = sparse.csr_matrix(values[rows])
    real_matrix, generated_matrix = matrices["real"][:, columns], matrices["generated"]
    if _holds_counts(real_matrix) and _holds_counts(generated_matrix):
        real_matrix, generated_matrix = _log_normalize(real_matrix), _log_normalize(generated_matrix)

    ax = _style.get_axes(ax, figsize=(5.0, 4.4))
    if kind == "pca":
        _draw_pca(ax, _thin(real_matrix, max_cells), _thin(generated_matrix, max_cells))
    else:
        _draw_genes(ax, _column_means(real_matrix), _column_means(generated_matrix))
    title = population if title is None else title
    if title is not None:
        ax.set_title(title)
    _style.despine(ax)
    return ax


def _rows(adata: AnnData, name: str, population: str | None, key: str) -> NDArray[np.intp]:
    rows = np.arange(adata.n_obs)
    if population is not None:
        column = _style.require_obs_column(adata, f"population_key (of {name})", key)
        rows = np.flatnonzero((column.astype("string") == str(population)).fillna(False).to_numpy(dtype=bool))
    if len(rows) < 2:
        where = "" if population is None else f" with {key} == {population!r}"
        msg = f"{name} has {len(rows)} cells{where}; a comparison needs at least 2. Check `population` and the data."
        raise ValueError(msg)
    return rows


def _holds_counts(matrix: sparse.csr_matrix) -> bool:
    return bool((matrix.data >= 0).all() and (matrix.data == np.floor(matrix.data)).all())


def _log_normalize(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    library = np.asarray(matrix.sum(axis=1), dtype=float).ravel()
    scale = np.divide(_TARGET_SUM, library, out=np.zeros_like(library), where=library > 0)
    return (sparse.diags(scale) @ matrix).log1p().tocsr()


def _thin(matrix: sparse.csr_matrix, max_cells: int) -> sparse.csr_matrix:
    n = matrix.shape[0]
    return matrix if n <= max_cells else matrix[np.linspace(0, n - 1, max_cells).astype(int)]


def _column_means(matrix: sparse.csr_matrix) -> NDArray[np.floating]:
    return np.asarray(matrix.mean(axis=0), dtype=float).ravel()


def _draw_pca(ax: Axes, real: sparse.csr_matrix, generated: sparse.csr_matrix) -> None:
    if real.shape[1] < 2:
        msg = f"kind='pca' needs at least 2 variables, got {real.shape[1]}. Use kind='genes'."
        raise ValueError(msg)
    mean = _column_means(real)
    variance = _column_means(real.multiply(real)) - mean**2
    genes = np.sort(np.argsort(-variance, kind="stable")[:_MAX_GENES])
    dense = real[:, genes].toarray().astype(float)
    axes, share = principal_axes(dense)
    for name, values, color in (
        ("real", dense, _style.REAL_COLOR),
        ("generated", generated[:, genes].toarray().astype(float), _style.GENERATED_COLOR),
    ):
        scores = (values - mean[genes]) @ axes[:, :2]
        size = float(np.clip(4000 / len(scores), 4, 24))
        x, y = scores.T
        ax.scatter(x, y, s=size, color=color, alpha=0.5, linewidths=0, label=f"{name} ({len(scores)} cells)")
    ax.set_xlabel(f"PC1 of real cells ({share[0]:.0%} of variance)")
    ax.set_ylabel(f"PC2 of real cells ({share[1]:.0%} of variance)")
    ax.set_aspect("equal", adjustable="datalim")
    legend = ax.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=2, frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def _draw_genes(ax: Axes, real: NDArray[np.floating], generated: NDArray[np.floating]) -> None:
    low, high = min(real.min(), generated.min()), max(real.max(), generated.max())
    ax.plot([low, high], [low, high], color="#9a9a9a", linewidth=1.0, zorder=1)
    ax.scatter(real, generated, s=10, color=_style.GENERATED_COLOR, alpha=0.6, linewidths=0, zorder=2)
    if len(real) > 1 and real.std() > 0 and generated.std() > 0:
        correlation = np.corrcoef(real, generated)[0, 1]
        text = f"Pearson r = {correlation:.3f}\n{len(real)} genes"
        ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize="small")
    ax.set_xlabel("mean of real cells")
    ax.set_ylabel("mean of generated cells")
    ax.set_aspect("equal", adjustable="datalim")
