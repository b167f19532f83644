"""Model files made of plain types only, so that reading one never runs code from it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pandas as pd
import torch

STATE, NAMES, ATTRIBUTES = "model_state_dict", "var_names", "attr_dict"
"""The three keys of a scvi-tools model file."""

FILE_NAME = "model.pt"

_KIND = "__kind__"


def to_plain(value: Any) -> Any:
    """Turn arrays, frames and mappings into dicts, lists, strings, numbers and tensors.

    Raises
    ------
    TypeError
        If a value has no plain form.
    """
    if isinstance(value, np.generic):  # first, since np.float64 is a float and np.str_ a str, which files may not hold
        return to_plain(value.item())
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OUS":
            return {_KIND: "array", "items": [to_plain(v) for v in value.ravel().tolist()], "shape": list(value.shape)}
        return {_KIND: "tensor", "data": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, pd.DataFrame):
        return {
            _KIND: "frame",
            "index": to_plain(np.asarray(value.index)),
            "index_name": value.index.name,
            "columns": [str(c) for c in value.columns],
            "data": [to_plain(np.asarray(_numeric(value[c]))) for c in value.columns],
        }
    if isinstance(value, pd.Index | pd.Series):
        return to_plain(np.asarray(value))
    if isinstance(value, tuple | list | set):
        return [to_plain(v) for v in value]
    if hasattr(value, "items"):
        return {str(k): to_plain(v) for k, v in value.items()}
    message = f"Cannot save a {type(value).__name__}: model files hold plain types only."
    raise TypeError(message)


def from_plain(value: Any) -> Any:
    """Inverse of :func:`to_plain`, up to tuples becoming lists."""
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {k: from_plain(v) for k, v in value.items()}
    if kind == "tensor":
        return value["data"].cpu().numpy()
    if kind == "array":
        items = np.empty(len(value["items"]), dtype=object)
        items[:] = value["items"]
        return items.reshape(value["shape"])
    index = pd.Index(from_plain(value["index"]), name=value["index_name"])
    return pd.DataFrame({c: from_plain(d) for c, d in zip(value["columns"], value["data"], strict=True)}, index=index)


def _numeric(column: pd.Series) -> pd.Series:
    # the training log holds zero-dimensional tensors in columns of dtype object
    return column.astype(float) if column.dtype == object and len(column) else column


def write_model(path: str, state: dict[str, torch.Tensor], var_names: Any, attributes: dict[str, Any]) -> None:
    """Write a model file; an interrupted write leaves no half-written file under the final name."""
    temporary = f"{path}.partial"
    plain = {STATE: dict(state), NAMES: [str(v) for v in var_names], ATTRIBUTES: to_plain(attributes)}
    torch.save(plain, temporary)
    os.replace(temporary, path)


def read_model(dir_path: str, prefix: str | None = None) -> tuple[dict[str, torch.Tensor], list[str], dict[str, Any]]:
    """State, variable names and attributes of a model file, read without running anything in it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds anything but plain types, or is no model of this package.
    """
    path = os.path.join(dir_path, f"{prefix or ''}{FILE_NAME}")
    if not os.path.exists(path):
        message = f"There is no model file at {path!r}. Give the folder that save() wrote, and its prefix= if any."
        raise FileNotFoundError(message)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        message = (
            f"Model file {path!r} cannot be read: it is damaged, or holds objects other than plain types, which "
            "scgde never writes and does not load because reading them could run code."
        )
        raise ValueError(message) from error
    if not isinstance(content, dict) or set(content) != {STATE, NAMES, ATTRIBUTES}:
        message = f"{path!r} is no model file: it lacks the entries {[STATE, NAMES, ATTRIBUTES]}."
        raise ValueError(message)
    return content[STATE], list(content[NAMES]), from_plain(content[ATTRIBUTES])
