"""Inputs of the population-sorted store: an AnnData in memory or a file, read in blocks of rows and column by column."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgde._constants import SCVI_PREFIX
from scgde.data._store import missing_files, read_description
from scgde.data.cells import check_finite, locate_matrix
from scgde.data.populations import check_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

ROW_WEIGHT = 4
"""Memory of a row without entries, in entries."""


class Source(ABC):
    """Cells of one input.

    Attributes
    ----------
    name
        What messages call it.
    n_obs
        Number of cells.
    var_names
        Genes; with ``obsm_key`` one name for each column.
    obs_columns
        Names of the columns of ``obs``.
    is_sparse
        Whether rows are stored as sparse ones.
    """

    name: str
    n_obs: int
    var_names: pd.Index
    obs_columns: list[str]
    is_sparse: bool

    @abstractmethod
    def column(self, name: str) -> pd.Series:
        """One column of ``obs``."""

    @abstractmethod
    def obs_names(self) -> np.ndarray:
        """Names of the cells as strings."""

    @abstractmethod
    def row_entries(self) -> np.ndarray:
        """Entries that each row takes at most, ``(n_obs,)``."""

    @abstractmethod
    def _read(self) -> AbstractContextManager[Callable[[int, int], Any]]:
        """Context in which rows ``start:stop`` are read by calling what it gives."""

    def blocks(self, expected: pd.Index, max_entries: int) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Float32 CSR blocks of consecutive rows, with the row each starts at.

        Columns are in the order of ``expected`` and sorted within rows; zeros are not stored. No block has more entries than
        ``max_entries``, unless a single row has.

        Raises
        ------
        ValueError
            If an entry is NaN, infinite or beyond float32, or is stored outside of the matrix.
        """
        columns = gene_columns(self, expected)
        ends = np.cumsum(self.row_entries().astype(np.int64) + ROW_WEIGHT)
        start = 0
        with self._read() as rows:
            while start < self.n_obs:
                room = max_entries + (ends[start - 1] if start else 0)
                stop = max(start + 1, int(np.searchsorted(ends, room, side="right")))
                yield start, self._canonical(rows(start, stop), columns, start)
                start = stop

    def _canonical(self, block: Any, columns: np.ndarray | None, start: int) -> sp.csr_matrix:
        if sp.issparse(block) and block.nnz and not (0 <= block.indices.min() <= block.indices.max() < block.shape[1]):
            message = f"{self.name}: rows from {start} on hold column indices outside of its {block.shape[1]} genes."
            raise ValueError(message)
        if block.dtype == np.float16:  # which SciPy has no sparse matrix of
            block = block.astype(np.float32)
        try:
            check_finite(block)
            block = sp.csr_matrix(block)
            block.sum_duplicates()
            if columns is not None:
                block = block[:, columns]
                block.sort_indices()
            with np.errstate(over="ignore"):
                block = block.astype(np.float32)
            check_finite(block)  # float32 ends at 3e38
        except ValueError as error:
            message = f"{self.name}, rows from {start} on: {error}"
            raise ValueError(message) from error
        block.eliminate_zeros()
        return block


class MemorySource(Source):
    """An AnnData in memory."""

    def __init__(self, adata: AnnData, name: str, layer: str | None, obsm_key: str | None) -> None:
        if adata.isbacked:
            message = (
                f"{name} is backed by a file. Pass the path {str(adata.filename)!r} itself, which is read in blocks, or "
                "`adata.to_memory()` for what was changed or selected since."
            )
            raise ValueError(message)
        self.name = name
        self._obs = adata.obs
        try:
            self._matrix = locate_matrix(adata, layer, obsm_key)
            if sp.issparse(self._matrix):
                # SciPy drops entries outside of the matrix when it takes rows
                self._matrix = self._matrix.tocsr()
                self._matrix.check_format(full_check=True)
        except (KeyError, ValueError) as error:
            message = f"{name}: {error.args[0]}"
            raise type(error)(message) from error
        self.is_sparse = sp.issparse(self._matrix)
        self.n_obs = adata.n_obs
        self.var_names = _row_names(adata.var_names, self._matrix.shape[1], obsm_key)
        self.obs_columns = _eligible(self._obs.columns)

    def column(self, name: str) -> pd.Series:
        return self._obs[name]

    def obs_names(self) -> np.ndarray:
        return self._obs.index.astype(str).to_numpy(dtype=object)

    def row_entries(self) -> np.ndarray:
        return np.diff(self._matrix.indptr) if self.is_sparse else np.full(self.n_obs, self._matrix.shape[1])

    @contextmanager
    def _read(self) -> Iterator[Callable[[int, int], Any]]:
        yield lambda start, stop: self._matrix[start:stop]  # a copy, if it is sparse, so that it may be changed


