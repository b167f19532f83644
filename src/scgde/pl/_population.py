"""Scatter plot of populations, with the uncertainty of each embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from matplotlib.collections import PolyCollection
from scipy import stats

from . import _style
from ._axes import axes_beyond_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Marker areas in points squared.
_SIZE_RANGE = (24.0, 220.0)
_SIZE_DEFAULT = 60.0


class Projection(NamedTuple):
    """A two-dimensional view of the populations.

    Attributes
    ----------
    points
        ``(n_populations, 2)``.
    axes
        ``(n_embedding, 2)``, the linear map from embedding to view, or `None` where the view is not linear.
    labels
        Names of the two axes.
    """

    points: NDArray[np.floating]
    axes: NDArray[np.floating] | None
    labels: tuple[str, str]


def confidence_ellipses(
    standard_error: NDArray[np.floating],
    axes: NDArray[np.floating],
    n_cells: NDArray[np.floating] | None = None,
    *,
    level: float = 0.95,
    n_vertices: int = 64,
) -> NDArray[np.floating]:
    r"""Outlines, around the origin, of the confidence regions of embeddings seen through a linear map.

    The covariance of an embedding is taken as diagonal, :math:`D = \operatorname{diag}(s^2)`: only the standard error
    :math:`s` of each coordinate is stored. Seen through the map :math:`V` it is :math:`V^\top D V`, and the region is

    .. math:: \{ y : y^\top (V^\top D V)^{-1} y \le r^2 \}, \qquad r^2 = \frac{2 (n - 1)}{n - 2} F_{2,\, n - 2}(level),

    Hotelling's region, the counterpart in two dimensions of the t interval with n - 1 degrees of freedom. Without `n_cells`, :math:`r^2` is its limit for many cells, the quantile of chi-squared with 2 degrees of freedom.

    Parameters
    ----------
    standard_error
        ``(n_populations, n_embedding)``.
    axes
        ``(n_embedding, 2)``, the map :math:`V`.
    n_cells
        ``(n_populations,)``, the number of cells behind each embedding.
    level
        Probability content of the region.
    n_vertices
        Corners of the polygon that stands for the ellipse.

    Returns
    -------
    ``(n_populations, n_vertices, 2)``; NaN for populations of two cells or fewer and for missing standard errors.
    """
    radius2 = np.full(len(standard_error), stats.chi2.ppf(level, df=2))
    if n_cells is not None:
        n = np.asarray(n_cells, dtype=float)
        df = np.where(n > 2, n - 2, np.nan)
        radius2 = 2 * (n - 1) / df * stats.f.ppf(level, 2, df)
    covariance = np.einsum("ki,pk,kj->pij", axes, standard_error.astype(float) ** 2, axes)
    drawable = np.isfinite(covariance).all(axis=(1, 2)) & np.isfinite(radius2)
    outlines = np.full((len(standard_error), n_vertices, 2), np.nan)
    if drawable.any():
        variance, directions = np.linalg.eigh(covariance[drawable])
        half_axes = np.sqrt(np.clip(variance, 0, None) * radius2[drawable, None])
        angle = np.linspace(0, 2 * np.pi, n_vertices, endpoint=False)
        circle = np.stack([np.cos(angle), np.sin(angle)])
        outlines[drawable] = np.einsum("pij,pj,jv->pvi", directions, half_axes, circle)
    return outlines


def population_embedding(
    pop: AnnData,
    *,
    basis: Literal["pca", "umap", "X_gde"] = "pca",
    color: str | None = None,
    size: str | float | None = "gde_n_cells",
    error_ellipses: bool | None = None,
    dimensions: tuple[int, int] = (0, 1),
    annotate: Sequence[str] | None = None,
    max_legend_entries: int = 12,
    cmap: str = _style.SEQUENTIAL_CMAP,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scatter plot of population embeddings, one marker per population.

    Parameters
    ----------
    pop
        AnnData of populations, as returned by :meth:`scgde.GDEModel.get_population_adata`.
    basis
        ``"pca"``: principal axes of the embeddings, computed here, as far as populations differ along them by more than their standard
        errors explain; other axes are labelled ``within noise``, and populations of one law overlap there. ``"X_gde"``: two coordinates of the embedding as
        they are. ``"umap"``: ``obsm["X_umap"]``, which ``sc.pp.neighbors(pop, use_rep="X_gde")`` and
        ``sc.tl.umap(pop)`` write. In the first two, distances on the page are projections of the distances between
        embeddings, and both axes share one scale; in a UMAP distances mean little.
    color
        Column of ``pop.obs``. Numbers get a colour bar, everything else a legend. Colours that scanpy stored in
        ``uns["{color}_colors"]`` are used.
    size
        Column of ``pop.obs`` with non-negative numbers that sets the area of the markers (linear in the square root
        of the column), one area in points squared for all, or `None` for the default area. The default column is
        skipped where it is absent.
    error_ellipses
        Draw the 95 % confidence ellipse of each embedding, from ``layers["standard_error"]``. `None` draws them where
        that is possible: on a linear basis with standard errors at hand. A UMAP is not linear, so standard errors of
        the embedding do not carry over to it, and `True` raises. Populations of two cells or fewer have none. An
        ellipse larger than the cloud of populations runs off the page rather than shrink everything else. Standard
        errors of different coordinates are treated as uncorrelated.
    dimensions
        Which two dimensions of the basis to show, counted from 0.
    annotate
        Names of populations to label.
    max_legend_entries
        Number of categories that the legend lists at most, the most frequent ones; a last line counts the others.
    cmap
        Colour map of a numeric `color`.
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
        If a column, the layer of standard errors or the basis is absent.
    ValueError
        If `error_ellipses` is `True` on a UMAP, `dimensions` do not exist, or a name in `annotate` is unknown.

    Examples
    --------
    >>> pop = model.get_population_adata()  # doctest: +SKIP
    >>> scgde.pl.population_embedding(pop, color="state")  # doctest: +SKIP
    """
    if pop.n_obs == 0:
        msg = "pop has no populations. Pass the AnnData that `get_population_adata` returns, with at least one row."
        raise ValueError(msg)
    if error_ellipses and basis == "umap":
        msg = (
            "error_ellipses=True got basis='umap': a UMAP is not a linear map, so the standard errors of the embedding "
            "have no ellipse in it. Use basis='pca' or 'X_gde', or leave error_ellipses at None."
        )
        raise ValueError(msg)
    view = _project(pop, basis, dimensions)
    colors = None if color is None else _style.require_obs_column(pop, "color", color)
    areas, size_column = _marker_areas(pop, size)
    outlines = None
    if view.axes is not None and error_ellipses is not False:
        outlines = _outlines(pop, view.axes, required=bool(error_ellipses))
    annotate = [annotate] if isinstance(annotate, str) else list(annotate or ())
    unknown = [name for name in annotate if name not in pop.obs_names]
    if unknown:
        msg = f"annotate holds {unknown}, which are no populations of `pop`. Pass names from `pop.obs_names`."
        raise ValueError(msg)

    ax = _style.get_axes(ax, figsize=(6.4, 4.6))
    rgba = _draw_colors(ax, pop, color, colors, cmap=cmap, max_entries=max_legend_entries)
    limits = [view.points]
    if outlines is not None:
        shapes = outlines + view.points[:, None, :]
        drawn = np.isfinite(shapes).all(axis=(1, 2))
        collection = PolyCollection(
            list(shapes[drawn]), facecolors=rgba[drawn], edgecolors=rgba[drawn], linewidths=0.7, zorder=1
        )
        collection.set_alpha(0.16)
        collection.set_label("_error_ellipses")
        ax.add_collection(collection, autolim=False)
        width = np.ptp(outlines[drawn], axis=1).max(axis=1)
        # With a single population the ellipse is all there is to see, and with many of one law ellipses are wider than the cloud.
        room = max(np.ptp(view.points, axis=0).max(), np.median(width) if len(width) else 0.0)
        fits = width <= (room if pop.n_obs > 1 else np.inf)
        limits.append(shapes[drawn][fits])
    # Large markers first, so that small populations stay visible.
    order = np.argsort(-areas, kind="stable")
    x, y = view.points[order].T
    ax.scatter(x, y, s=areas[order], c=rgba[order], edgecolors="white", linewidths=0.6, alpha=0.9, zorder=2)
    ax.update_datalim(np.concatenate([corners.reshape(-1, 2) for corners in limits]))
    ax.margins(0.06)
    if view.axes is not None:
        ax.set_aspect("equal", adjustable="datalim")
    if size_column is not None:
        _size_legend(ax, size_column, str(size))
    for name in annotate:
        row = pop.obs_names.get_loc(name)
        offset = 1 + np.sqrt(areas[row]) / 2 / np.sqrt(2)
        text = _style.shorten(name)
        ax.annotate(text, view.points[row], xytext=(offset, offset), textcoords="offset points", fontsize="small")
    ax.set_xlabel(view.labels[0])
    ax.set_ylabel(view.labels[1])
    if title is not None:
        ax.set_title(title)
    _style.despine(ax)
    return ax


