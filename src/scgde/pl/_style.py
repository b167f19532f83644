"""What the plots share: axes, colours, legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgba
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

MISSING_COLOR = "#c8c8c8"
REAL_COLOR = "#4c5c73"
GENERATED_COLOR = "#e07b39"
SEQUENTIAL_CMAP = "viridis"
# Left edge, in axes fractions, of everything that stands to the right of the axes.
MARGIN_X = 1.03


def get_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return `ax`, or the only axes of a new figure whose layout makes room for legends outside of it."""
    if ax is not None:
        return ax
    return plt.subplots(figsize=figsize, layout="constrained")[1]


def require_obs_column(adata: AnnData, argument: str, key: str) -> pd.Series:
    """Return `adata.obs[key]`, or raise a `KeyError` that lists what there is."""
    if key not in adata.obs.columns:
        columns = ", ".join(map(repr, adata.obs.columns)) or "none"
        msg = f"{argument}={key!r} is not a column of `.obs`. Pass one of its columns ({columns})."
        raise KeyError(msg)
    return adata.obs[key]


def choose_dimensions(dimensions: Any, n: int) -> list[int]:
    """The two axes to show, of ``n`` that there are."""
    integers = isinstance(dimensions, tuple | list | np.ndarray) and all(
        isinstance(dim, int | np.integer) and not isinstance(dim, bool) for dim in dimensions
    )
    if n < 2:
        msg = "Populations spread along fewer than two axes, so that no plane can be shown. Three populations are needed at least."
        raise ValueError(msg)
    if not integers or len(dimensions) != 2 or len(set(dimensions)) < 2 or not all(0 <= dim < n for dim in dimensions):
        msg = f"dimensions={dimensions!r} must be two different integers from 0 to {n - 1}, such as (0, 1)."
        raise ValueError(msg)
    return [int(dim) for dim in dimensions]


def is_continuous(values: pd.Series) -> bool:
    """Whether a column is drawn on a colour scale rather than with one colour per value."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def as_categories(values: pd.Series) -> pd.Categorical:
    """Return a column as a categorical of strings without unused categories; the order of a categorical is kept."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        labels = [str(label) for label in used.cat.categories]
        return pd.Categorical.from_codes(used.cat.codes.to_numpy(), categories=pd.Index(labels))
    strings = [None if pd.isna(value) else str(value) for value in values]
    return pd.Categorical(strings, categories=sorted({string for string in strings if string is not None}))


def category_palette(n: int) -> list[str]:
    """Return `n` distinct colours: matplotlib's qualitative maps while they last, then evenly spaced hues."""
    if n <= 10:
        return [to_hex(color) for color in plt.get_cmap("tab10").colors[:n]]  # type: ignore[attr-defined]
    if n <= 20:
        # The strong member of each pair comes first, so that neighbours in the legend differ in hue.
        colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
        return [to_hex(color) for color in (*colors[::2], *colors[1::2])[:n]]
    return [to_hex(color) for color in plt.get_cmap("gist_rainbow")(np.linspace(0, 1, n))]


def category_colors(adata: AnnData, key: str, categories: pd.Index) -> dict[str, str]:
    """Map each category to a colour, taking scanpy's ``uns["{key}_colors"]`` where it fits."""
    stored = adata.uns.get(f"{key}_colors")
    column = adata.obs[key]
    if stored is not None and isinstance(column.dtype, pd.CategoricalDtype):
        every = [str(label) for label in column.cat.categories]
        if len(stored) == len(every):
            lookup = dict(zip(every, map(str, stored), strict=True))
            return {label: lookup[label] for label in categories}
    return dict(zip(categories, category_palette(len(categories)), strict=True))


def category_legend(
    ax: Axes, colors: Mapping[str, str], counts: Mapping[str, int], *, title: str, max_entries: int, n_missing: int = 0
) -> Legend:
    """Draw a legend of at most `max_entries` categories (the most frequent ones, in their own order) to the right."""
    shown = list(colors)
    if len(shown) > max_entries:
        # A stable sort: among equally frequent categories the first ones stay.
        frequent = sorted(shown, key=lambda label: -counts[label])[:max_entries]
        shown = [label for label in shown if label in frequent]
    handles = [marker(colors[label], shorten(label)) for label in shown]
    if len(colors) > len(shown):
        handles.append(marker("none", f"and {len(colors) - len(shown)} more"))
    if n_missing:
        handles.append(marker(MISSING_COLOR, "missing"))
    legend = ax.legend(
        handles=handles,
        title=title,
        loc="upper left",
        bbox_to_anchor=(MARGIN_X - 0.02, 1.0),
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        alignment="left",
    )
    return legend


def marker(color: str, label: str, *, size: float = 36.0) -> Line2D:
    """Return a legend handle: one round marker of the given area in points squared."""
    face = to_rgba(color)
    return Line2D([], [], linestyle="none", marker="o", color=face, markersize=np.sqrt(size), label=label)


def shorten(label: str, width: int = 28) -> str:
    """Cut a long label so that a legend keeps a bounded width."""
    return label if len(label) <= width else label[: width - 1] + "…"


def despine(ax: Axes) -> None:
    """Remove the top and right spines."""
    ax.spines[["top", "right"]].set_visible(False)