class FileSource(Source):
    """An ``.h5ad`` file or a zarr folder. It is open only while it is read, so that there may be thousands."""

    def __init__(self, path: Path, layer: str | None, obsm_key: str | None) -> None:
        self.name = str(path)
        self._path = path
        self._is_zarr = path.is_dir()
        self._check()
        self._key = "X"
        if layer is not None or obsm_key is not None:
            self._key = f"layers/{layer}" if obsm_key is None else f"obsm/{obsm_key}"
        with self._open() as root:
            from anndata.io import read_elem

            matrix = self._matrix(root)
            self.is_sparse = isinstance(matrix, _Csr)
            self.n_obs, width = matrix.shape
            self.var_names = _row_names(_names(root["var"], self.name), width, obsm_key)
            obs = root["obs"]
            self._obs: pd.DataFrame | None = None
            if "__categories" in _group(
                obs, self.name
            ):  # of anndata before 0.8: categories are apart from their column
                self._obs = read_elem(obs)
            self.obs_columns = _eligible(obs.attrs["column-order"])

    def column(self, name: str) -> pd.Series:
        from anndata.io import read_elem

        if self._obs is not None:
            return self._obs[name]
        with self._open() as root:
            return pd.Series(read_elem(root["obs"][name]))

    def obs_names(self) -> np.ndarray:
        with self._open() as root:
            return _names(root["obs"], self.name).to_numpy(dtype=object)

    def row_entries(self) -> np.ndarray:
        with self._open() as root:
            matrix = self._matrix(root)
            return np.diff(matrix.indptr) if self.is_sparse else np.full(self.n_obs, matrix.shape[1])

    @contextmanager
    def _read(self) -> Iterator[Callable[[int, int], Any]]:
        with self._open() as root:
            matrix = self._matrix(root)
            yield lambda start, stop: matrix[start:stop]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import h5py
        import zarr

        if self._is_zarr:
            yield zarr.open_group(self._path, mode="r")
        else:
            with h5py.File(self._path, "r") as root:
                yield root

    def _check(self) -> None:
        import h5py

        if not self._path.exists():
            message = f"adata: {self.name!r} does not exist."
            raise FileNotFoundError(message)
        if self._is_zarr:
            if not any((self._path / name).is_file() for name in ("zarr.json", ".zgroup")):
                message = f"adata: the folder {self.name!r} is not a zarr folder; pass .h5ad files one by one."
                raise ValueError(message)
            lost = missing_files(self._path) if read_description(self._path) is not None else {}
            if lost:
                message = f"{self.name}: files of {lost} are missing, so the folder is damaged. Write it again."
                raise ValueError(message)
        elif not h5py.is_hdf5(self._path):
            message = f"adata: {self.name!r} is neither an .h5ad file nor a zarr folder."
            raise ValueError(message)

    def _matrix(self, root: Any) -> Any:
        place, _, name = self._key.partition("/")
        if self._key not in root:
            there = (
                f"there are {sorted(root[place]) if place in root else []}" if name else "name a layer= or an obsm_key="
            )
            message = f"{self.name} has no {self._key}; {there}."
            raise KeyError(message)
        found = root[self._key]
        encoding = found.attrs.get("encoding-type", found.attrs.get("h5sparse_format", "array"))
        if encoding in ("csr_matrix", "csr"):
            return _Csr(found)
        if encoding in ("csc_matrix", "csc"):
            message = (
                f"{self.name}: {self._key} is stored by columns (CSC), of which rows cannot be read. Convert it once: "
                "`adata.X = adata.X.tocsr()`, and write it again."
            )
            raise ValueError(message)
        if encoding == "dataframe":
            from anndata.io import read_elem

            return read_elem(found).to_numpy()
        if not hasattr(found, "shape") or len(found.shape) != 2:
            message = f"{self.name}: {self._key} is encoded as {encoding!r}; it must be a CSR or dense matrix."
            raise ValueError(message)
        return found