def _project(pop: AnnData, basis: str, dimensions: tuple[int, int]) -> Projection:
    if basis not in {"pca", "umap", "X_gde"}:
        msg = f"basis={basis!r} is unknown. Use 'pca', 'umap' or 'X_gde'."
        raise ValueError(msg)
    key = "X_umap" if basis == "umap" else "X_gde"
    if key not in pop.obsm:
        remedy = (
            'Run `sc.pp.neighbors(pop, use_rep="X_gde")` and `sc.tl.umap(pop)` first.'
            if basis == "umap"
            else "Pass the AnnData that `get_population_adata` returns."
        )
        msg = f"basis={basis!r} needs `pop.obsm[{key!r}]`, which is absent. {remedy}"
        raise KeyError(msg)
    values = np.asarray(pop.obsm[key], dtype=float)
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).any(axis=1).sum())
        msg = f"`pop.obsm[{key!r}]` is not finite in {n_bad} rows. Drop these populations from `pop`."
        raise ValueError(msg)
    axes: NDArray[np.floating] = np.eye(values.shape[1])
    share: NDArray[np.floating] = np.zeros(0)
    n_axes = values.shape[1]
    if basis == "pca":
        error = pop.layers["standard_error"] if "standard_error" in pop.layers else np.full(values.shape, np.nan)
        axes, share, n_axes = axes_beyond_noise(values, np.asarray(error, dtype=float))
        values = (values - values.mean(axis=0)) @ axes
    chosen = _style.choose_dimensions(dimensions, values.shape[1])
    first, second = (_dimension_label(basis, dim, share, n_axes) for dim in chosen)
    return Projection(values[:, chosen], None if basis == "umap" else axes[:, chosen], (first, second))


