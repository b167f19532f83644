"""Heat map of distances between populations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from . import _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# More tick labels than this cannot be read.
_MAX_TICK_LABELS = 40
# Optimal leaf ordering costs the cube of the number of populations and memory to match.
_MAX_OPTIMAL_ORDERING = 400


def leaf_order(distances: NDArray[np.floating]) -> NDArray[np.intp]:
    """Order in which average linkage puts similar rows next to each other.

    Parameters
    ----------
    distances
        ``(n, n)``, symmetric with a zero diagonal.

    Returns
    -------
    ``(n,)``, a permutation.
    """
    n = len(distances)
    if n < 3:
        return np.arange(n)
    condensed = squareform(distances, checks=False)
    return leaves_list(linkage(condensed, "average", optimal_ordering=n <= _MAX_OPTIMAL_ORDERING)).astype(np.intp)


def population_distances(
    pop: AnnData | pd.DataFrame,
    *,
    groupby: str | pd.Series | None = None,
    cluster: bool = True,
    max_legend_entries: int = 12,
    cmap: str = _style.SEQUENTIAL_CMAP,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the distances between populations; near pairs are dark.

    Parameters
    ----------
    pop
        AnnData of populations, of which ``obsp["gde_distances"]`` is drawn, or a square data frame of distances, as
        returned by :meth:`scgde.GDEModel.get_population_distances`.
    groupby
        Column of ``pop.obs``, or a series over the populations. Populations of one group stand together, groups
        follow each other in the order of their categories, those without a group come last, and a strip above the
        map shows them.
    cluster
        Order the populations (inside each group, if there are groups) by average linkage. `False` keeps their order.
    max_legend_entries
        Number of groups that the legend lists at most.
    cmap
        Colour map.
    title
        Title of the axes.
    ax
        Axes to draw on; a new figure by default.

    Returns
    -------
    The axes. Populations are named on it if there are at most 40.

    Raises
    ------
    KeyError
        If ``obsp["gde_distances"]`` or the column is absent, or the series lacks a population.
    ValueError
        If the matrix is not a distance matrix: square with equal labels, symmetric, finite, non-negative, and zero
        on the diagonal.
    TypeError
        If `pop` is neither of the two, or `groupby` is a column name although `pop` is a data frame.
    """
    frame = _distance_frame(pop)
    groups = _groups(pop, frame.index, groupby)
    distances = frame.to_numpy(dtype=float)
    order = _order(distances, groups, cluster=cluster)

    ax = _style.get_axes(ax, figsize=(6.0, 4.8))
    image = ax.imshow(distances[np.ix_(order, order)], cmap=cmap, vmin=0.0, interpolation="nearest", aspect="equal")
    if len(frame) <= _MAX_TICK_LABELS:
        labels = [_style.shorten(str(frame.index[row])) for row in order]
        font = 8 if len(frame) <= 20 else 6
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font)
        ax.set_yticks(range(len(labels)), labels, fontsize=font)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"{len(frame)} populations")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((_style.MARGIN_X, 0.0, 0.035, 0.45)))
    bar.set_label("distance")
    bar.outline.set_visible(False)  # type: ignore[operator]
    if groups is not None:
        name = groupby if isinstance(groupby, str) else str(getattr(groupby, "name", None) or "group")
        _draw_groups(ax, pop, name, groups, order, max_entries=max_legend_entries)
    if title is not None:
        ax.set_title(title, pad=16 if groups is not None else 6)
    return ax


