"""Curves of the training history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import _style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_SETS = ("train", "validation")


def training_curves(
    model: Any,
    *,
    keys: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Curves of a training run, one line per recorded quantity.

    Training and validation curves of one quantity share a colour; validation is dashed.

    Parameters
    ----------
    model
        A trained model, or its ``history``: a mapping from names to one-column data frames indexed by epoch.
    keys
        Names of the history to draw. By default the loss per epoch, in training and, where it was recorded, in
        validation; in a history without a loss, everything.
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
        If a key was not recorded.
    ValueError
        If there is no history, or a record has more than one column.
    """
    history = model if isinstance(model, Mapping) else getattr(model, "history", None)
    if not history:
        msg = f"model of type {type(model).__name__} has no training history. Call `train` first, or pass a history."
        raise ValueError(msg)
    names = _default_keys(history) if keys is None else list(keys)
    absent = [name for name in names if name not in history]
    if absent or not names:
        msg = f"keys={keys!r}: {absent or 'nothing'} was not recorded. Choose from {sorted(history)}."
        raise KeyError(msg)
    curves = {name: _curve(name, history[name]) for name in names}

    ax = _style.get_axes(ax, figsize=(5.6, 3.6))
    quantities = list(dict.fromkeys(_split(name)[0] for name in names))
    palette = dict(zip(quantities, _style.category_palette(len(quantities)), strict=True))
    for name, (epochs, values) in curves.items():
        quantity, part = _split(name)
        ax.plot(
            epochs,
            values,
            color=palette[quantity],
            linestyle="--" if part == "validation" else "-",
            # A single epoch would draw no line.
            marker="o" if len(epochs) == 1 else None,
            linewidth=1.6,
            label=f"{quantity}, {part}" if part else quantity,
        )
    ax.set_xlabel("epoch")
    ax.set_ylabel(quantities[0].replace("_", " ") if len(quantities) == 1 else "value")
    ax.legend(frameon=False, fontsize="small")
    if title is not None:
        ax.set_title(title)
    _style.despine(ax)
    return ax


def _default_keys(history: Mapping[str, Any]) -> list[str]:
    train = next((name for name in ("train_loss_epoch", "train_loss") if name in history), None)
    names = [name for name in (train, "validation_loss") if name in history]
    return [name for name in names if name is not None] or list(history)


def _split(name: str) -> tuple[str, str]:
    """Split a recorded name into the quantity and the set of cells: ``"elbo_train"`` into ``("elbo", "train")``."""
    bare = name.removesuffix("_epoch")
    for part in _SETS:
        if bare.endswith(f"_{part}"):
            return bare.removesuffix(f"_{part}"), part
        if bare.startswith(f"{part}_"):
            return bare.removeprefix(f"{part}_"), part
    return bare, ""


def _curve(name: str, record: Any) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    frame = pd.DataFrame(record)
    if frame.shape[1] != 1:
        msg = f"history[{name!r}] has {frame.shape[1]} columns. Each record must have one, the value per epoch."
        raise ValueError(msg)
    # scvi-tools records some quantities with object dtype.
    values = pd.to_numeric(frame.iloc[:, 0]).dropna()
    return values.index.to_numpy(dtype=float), values.to_numpy(dtype=float)
