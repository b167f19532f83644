"""Cells on disk: a zarr folder that is sorted by population and read in whole chunks."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from scgde.data._store import STORE_KEY, missing_files, read_description

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNKS_AT_ONCE = 64
"""Chunks that zarr decodes in one go."""

READ_AHEAD = 2_000_000
"""Stored entries that are read at once where cells are asked for in order."""


class DamagedStoreError(ValueError):
    """A folder of cells that is incomplete or cannot be read."""


class StreamedRows:
    """Rows of the cells of a store, read when they are asked for.

    Indexing by cells gives a CSR matrix, or an array where rows are dense. Runs of neighbouring cells are read together, and
    what is read ahead is kept for the next call, so that going through cells in order decodes every chunk once.

    Parameters
    ----------
    group
        ``X`` of a zarr folder: a CSR group or a dense array.
    path
        Folder, for messages.
    columns
        Columns in the order of the model, and None where they are in order.
    cells
        The cells from ``cells[0]`` to ``cells[1]`` only, which are then numbered from 0; pointers of others are not read.
    """

    def __init__(
        self, group: Any, path: str, columns: np.ndarray | None = None, cells: tuple[int, int] | None = None
    ) -> None:
        self.path, self.columns = path, columns
        self.is_sparse = group.attrs.get("encoding-type") == "csr_matrix"
        if self.is_sparse:
            # zarr hands every so many chunks to its event loop, one at a time by default
            with zarr.config.set({"codec_pipeline.batch_size": CHUNKS_AT_ONCE}):
                self._data, self._indices = group["data"], group["indices"]
            n_rows, self._width = (int(n) for n in group.attrs["shape"])
            self._first, last = (0, n_rows) if cells is None else cells
            self.indptr = np.asarray(group["indptr"][self._first : last + 1], dtype=np.int64)
            n_entries = self._data.shape[0]
            if (
                len(self.indptr) != last - self._first + 1
                or (self.indptr[-1] != n_entries if last == n_rows else self.indptr[-1] > n_entries)
                or (np.diff(self.indptr) < 0).any()
            ):
                message = f"{path}: the row pointers of X do not fit its entries; write the folder again."
                raise DamagedStoreError(message)
        else:
            self._data = group
            n_rows, self._width = group.shape
            self._first, last = (0, n_rows) if cells is None else cells
            self.indptr = np.empty(0, dtype=np.int64)
        self._n_rows = last - self._first
        self._ahead: tuple[int, int, Any] = (0, 0, None)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and columns."""
        return self._n_rows, self._width if self.columns is None else len(self.columns)

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries."""
        return np.dtype(self._data.dtype)

    @property
    def cells_per_entry(self) -> float:
        """Cells for each stored entry, on average."""
        per_cell = (self.indptr[-1] - self.indptr[0]) / max(self._n_rows, 1) if self.is_sparse else self._width
        return 1 / max(float(per_cell), 1.0)

    @property
    def cells_per_read(self) -> int:
        """Cells that :data:`READ_AHEAD` entries are of, about."""
        return int(min(max(READ_AHEAD * self.cells_per_entry, 1), max(self._n_rows, 1)))

    def read(self, start: int, stop: int) -> Any:
        """Rows of the cells from ``start`` to ``stop``, columns in the order of the model.

        Raises
        ------
        DamagedStoreError
            If a file of the folder is damaged.
        """
        try:
            block = self._read(start, stop)
        except Exception as error:
            message = (
                f"{self.path}: cells {start} to {stop} cannot be read ({type(error).__name__}: {error}). A file of the folder is "
                "damaged; copy or write it again."
            )
            raise DamagedStoreError(message) from error
        return block if self.columns is None else block[:, self.columns]

    def _read(self, start: int, stop: int) -> Any:
        if not self.is_sparse:
            return np.asarray(self._data[self._first + start : self._first + stop])
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        values, indices = np.asarray(self._data[first:last], dtype=np.float32), self._indices[first:last]
        # a lost file reads as NaN and -1
        if len(indices) and (indices.min() < 0 or indices.max() >= self._width or np.isnan(values.sum())):
            message = "entries that were never written"
            raise ValueError(message)
        block = sp.csr_matrix((stop - start, self._width), dtype=np.float32)
        # as they are: the constructor would look through the indices for a type that is large enough
        block.data, block.indices = values, indices
        block.indptr = (self.indptr[start : stop + 1] - first).astype(indices.dtype)
        return block

    def __getitem__(self, indices: np.ndarray) -> Any:
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        if len(indices) == 0:
            return (
                sp.csr_matrix((0, self.shape[1]), dtype=np.float32) if self.is_sparse else np.empty((0, self.shape[1]))
            )
        low, high = int(indices.min()), int(indices.max())
        start, stop, block = self._ahead
        if block is not None and start <= low and high < stop:
            return block[indices - start]
        if high - low < 2 * len(indices) and high - low < self.cells_per_read:
            stop = min(max(high + 1, low + self.cells_per_read), self._n_rows)
            self._ahead = (low, stop, self.read(low, stop))
            return self._ahead[2][indices - low]
        return self._scattered(indices)

    def _scattered(self, indices: np.ndarray) -> Any:
        """Rows of cells that lie apart, every chunk decoded once if it may be."""
        order = np.argsort(indices, kind="stable")
        wanted, limit = indices[order], self.cells_per_read
        # a run ends at a gap that holds a chunk or so, or where it is as long as one read may be
        runs, first = [], 0
        near = max(limit // 16, 1)
        for i in range(1, len(wanted) + 1):
            if i == len(wanted) or wanted[i] - wanted[i - 1] > near or wanted[i] - wanted[first] >= limit:
                runs.append((first, i))
                first = i
        blocks = [self.read(int(wanted[a]), int(wanted[b - 1]) + 1)[wanted[a:b] - wanted[a]] for a, b in runs]
        joined = sp.vstack(blocks, format="csr") if self.is_sparse else np.concatenate(blocks)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return joined[back]


class StreamedCells:
    """Cells of a zarr folder that :func:`scgde.pp.write_populations` wrote, in place of an AnnData.

    Only what a model needs of every cell is held in memory: a few codes. Rows are read when they are used.

    Parameters
    ----------
    path
        Folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    DamagedStoreError
        If the folder was not written to its end, or files of it are missing.
    """

    isbacked = False
    is_view = False

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        if not os.path.isdir(self.path):
            message = f"{self.path!r} is no folder; write it with scgde.pp.write_populations."
            raise FileNotFoundError(message)
        try:
            self._group: Any = zarr.open_group(self.path, mode="r")
        except Exception as error:
            message = f"{self.path!r} is no zarr folder; write it with scgde.pp.write_populations."
            raise DamagedStoreError(message) from error
        info: Any = self._group.attrs.get(STORE_KEY, {})
        self.info: dict[str, Any] = dict(info)
        if not self.info.get("complete"):
            message = (
                f"{self.path!r} is a zarr folder that scgde.pp.write_populations did not write, or not to its end. Write one that is "
                f"sorted by population: scgde.pp.write_populations({self.path!r}, 'sorted.zarr', population_key=...)."
            )
            raise DamagedStoreError(message)
        self._check_files()
        self.n_obs, self.n_vars = int(self.info["n_cells"]), int(self.info["n_vars"])
        self.registry: dict | None = None
        """How a model reads the cells, once :meth:`scgde.GDEModel.setup_zarr` has been called."""

    def _check_files(self) -> None:
        missing = missing_files(self.path)
        if missing:
            message = f"{self.path!r} is incomplete: files are missing of {missing}. Copy or write the folder again."
            raise DamagedStoreError(message)

    def check_unchanged(self) -> None:
        """Raise unless the folder is the one that was opened, and has all of its files.

        Raises
        ------
        DamagedStoreError
            If it was removed, damaged or written anew.
        """
        now = read_description(self.path)
        if now != self.info:
            message = f"{self.path!r} {'is gone' if now is None else 'was written anew'} since it was opened; set it up again."
            raise DamagedStoreError(message)
        self._check_files()

    def __deepcopy__(self, memo: dict) -> StreamedCells:
        return self  # it is read only

    def __repr__(self) -> str:
        return f"StreamedCells with n_obs x n_vars = {self.n_obs} x {self.n_vars} in {self.path!r}"

    def __len__(self) -> int:
        return self.n_obs

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the annotation of cells."""
        return [str(c) for c in self._group["obs"].attrs["column-order"]]

    @cached_property
    def var_names(self) -> pd.Index:
        """Names of the variables."""
        return self._index("var")

    @cached_property
    def obs_names(self) -> pd.Index:
        """Names of the cells: the one thing here that takes a hundred bytes of memory for each."""
        return self._index("obs")

    @property
    def are_counts(self) -> bool:
        """Whether rows are modelled as counts by default: whole numbers that did not come from ``obsm``."""
        return self.info["rows"] == "counts" and self.info.get("obsm_key") is None

    @property
    def names(self) -> str:
        """Digest of the names of the cells in their order, as :func:`scgde._identity.fingerprint` has it."""
        return str(self.info["names"])

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells. With their names it takes a hundred bytes or more for each: no training needs it."""
        return pd.DataFrame({key: self.column(key).array for key in self.columns}, index=self.obs_names)

    def column(self, key: str) -> pd.Series:
        """A column of the annotation.

        Raises
        ------
        KeyError
            If there is none of this name.
        """
        from anndata.io import read_elem

        if key not in self.columns:
            message = f"{key!r} is not among the columns of {self.path!r}; there are {self.columns}."
            raise KeyError(message)
        return pd.Series(read_elem(self._group["obs"][key]), index=pd.RangeIndex(self.n_obs), name=key)

    def frame(self, keys: Sequence[str]) -> pd.DataFrame:
        """Some columns of the annotation."""
        return pd.DataFrame({key: self.column(key) for key in keys}, index=pd.RangeIndex(self.n_obs))

    def rows(self, columns: np.ndarray | None = None, cells: tuple[int, int] | None = None) -> StreamedRows:
        """Rows of the cells, or of the cells from ``cells[0]`` to ``cells[1]``, their columns taken in the given order."""
        return StreamedRows(self._group["X"], self.path, columns, cells)

    def _index(self, name: str) -> pd.Index:
        from anndata.io import read_elem

        group = self._group[name]
        return pd.Index(np.asarray(read_elem(group[group.attrs["_index"]]), dtype=object).astype(str))


def as_cells(adata: Any) -> Any:
    """Cells of a folder where its path is given; anything else as it is."""
    return StreamedCells(adata) if isinstance(adata, str | os.PathLike) else adata


def in_memory(adata: Any) -> Any:
    """The AnnData of a folder, or of its path; anything else as it is."""
    adata = as_cells(adata)
    if not isinstance(adata, StreamedCells):
        return adata
    import anndata

    return anndata.read_zarr(adata.path)


def check_stored_counts(cells: StreamedCells, gene_likelihood: str) -> None:
    """Raise where a model of counts is given rows that are none; what rows are was found out when they were written."""
    if gene_likelihood != "normal" and cells.info["rows"] != "counts":
        message = (
            f"gene_likelihood={gene_likelihood!r} needs raw counts and the rows of {cells.path!r} are not. Write the folder with "
            "layer= pointing at the raw counts, or use gene_likelihood='normal' for continuous rows."
        )
        raise ValueError(message)


def population_runs(
    columns: pd.DataFrame, keys: Sequence[str], unassigned: Sequence[str], path: str
) -> tuple[np.ndarray, pd.Series]:
    """Where populations start, and their labels (missing for cells in none).

    Returns
    -------
    ``(runs + 1,)`` bounds, and a label for each run.

    Raises
    ------
    ValueError
        If cells of a population lie apart.
    """
    from scgde.data.populations import check_keys, population_labels

    check_keys(columns, keys)
    changes = np.zeros(len(columns), dtype=bool)
    if len(columns):
        changes[0] = True
    for key in keys:
        codes = pd.factorize(columns[key])[0]
        changes[1:] |= codes[1:] != codes[:-1]
    starts = np.flatnonzero(changes)
    labels = population_labels(columns.iloc[starts], keys, unassigned).reset_index(drop=True)
    again = labels.dropna()
    again = again[again.duplicated()]
    if len(again):
        message = (
            f"{path}: cells of population {again.iloc[0]!r} (and {again.nunique() - 1} others) do not lie together, so that sets cannot "
            f"be read from disk. Sort the folder by the populations you want: scgde.pp.write_populations({path!r}, 'sorted.zarr', "
            f"population_key={list(keys)})."
        )
        raise ValueError(message)
    return np.concatenate([starts, [len(columns)]]), labels
