"""Which cells a model was trained on."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from scgde.data.streaming import StreamedCells

if TYPE_CHECKING:
    from anndata import AnnData


def fingerprint(cells: AnnData | StreamedCells) -> str:
    """Digest of the names of cells in their order."""
    if isinstance(cells, StreamedCells):
        return cells.names
    names = cells.obs_names
    return hashlib.sha256("\n".join(names.astype(str)).encode()).hexdigest()


def trained_cells(model: Any) -> np.ndarray:
    """Cells of a model's AnnData that trained or validated it, sorted.

    Raises
    ------
    ValueError
        If other cells are attached, or in another order.
    """
    assert model.adata is not None
    if fingerprint(model.adata) != model.cells_:
        message = (
            "The model's AnnData holds other cells than it was trained on, or in another order, so that it cannot be told which "
            "cells were held out. Load the model with the AnnData of training, or a saved predictor."
        )
        raise ValueError(message)
    return np.sort(np.concatenate([model.train_indices_, model.validation_indices_])).astype(np.int64)


def digest(values: np.ndarray) -> str:
    """Digest of numbers."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def describe_setup(registry: dict) -> str:
    """Digest of how cells were set up: columns, labels, categories and genes, and not how many cells there were."""
    fields = {}
    for name, entry in registry["field_registries"].items():
        state = {k: v for k, v in entry["state_registry"].items() if k != "n_obs"}
        fields[name] = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in sorted(state.items())}
    content = json.dumps([registry["setup_args"], fields], default=_plain, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
