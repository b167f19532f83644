"""A folder of cells sorted by population: its format, how arrays are written, and what may be missing from it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zarr

STORE_KEY = "scgde_store"
"""Attribute of the root group that describes the store."""

STORE_FORMAT = 1
"""Version of the layout."""

CHUNK_ENTRIES = 65_536
"""Entries of ``X`` in one chunk, the least that can be read."""

CHUNK_CELLS = 131_072
"""Cells in one chunk of row pointers and of columns of ``obs``."""

SHARD_CHUNKS = 64
"""Chunks in one file, for arrays of more chunks than that."""


def codecs(dtype: np.dtype | type) -> list[Any]:
    """Compression of one chunk and a checksum, so that a flipped bit raises on reading.

    Of counts, LZ4 on transposed bits takes a quarter less room than LZ4 on transposed bytes and reads a tenth slower; it reads
    twice as fast as Zstandard at level 1, which takes a seventh less room. The checksum adds less than a tenth to decompression.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    if dtype is str:
        return [ZstdCodec(level=3), Crc32cCodec()]
    return [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]


class ArrayWriter:
    """One array of the store, appended to from its start to its end.

    Whole shards are written, each once: a shard that is written in parts is read and compressed again for every part.

    Parameters
    ----------
    group, name
        Where the array goes.
    shape, dtype
        What it will hold in the end; ``str`` for strings.
    chunk
        Rows in a chunk.
    fill_value
        What zarr gives for a chunk whose file is lost. One that no row holds shows the loss.
    """

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        *,
        chunk: int,
        fill_value: Any = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        n, width = shape[0], tuple(max(w, 1) for w in shape[1:])
        chunk = max(1, min(chunk, n))
        n_chunks = math.ceil(n / chunk)
        sharded = n_chunks > SHARD_CHUNKS
        self._step = chunk * SHARD_CHUNKS
        # an empty chunk is written, so that a chunk without a file is a lost one
        self._array = group.create_array(
            name,
            shape=tuple(shape),
            dtype=dtype,
            chunks=(chunk, *width),
            shards=(self._step, *width) if sharded else None,
            compressors=codecs(dtype),
            fill_value=fill_value,
            attributes=attributes,
            config={"write_empty_chunks": True},
        )
        self.path = f"{group.path}/{name}".lstrip("/")
        self.n_files = math.ceil(n_chunks / SHARD_CHUNKS) if sharded else n_chunks
        self._dtype = object if dtype is str else dtype
        self._parts: list[np.ndarray] = []
        self._held = 0
        self._written = 0

    def append(self, values: np.ndarray) -> None:
        """Add rows; they reach the disk in whole shards."""
        self._parts.append(np.asarray(values, dtype=self._dtype))
        self._held += len(values)
        if self._held >= self._step:
            self._flush(self._held - self._held % self._step)

    def close(self) -> None:
        """Write what is held back.

        Raises
        ------
        RuntimeError
            If fewer or more rows came than were announced.
        """
        self._flush(self._held)
        if self._written != self._array.shape[0]:
            message = f"{self.path}: {self._written} of {self._array.shape[0]} rows were written."
            raise RuntimeError(message)

    def _flush(self, n: int) -> None:
        if n == 0:
            return
        held = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
        for start in range(0, n, self._step):
            block = held[start : min(start + self._step, n)]
            self._array[self._written : self._written + len(block)] = block
            self._written += len(block)
        self._parts = [held[n:].copy()] if n < len(held) else []
        self._held -= n