def _dimension_label(basis: str, dim: int, share: NDArray[np.floating], n_axes: int) -> str:
    if basis == "pca" and dim >= n_axes:
        return f"within noise ({share[dim]:.0%} of variance)"
    if basis == "pca":
        return f"PC{dim + 1} ({share[dim]:.0%} of variance)"
    return f"UMAP{dim + 1}" if basis == "umap" else f"GDE_{dim}"


def _outlines(pop: AnnData, axes: NDArray[np.floating], *, required: bool) -> NDArray[np.floating] | None:
    if "standard_error" not in pop.layers:
        if required:
            msg = (
                "error_ellipses=True needs `pop.layers['standard_error']`, which is absent. "
                "Pass the AnnData that `get_population_adata` returns, or error_ellipses=False."
            )
            raise KeyError(msg)
        return None
    standard_error = np.asarray(pop.layers["standard_error"], dtype=float)
    n_cells = pop.obs["gde_n_cells"].to_numpy() if "gde_n_cells" in pop.obs else None
    return confidence_ellipses(standard_error, axes, n_cells)


def _marker_areas(pop: AnnData, size: str | float | None) -> tuple[NDArray[np.floating], pd.Series | None]:
    if size == "gde_n_cells" and size not in pop.obs:
        size = None
    if size is None:
        size = _SIZE_DEFAULT
    if not isinstance(size, str):
        if not size > 0:
            msg = f"size={size} must be positive: an area in points squared. Pass a positive number or a column of `.obs`."
            raise ValueError(msg)
        return np.full(pop.n_obs, float(size)), None
    column = _style.require_obs_column(pop, "size", size)
    if not _style.is_continuous(column) or not (column.ge(0) & np.isfinite(column)).all():
        msg = f"size={size!r} must be a column of finite, non-negative numbers. Pass such a column, or one number."
        raise ValueError(msg)
    return _area(column.to_numpy(dtype=float), column), column


