"""Files of predictions: their names, what they were predicted with, and how they appear whole."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from scgde.serialization import read_model, to_plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scgde import PerturbationPredictor

REQUEST_KEY = "gde_request"
"""Entry of ``uns`` that says what a file was predicted with."""


@dataclass(frozen=True)
class Request:
    """One population that is to be predicted.

    Attributes
    ----------
    perturbation, context, dose
        As :meth:`scgde.PerturbationPredictor.predict` takes them; None where there is none.
    """

    perturbation: str
    context: str | None
    dose: float | None

    @property
    def name(self) -> str:
        """What it is, for messages."""
        dose = None if self.dose is None else f"dose {self.dose:g}"
        return ", ".join(part for part in (self.perturbation, self.context, dose) if part is not None)

    @property
    def file(self) -> str:
        """Name of its file: readable, and of this request alone."""
        dose = None if self.dose is None else f"{self.dose:g}"
        parts = [part for part in (self.context, self.perturbation, dose) if part is not None]
        readable = "__".join("".join(c if c.isalnum() or c in "+-." else "_" for c in part)[:60] for part in parts)
        # labels that differ in other characters only have to differ in the name too
        return f"{readable.lstrip('.')}__{self.digest()[:10]}.h5ad"

    def digest(self, **more: Any) -> str:
        """Digest of the request, and of anything else that is given."""
        return hashlib.sha256(json.dumps({**asdict(self), **more}, sort_keys=True).encode()).hexdigest()

    def stamp(self, settings: dict[str, Any]) -> str:
        """Digest of the request and the settings it is predicted with."""
        return self.digest(settings=settings)

    def seed(self, seed: int) -> int:
        """Seed of its draws."""
        return int(self.digest(seed=int(seed))[:7], 16)


def predictor_digest(predictor: PerturbationPredictor) -> str:
    """Digest of the weights of the model and of what the predictor holds; the same after both have been saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(folder, overwrite=True)
        _, _, content = read_model(folder)
    digest = hashlib.sha256()
    _update(digest, predictor.model.module.state_dict())
    _update(digest, to_plain(content))
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Add a value of plain types to a digest. Files are of no use: equal ones may be written in different ways."""
    if isinstance(value, dict):
        for key in sorted(value):
            digest.update(f"{key!r}:".encode())
            _update(digest, value[key])
    elif isinstance(value, list):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, torch.Tensor):
        array = value.detach().cpu().numpy()
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    else:
        digest.update(f"{value!r};".encode())


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that appears under its name when it is whole; an error leaves nothing behind."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_stamp(path: Path) -> str | None:
    """Stamp of a file of a prediction; None where there is none that is whole."""
    import h5py

    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            return str(file[f"uns/{REQUEST_KEY}/stamp"].asstr()[()])
    except (OSError, KeyError):  # cut off on the way from elsewhere
        return None


def cells_of(path: Path) -> int:
    """Cells of a file."""
    import h5py

    with h5py.File(path, "r") as file:
        obs = file["obs"]
        return int(obs[obs.attrs["_index"]].shape[0])