class StoreWriter:
    """The groups of a store in the encoding of AnnData, which :func:`anndata.read_zarr` reads.

    Parameters
    ----------
    path
        Folder to create.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        self._root = zarr.open_group(path, mode="w-", zarr_format=3)
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self.files: dict[str, int] = {}

    def sparse_rows(self, shape: tuple[int, int], n_entries: int) -> dict[str, ArrayWriter]:
        """Writers of ``data``, ``indices`` and ``indptr`` of ``X`` in CSR format."""
        group = self._group("X", "csr_matrix", "0.1.0", shape=list(shape))
        entries, pointers = (n_entries,), (shape[0] + 1,)
        # SciPy slices matrices whose pointers and indices are of one type only
        wide = np.int64 if n_entries > np.iinfo(np.int32).max else np.int32
        return {
            "data": ArrayWriter(group, "data", entries, np.float32, chunk=CHUNK_ENTRIES, fill_value=np.nan),
            "indices": ArrayWriter(group, "indices", entries, np.int32, chunk=CHUNK_ENTRIES, fill_value=-1),
            "indptr": ArrayWriter(group, "indptr", pointers, wide, chunk=CHUNK_CELLS, fill_value=-1),
        }

    def dense_rows(self, shape: tuple[int, int]) -> ArrayWriter:
        """Writer of a dense ``X``."""
        return self._array(
            self._root, "X", shape, np.float32, chunk=max(1, CHUNK_ENTRIES // max(shape[1], 1)), fill_value=np.nan
        )

    def close(self, *writers: ArrayWriter) -> None:
        """Finish arrays and note how many files each has."""
        for writer in writers:
            writer.close()
            self.files[writer.path] = writer.n_files

    def frame(self, name: str, index: np.ndarray, columns: Sequence[str] = ()) -> None:
        """An annotation with its index; :meth:`column` adds the columns that are announced."""
        attributes = {"_index": "_index", "column-order": list(columns)}
        group = self._group(name, "dataframe", "0.2.0", **attributes)
        self._strings(group, "_index", index)

    def column(self, frame: str, name: str, values: np.ndarray | pd.Categorical) -> None:
        """One column of an annotation: numbers, Booleans or categories."""
        group = self._root.require_group(frame)
        if not isinstance(values, pd.Categorical):
            self._whole(group, name, values)
            return
        path = f"{frame}/{name}"
        group = self._group(path, "categorical", "0.2.0", ordered=bool(values.ordered))
        categories = values.categories.to_numpy()
        if categories.dtype.kind in "iuf":
            self._whole(group, "categories", categories)
        else:
            self._strings(group, "categories", categories)
        self._whole(group, "codes", np.asarray(values.codes))

    def complete(self, description: dict[str, Any]) -> None:
        """Describe the store, and then say that it is complete."""
        description = {"format": STORE_FORMAT, **description, "files": self.files}
        self._root.attrs.update({STORE_KEY: description})
        self._root.attrs.update({STORE_KEY: {**description, "complete": True}})

    def _group(self, path: str, encoding: str, version: str, **attributes: Any) -> zarr.Group:
        return self._root.create_group(
            path, attributes={"encoding-type": encoding, "encoding-version": version, **attributes}
        )

    def _array(
        self, group: zarr.Group, name: str, shape: Sequence[int], dtype: Any, *, encoding: str = "array", **options: Any
    ) -> ArrayWriter:
        attributes = {"encoding-type": encoding, "encoding-version": "0.2.0"}
        return ArrayWriter(group, name, shape, dtype, attributes=attributes, **options)

    def _whole(self, group: zarr.Group, name: str, values: np.ndarray, dtype: Any = None, **options: Any) -> None:
        writer = self._array(group, name, values.shape, dtype or values.dtype, chunk=CHUNK_CELLS, **options)
        writer.append(values)
        self.close(writer)

    def _strings(self, group: zarr.Group, name: str, values: np.ndarray) -> None:
        self._whole(group, name, np.asarray(values, dtype=object), str, encoding="string-array")


def read_description(path: str | os.PathLike) -> dict[str, Any] | None:
    """What a store says of itself; None for a folder that :func:`scgde.pp.write_populations` did not write."""
    try:
        attributes = json.loads((Path(path) / "zarr.json").read_text()).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError):
        return None
    return attributes.get(STORE_KEY)


def missing_files(path: str | os.PathLike) -> dict[str, int]:
    """Number of files that each array of a store has lost; empty if it has all.

    zarr reads a lost file as if it held fill values, without a word. Only names of files are looked at; what they hold is
    checked, by checksums, when it is read.

    Raises
    ------
    ValueError
        If the folder is not a complete store.
    """
    description = read_description(path)
    if description is None or not description.get("complete", False):
        message = (
            f"{os.fspath(path)} is not a folder that scgde.pp.write_populations wrote to its end. Write it (again)."
        )
        raise ValueError(message)
    lost = {}
    for name, n_files in description["files"].items():
        folder = Path(path) / name
        missing = n_files - _count(folder / "c", n_files) if (folder / "zarr.json").exists() else max(n_files, 1)
        if missing:
            lost[name] = missing
    return lost


def _count(folder: Path, n_files: int) -> int:
    """Files of chunks ``0 ... n_files - 1`` that are there; those of a dense array are ``i/0``."""
    try:
        with os.scandir(folder) as found:
            entries = {entry.name: entry for entry in found}
    except FileNotFoundError:
        return 0
    entries = {name: entry for name, entry in entries.items() if name.isdecimal() and int(name) < n_files}
    return sum(entry.is_file() or os.path.exists(os.path.join(entry.path, "0")) for entry in entries.values())
