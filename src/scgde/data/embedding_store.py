"""Embeddings of cells on disk, written to the folder that the cells are in."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr
from anndata.io import write_elem

from scgde.data._store import ArrayWriter

if TYPE_CHECKING:
    from scgde.data.streaming import StreamedCells
    from scgde.inference import Embedding

_ROWS_PER_CHUNK = 4096


class EmbeddingStore:
    """Vectors of cells, as they come, and then the arrays of ``obsm`` and the entries of ``uns`` made of them.

    Arrays are written beside the folder and moved into it when they are whole.

    Parameters
    ----------
    cells
        Cells.
    key
        Name in all keys.
    width
        Width of the embedding.
    """

    def __init__(self, cells: StreamedCells, key: str, width: int) -> None:
        self.cells, self.key, self.width = cells, key, width

    def __enter__(self) -> Self:
        folder = Path(self.cells.path).resolve()
        if not os.access(folder, os.W_OK):
            message = f"{str(folder)!r} cannot be written to; copy it to where you may write."
            raise PermissionError(message)
        try:
            self._partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.embedding-", dir=folder.parent))
        except OSError as error:
            message = (
                f"Nothing can be written beside {str(folder)!r} ({error}); copy the folder to where you may write."
            )
            raise OSError(message) from error
        self._vectors = open(self._partial / "vectors", "w+b")
        return self

    def __exit__(self, *exception: object) -> None:
        self._vectors.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def put(self, rows: np.ndarray, vectors: Any) -> None:
        """Take the vectors ``(len(rows), width)`` of cells."""
        values = np.asarray(vectors, dtype=np.float32)
        order = np.argsort(rows, kind="stable")
        values, rows = values[order], rows[order]
        # the cells of a population lie together
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]])
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            self._vectors.seek(int(rows[start]) * self.width * 4)
            self._vectors.write(values[start:stop].tobytes())

    def finish(self, embedding: Embedding, entries: dict[str, Any]) -> None:
        """Put the arrays in ``obsm`` and ``entries`` in ``uns`` of the folder; what had their keys is replaced."""
        group = zarr.open_group(self._partial / "arrays", mode="w", zarr_format=3)
        names = (f"X_{self.key}", f"X_{self.key}_population")
        shape, attributes = (self.cells.n_obs, self.width), {"encoding-type": "array", "encoding-version": "0.2.0"}
        writers = [
            ArrayWriter(group, name, shape, np.float32, chunk=_ROWS_PER_CHUNK, fill_value=np.nan, attributes=attributes)
            for name in names
        ]
        self._vectors.flush()
        self._vectors.seek(0)
        for start in range(0, self.cells.n_obs, _ROWS_PER_CHUNK):
            codes = embedding.codes[start : start + _ROWS_PER_CHUNK]
            block = np.fromfile(self._vectors, np.float32, len(codes) * self.width).reshape(-1, self.width)
            writers[0].append(block)
            writers[1].append(np.where(codes[:, None] < 0, np.nan, embedding.z[codes]).astype(np.float32))
        for writer in writers:
            writer.close()
        root = zarr.open_group(self.cells.path, mode="r+")
        for name in ("obsm", "uns"):
            if name not in root:
                root.create_group(name, attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
        for name in names:
            place = Path(self.cells.path) / "obsm" / name
            if place.exists():
                os.replace(place, self._partial / f"old-{name}")
            os.replace(self._partial / "arrays" / name, place)
        uns: Any = root["uns"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*autosharding.*")  # of a later version, to its own users
            write_elem(uns, self.key, entries)
