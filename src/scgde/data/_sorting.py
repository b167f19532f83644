"""Sorting of rows that do not fit in memory: read in the order of the inputs, written in another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scgde.data._sources import ROW_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from scgde.data._sources import Source
    from scgde.data._store import StoreWriter

BLOCK_BYTES = 64
"""Memory of an entry at most while a block is read, checked, put in order of genes and sorted."""

BUCKET_BYTES = 32
"""Memory of an entry at most while a bucket is sorted."""

MAX_ENTRIES = 200_000_000
"""Entries of a block or bucket at most, whatever the memory: the compressor takes 2 GB at a time."""


@dataclass
class Summary:
    """What all rows together are like.

    Attributes
    ----------
    n_entries
        Number of entries that are not zero.
    is_counts
        Whether all are non-negative integers.
    """

    n_entries: int = 0
    is_counts: bool = True

    def add(self, block: sp.csr_matrix) -> None:
        """Take in a block of rows."""
        self.n_entries += block.nnz
        if self.is_counts and block.nnz:
            self.is_counts = bool(block.data.min() >= 0 and (block.data == np.floor(block.data)).all())


class Buckets:
    """Temporary files, each of which takes the rows of one range of places in the sorted order.

    Parameters
    ----------
    folder
        Where they lie.
    bounds
        First place of each bucket, and the number of rows, ``(buckets + 1,)``.
    n_vars
        Columns of rows.
    """

    def __init__(self, folder: Path, bounds: np.ndarray, n_vars: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._bounds = bounds
        self._n_vars = n_vars

    def add(self, places: np.ndarray, block: sp.csr_matrix) -> None:
        """Append rows to the buckets of their places, ``(rows,)``."""
        order = np.argsort(places)
        places, block = places[order], block[order]
        cuts = np.searchsorted(places, self._bounds)
        for bucket in np.flatnonzero(np.diff(cuts)).tolist():
            rows = slice(cuts[bucket], cuts[bucket + 1])
            entries = slice(block.indptr[rows.start], block.indptr[rows.stop])
            lengths = np.diff(block.indptr[rows.start : rows.stop + 1])
            with self._path(bucket).open("ab") as file:
                for array, dtype in (
                    (places[rows], np.int64),
                    (lengths, np.int32),
                    (block.indices[entries], np.int32),
                    (block.data[entries], np.float32),
                ):
                    packed = _pack(array.astype(dtype, copy=False))
                    file.write(len(packed).to_bytes(8, "little"))
                    file.write(packed)

    def sorted_rows(self) -> Iterator[sp.csr_matrix]:
        """Rows of each bucket in order, bucket by bucket; a file is removed once it is read.

        Raises
        ------
        RuntimeError
            If rows of a bucket are not those of its range.
        """
        for bucket, (first, last) in enumerate(zip(self._bounds[:-1], self._bounds[1:], strict=True)):
            places, rows = self._load(bucket)
            order = np.argsort(places)
            if not np.array_equal(places[order], np.arange(first, last)):
                message = f"A temporary file of {self._folder} was changed by another program; write the folder again."
                raise RuntimeError(message)
            yield rows[order]

    def _path(self, bucket: int) -> Path:
        return self._folder / str(bucket)

    def _load(self, bucket: int) -> tuple[np.ndarray, sp.csr_matrix]:
        parts: tuple[list, list, list, list] = ([], [], [], [])
        path = self._path(bucket)
        with path.open("rb") as file:
            while header := file.read(8):
                for part, dtype in zip(parts, (np.int64, np.int32, np.int32, np.float32), strict=True):
                    size = int.from_bytes(header or file.read(8), "little")
                    part.append(np.frombuffer(_unpack(file.read(size)), dtype))
                    header = b""
        path.unlink()
        # each list is let go as it is joined, so that not all is there twice
        places, lengths = np.concatenate(parts[0]), np.concatenate(parts[1])
        indices = np.concatenate(parts[2])
        parts[2].clear()
        data = np.concatenate(parts[3])
        parts[3].clear()
        pointers = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
        return places, sp.csr_matrix((data, indices, pointers), shape=(len(lengths), self._n_vars))


def write_rows(
    sources: Sequence[Source],
    order: np.ndarray,
    var_names: pd.Index,
    store: StoreWriter,
    folder: Path,
    *,
    memory: int,
    progress: Callable[..., Any],
) -> Summary:
    """Write ``X``: the rows of all inputs in the given order.

    Parameters
    ----------
    sources
        Inputs.
    order
        Row of all inputs, one after the other, that comes to each place, ``(cells,)``.
    var_names
        Columns.
    store
        Where ``X`` goes.
    folder
        Where temporary files go.
    memory
        Bytes to work in, about.
    progress
        Called with a total and a description, gives a progress bar.
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    limits = [min(max(memory // size, 1), MAX_ENTRIES) for size in (BLOCK_BYTES, BUCKET_BYTES)]
    sizes = np.concatenate([source.row_entries().astype(np.int32) for source in sources])
    buckets = Buckets(folder, bucket_bounds(sizes[order], limits[1]), len(var_names))
    del sizes

    summary = Summary()
    offset = 0
    with progress(total=len(order), desc="reading") as bar:
        for source in sources:
            for start, block in source.blocks(var_names, limits[0]):
                summary.add(block)
                stop = start + block.shape[0]
                buckets.add(place[offset + start : offset + stop], block)
                bar.update(block.shape[0])
            offset += source.n_obs
    del place

    shape = (len(order), len(var_names))
    sparse = any(source.is_sparse for source in sources)
    with progress(total=len(order), desc="writing") as bar:
        for rows in _written(buckets, store, shape, summary.n_entries if sparse else None, memory):
            bar.update(rows)
    return summary


def bucket_bounds(sizes: np.ndarray, max_entries: int) -> np.ndarray:
    """First row of each bucket, and the number of rows; no bucket has more entries unless a single row has.

    ``sizes`` are the entries of the rows in sorted order.
    """
    ends = np.cumsum(sizes + np.int64(ROW_WEIGHT))
    bounds = [0]
    while bounds[-1] < len(ends):
        room = max_entries + (ends[bounds[-1] - 1] if bounds[-1] else 0)
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, room, side="right"))))
    return np.array(bounds)


def _written(
    buckets: Buckets, store: StoreWriter, shape: tuple[int, int], n_entries: int | None, memory: int
) -> Iterator[int]:
    """Write sorted rows, sparse ones if the number of entries is given, and yield how many at a time."""
    if n_entries is None:
        dense = store.dense_rows(shape)
        step = max(1, memory // (16 * max(shape[1], 1)))
        for rows in buckets.sorted_rows():
            for start in range(0, rows.shape[0], step):
                block = rows[start : start + step].toarray()
                dense.append(block)
                yield len(block)
        store.close(dense)
        return
    arrays = store.sparse_rows(shape, n_entries)
    arrays["indptr"].append(np.zeros(1, np.int64))
    done = 0
    for rows in buckets.sorted_rows():
        arrays["data"].append(rows.data)
        arrays["indices"].append(rows.indices)
        arrays["indptr"].append(rows.indptr[1:].astype(np.int64) + done)
        done += rows.nnz
        yield rows.shape[0]
    store.close(*arrays.values())


def _pack(array: np.ndarray) -> bytes:
    from numcodecs import blosc

    # an empty buffer cannot be compressed
    return bytes(blosc.compress(np.ascontiguousarray(array), b"lz4", 1, blosc.SHUFFLE)) if array.size else b""


def _unpack(packed: bytes) -> bytes:
    from numcodecs import blosc

    return bytes(blosc.decompress(packed)) if packed else b""