class _Csr:
    """Rows of a CSR group on disk."""

    def __init__(self, group: Any) -> None:
        self._data, self._indices = group["data"], group["indices"]
        self.indptr = np.asarray(group["indptr"][:], dtype=np.int64)
        shape = group.attrs["shape"] if "shape" in group.attrs else group.attrs["h5sparse_shape"]
        self.shape = (int(shape[0]), int(shape[1]))

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        pointers = self.indptr[rows.start : rows.stop + 1]
        entries = slice(int(pointers[0]), int(pointers[-1]))
        shape = (len(pointers) - 1, self.shape[1])
        data = self._data[entries]
        data = data.astype(np.float32) if data.dtype == np.float16 else data
        return sp.csr_matrix((data, self._indices[entries], pointers - pointers[0]), shape=shape)


def open_sources(adata: Any, layer: str | None, obsm_key: str | None) -> list[Source]:
    """The inputs, one for each AnnData or path.

    Raises
    ------
    TypeError
        If an input is neither.
    ValueError
        If there is none, or one cannot be read by rows.
    FileNotFoundError, KeyError
        If a file, a layer or an obsm array is absent.
    """
    if layer is not None and obsm_key is not None:
        message = f"layer={layer!r} and obsm_key={obsm_key!r} are both given; rows live in one place: pass one of them."
        raise ValueError(message)
    inputs = list(adata) if isinstance(adata, list | tuple) else [adata]
    if not inputs:
        message = "adata is empty; pass an AnnData, a path, or a list of these."
        raise ValueError(message)
    sources: list[Source] = []
    for i, item in enumerate(inputs):
        if isinstance(item, AnnData):
            name = "adata" if len(inputs) == 1 else f"adata[{i}]"
            sources.append(MemorySource(item, name, layer, obsm_key))
        elif isinstance(item, str | os.PathLike):
            sources.append(FileSource(Path(item), layer, obsm_key))
        else:
            message = f"adata: {type(item).__name__} is not an AnnData, a path, or a list of these."
            raise TypeError(message)
    return sources


def gene_columns(source: Source, expected: pd.Index) -> np.ndarray | None:
    """Columns of an input in the order of ``expected``; None if they are the same already.

    Raises
    ------
    ValueError
        If genes are missing, or names are duplicated.
    """
    check_unique(source.var_names, source.name)
    if source.var_names.equals(expected):
        return None
    columns = source.var_names.get_indexer(expected)
    missing = expected[columns < 0]
    if len(missing):
        message = (
            f"{source.name} lacks {len(missing)} of {len(expected)} genes: {list(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Name the genes that all inputs have with var_names=; by default "
            "they are those of the first input."
        )
        raise ValueError(message)
    return columns


def check_unique(var_names: pd.Index, name: str) -> None:
    """Raise if genes share a name."""
    if not var_names.is_unique:
        names = list(var_names[var_names.duplicated()].unique()[:5])
        message = f"{name}: names of genes have duplicates ({names} ...); `adata.var_names_make_unique()` first."
        raise ValueError(message)


def check_columns(sources: Sequence[Source], keys: Sequence[str], columns: Sequence[str]) -> None:
    """Raise a KeyError that names the input if one lacks a key column or a column to keep."""
    for source in sources:
        if not set(keys) <= set(source.obs_columns):
            obs = pd.DataFrame({name: source.column(name).to_numpy() for name in source.obs_columns})
            try:
                check_keys(obs, keys)
            except KeyError as error:
                message = f"{source.name}: {error.args[0]}"
                raise KeyError(message) from error
        absent = [name for name in columns if name not in source.obs_columns]
        if absent:
            message = f"columns: {source.name} has no {absent} in obs; there are {source.obs_columns}."
            raise KeyError(message)


def _eligible(names: Any) -> list[str]:
    """Columns of ``obs`` that may be kept: those of a registration belong to one model."""
    return [str(name) for name in names if not str(name).startswith(SCVI_PREFIX) and str(name) != "_index"]


def _group(annotation: Any, name: str) -> Any:
    if "_index" not in annotation.attrs:
        message = f"{name} is of a version of anndata before 0.7. Read it with anndata and write it again."
        raise ValueError(message)
    return annotation


def _names(annotation: Any, name: str) -> pd.Index:
    from anndata.io import read_elem

    group = _group(annotation, name)
    return pd.Index(np.asarray(read_elem(group[group.attrs["_index"]]), dtype=object)).astype(str)


def _row_names(var_names: pd.Index, width: int, obsm_key: str | None) -> pd.Index:
    if obsm_key is None:
        return pd.Index(var_names.astype(str), dtype=object)
    return pd.Index([f"{obsm_key}_{i}" for i in range(width)], dtype=object)
