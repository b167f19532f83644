"""Replicates of several groups, the means of the groups, and what is paired."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from matplotlib.collections import LineCollection

from . import _style
from ._axes import principal_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def replicates(
    pop: AnnData,
    groupby: str,
    *,
    block_key: str | None = None,
    dimensions: tuple[int, int] = (0, 1),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scatter plot of replicates, coloured by group, with the mean of each group.

    Distances on the page are projections of the distances between embeddings, and both axes share one scale. Blocks,
    such as the two samples of a donor, are joined by lines: where a treatment does the same to all donors, lines are
    parallel.

    Parameters
    ----------
    pop
        AnnData of populations, one for each replicate, as returned by
        :meth:`scgde.GDEModel.get_population_adata`. Of populations that are replicate x cell type, take one cell type:
        ``pop[pop.obs["cell_type"] == "B cells"]``.
    groupby
        Column of ``pop.obs`` with the group.
    block_key
        Column with the block, such as the donor of paired samples. Lines run from every replicate of one
        group to every replicate of the other in the same block; with more groups, from each to the next.
    dimensions
        Which two principal axes of the embeddings to show, counted from 0.
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
        If a column or the embeddings are absent.
    ValueError
        If ``dimensions`` do not exist, or a column has missing values.

    Examples
    --------
    >>> pop = model.get_population_adata()  # doctest: +SKIP
    >>> scgde.pl.replicates(pop, "condition", block_key="donor")  # doctest: +SKIP
    """
    if not isinstance(pop, AnnData) or "X_gde" not in pop.obsm:
        message = '`pop.obsm["X_gde"]` is absent. Pass the AnnData that `get_population_adata` returns.'
        raise KeyError(message)
    z = np.asarray(pop.obsm["X_gde"], dtype=float)
    columns = {"groupby": groupby} | ({} if block_key is None else {"block_key": block_key})
    for argument, name in columns.items():
        missing = int(_style.require_obs_column(pop, argument, name).isna().sum())
        if missing:
            message = f"{argument}={name!r} is missing in {missing} rows. Leave these rows of `pop` out."
            raise ValueError(message)
    axes, share = principal_axes(z)
    shown = _style.choose_dimensions(dimensions, axes.shape[1])
    points = (z - z.mean(0)) @ axes[:, shown]
    groups = _style.as_categories(pop.obs[groupby])
    colors = _style.category_colors(pop, groupby, groups.categories)

    ax = _style.get_axes(ax, figsize=(6.0, 4.4))
    if block_key is not None:
        blocks = _style.as_categories(pop.obs[block_key]).codes
        lines = []
        for b in np.unique(blocks):
            inside = np.flatnonzero(blocks == b)
            present = np.unique(groups.codes[inside])
            for first, second in zip(present[:-1], present[1:], strict=True):
                starts, ends = (inside[groups.codes[inside] == g] for g in (first, second))
                lines += [points[[i, j]] for i in starts for j in ends]
        ax.add_collection(LineCollection(lines, colors="#9aa0a6", linewidths=0.9, zorder=1, label="_blocks"))
    counts = {}
    for k, label in enumerate(groups.categories):
        inside = groups.codes == k
        counts[label] = int(inside.sum())
        x, y = points[inside].T
        ax.scatter(x, y, s=46, c=colors[label], edgecolors="white", linewidths=0.6, alpha=0.9, zorder=2)
        ax.scatter(x.mean(), y.mean(), s=190, marker="D", c=colors[label], edgecolors="black", linewidths=1.2, zorder=3)
    _style.category_legend(ax, colors, counts, title=groupby, max_entries=12)
    ax.margins(0.08)
    ax.set_aspect("equal", adjustable="datalim")
    names = [f"PC{dim + 1} ({share[dim]:.0%} of variance)" for dim in shown]
    ax.set(xlabel=names[0], ylabel=names[1])
    if title is not None:
        ax.set_title(title)
    _style.despine(ax)
    return ax