def _area(values: NDArray[np.floating], column: pd.Series) -> NDArray[np.floating]:
    low, high = np.sqrt([column.min(), column.max()])
    if high == low:
        return np.full(len(values), _SIZE_DEFAULT)
    return _SIZE_RANGE[0] + (_SIZE_RANGE[1] - _SIZE_RANGE[0]) * (np.sqrt(values) - low) / (high - low)


def _draw_colors(
    ax: Axes, pop: AnnData, key: str | None, values: pd.Series | None, *, cmap: str, max_entries: int
) -> NDArray[np.floating]:
    """Return one RGBA row per population, and draw the legend or the colour bar that explains them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba_array

    if key is None or values is None:
        return np.repeat(to_rgba_array(_style.REAL_COLOR), pop.n_obs, axis=0)
    if _style.is_continuous(values):
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        finite = np.isfinite(numbers)
        if not finite.any():
            msg = f"color={key!r} holds no finite number. Pass a column of `.obs` that does."
            raise ValueError(msg)
        mappable = ScalarMappable(Normalize(numbers[finite].min(), numbers[finite].max()), cmap)
        rgba = mappable.to_rgba(numbers)
        rgba[~finite] = to_rgba_array(_style.MISSING_COLOR)
        bar = ax.figure.colorbar(mappable, cax=ax.inset_axes((_style.MARGIN_X, 0.5, 0.035, 0.5)))
        bar.set_label(key)
        bar.outline.set_visible(False)  # type: ignore[operator]
        return rgba
    categories = _style.as_categories(values)
    colors = _style.category_colors(pop, key, categories.categories)
    table = to_rgba_array([*colors.values(), _style.MISSING_COLOR])
    counts = dict(zip(categories.categories, np.bincount(categories.codes[categories.codes >= 0]), strict=True))
    n_missing = int((categories.codes < 0).sum())
    _style.category_legend(ax, colors, counts, title=key, max_entries=max_entries, n_missing=n_missing)
    return table[categories.codes]


def _size_legend(ax: Axes, column: pd.Series, name: str) -> None:
    if column.min() == column.max():
        return
    values = np.unique([_round(value) for value in np.quantile(column, (0.0, 0.5, 1.0))])
    areas = _area(np.clip(values, column.min(), column.max()), column)
    handles = [_style.marker("#8a8a8a", f"{value:g}", size=area) for value, area in zip(values, areas, strict=True)]
    title = "cells" if name == "gde_n_cells" else name
    # A second call of `legend` drops the first legend unless it is added back.
    colors = ax.get_legend()
    ax.legend(
        handles=handles,
        title=title,
        loc="lower left",
        bbox_to_anchor=(_style.MARGIN_X - 0.02, 0.0),
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        alignment="left",
        labelspacing=0.8,
    )
    if colors is not None:
        ax.add_artist(colors)
        # Clipped artists take no part in the layout, and the figure would cut this one off.
        colors.set_clip_on(False)


def _round(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")