def _distance_frame(pop: AnnData | pd.DataFrame) -> pd.DataFrame:
    if isinstance(pop, AnnData):
        if "gde_distances" not in pop.obsp:
            msg = (
                "`pop.obsp['gde_distances']` is absent. Pass the AnnData that `get_population_adata` returns, "
                "or the data frame that `get_population_distances` returns."
            )
            raise KeyError(msg)
        values = pop.obsp["gde_distances"]
        dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
        frame = pd.DataFrame(dense, index=pop.obs_names, columns=pop.obs_names)
    elif isinstance(pop, pd.DataFrame):
        frame = pop
    else:
        msg = f"pop has type {type(pop).__name__}. Pass an AnnData of populations or a data frame of distances."
        raise TypeError(msg)
    problem = None
    if len(frame) == 0 or not frame.index.equals(frame.columns):
        problem = f"its shape is {frame.shape} and rows and columns must name the same populations in the same order"
    else:
        values = frame.to_numpy(dtype=float)
        # Single precision distances from a Gram matrix are off by about 1e-3 of their scale on the diagonal.
        tolerance = 1e-3 * max(float(np.nanmax(np.abs(values))), 1e-12) if np.isfinite(values).any() else 0.0
        if not np.isfinite(values).all():
            problem = f"{int((~np.isfinite(values)).sum())} entries are not finite"
        elif values.min() < -tolerance:
            problem = f"its smallest entry is {values.min():.3g}, and distances are not negative"
        elif np.abs(values - values.T).max() > tolerance:
            problem = f"it differs from its transpose by up to {np.abs(values - values.T).max():.3g}"
        elif np.abs(np.diag(values)).max() > tolerance:
            problem = f"its diagonal reaches {np.abs(np.diag(values)).max():.3g} and must be zero"
    if problem is not None:
        msg = f"pop is not a distance matrix: {problem}. Pass the result of `get_population_distances`."
        raise ValueError(msg)
    return frame


def _groups(pop: AnnData | pd.DataFrame, index: pd.Index, groupby: str | pd.Series | None) -> pd.Categorical | None:
    if groupby is None:
        return None
    if isinstance(groupby, pd.Series):
        absent = index.difference(groupby.index)
        if len(absent):
            msg = f"groupby lacks {len(absent)} populations, e.g. {absent[0]!r}. Its index must hold every population."
            raise KeyError(msg)
        return _style.as_categories(groupby.loc[index])
    if not isinstance(pop, AnnData):
        msg = (
            f"groupby={groupby!r} names a column, but pop is a data frame. Pass a series over the populations instead."
        )
        raise TypeError(msg)
    return _style.as_categories(_style.require_obs_column(pop, "groupby", groupby))


def _order(distances: NDArray[np.floating], groups: pd.Categorical | None, *, cluster: bool) -> NDArray[np.intp]:
    if groups is None:
        return leaf_order(distances) if cluster else np.arange(len(distances))
    blocks = []
    for code in (*range(len(groups.categories)), -1):
        members = np.flatnonzero(groups.codes == code)
        blocks.append(members[leaf_order(distances[np.ix_(members, members)])] if cluster else members)
    return np.concatenate(blocks)


def _draw_groups(
    ax: Axes,
    pop: AnnData | pd.DataFrame,
    name: str,
    groups: pd.Categorical,
    order: NDArray[np.intp],
    *,
    max_entries: int,
) -> None:
    from matplotlib.colors import to_rgba_array

    if isinstance(pop, AnnData) and name in pop.obs:
        colors = _style.category_colors(pop, name, groups.categories)
    else:
        palette = _style.category_palette(len(groups.categories))
        colors = dict(zip(groups.categories, palette, strict=True))
    codes = groups.codes[order]
    table = to_rgba_array([*colors.values(), _style.MISSING_COLOR])
    strip = ax.inset_axes((0.0, 1.01, 1.0, 0.03))
    strip.imshow(table[codes][None, :, :], aspect="auto", interpolation="nearest")
    strip.set_axis_off()
    for boundary in np.flatnonzero(np.diff(codes)) + 0.5:
        ax.axhline(boundary, color="white", linewidth=1.0)
        ax.axvline(boundary, color="white", linewidth=1.0)
    counts = dict(zip(groups.categories, np.bincount(codes[codes >= 0]), strict=True))
    n_missing = int((codes < 0).sum())
    _style.category_legend(ax, colors, counts, title=name, max_entries=max_entries, n_missing=n_missing)
