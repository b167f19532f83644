"""The cells of one AnnData, as arrays that models read."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scgde._constants import UNASSIGNED_CODE
from scgde._sparse import dense_to_csr, to_csr
from scgde.data.populations import as_label, encode_labels, population_labels
from scgde.data.streaming import StreamedCells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from torch import Tensor

logger = logging.getLogger(__name__)

UNSEEN_BATCH = -1
"""Batch code of a query cell whose batch the model has not seen."""


@dataclass
class CellTable:
    """Rows, population codes and covariates of the cells of one AnnData, genes in the order of the model.

    Attributes
    ----------
    matrix
        Rows of all cells, ``(cells, n_vars)``, CSR or dense; a view of the user's array where that is possible.
    codes
        Population code of each cell, -1 for cells in no population.
    labels
        Label of each code.
    batch
        Batch codes; -1 for a batch the model has not seen.
    categorical, continuous
        Covariates, ``(cells, n)``.
    size_factor
        Size factors ``(cells,)``, or None when library sizes are observed.
    obs
        Annotation of the cells.
    """

    matrix: np.ndarray | sp.csr_matrix
    codes: np.ndarray
    labels: list[str]
    batch: np.ndarray
    categorical: np.ndarray
    continuous: np.ndarray
    size_factor: np.ndarray | None
    obs: pd.DataFrame
    var_names: pd.Index = field(default_factory=lambda: pd.Index([]))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.codes)

    @property
    def columns(self) -> list[str]:
        """Columns of the annotation of the cells."""
        return [str(c) for c in self.obs.columns]

    def column(self, key: str) -> pd.Series:
        """A column of the annotation of the cells."""
        return self.obs[key]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Dense float32 rows of the given cells."""
        return dense_rows(self.matrix[indices])

    def tensor(self, indices: np.ndarray, *, sparse: bool) -> Tensor:
        """Float32 rows of the given cells as a tensor, dense or, whatever the matrix is, CSR without stored zeros."""
        return as_tensor(self.matrix[indices], sparse=sparse)

    def sample(self, indices: np.ndarray, limit: int, seed: int) -> np.ndarray:
        """At most ``limit`` of the indices, drawn at random, in order."""
        if len(indices) <= limit:
            return indices
        return np.sort(np.random.default_rng(seed).choice(indices, limit, replace=False))

    def library(self, indices: np.ndarray, gain: float) -> np.ndarray:
        """Library sizes of cells, ``(len(indices),)``: total counts, or size factors times ``gain``."""
        if self.size_factor is not None:
            return (self.size_factor[indices] * gain).astype(np.float32)
        return self.totals(indices)

    def totals(self, indices: np.ndarray) -> np.ndarray:
        """Total counts of cells, ``(len(indices),)``."""
        blocks = np.array_split(indices, len(indices) // 1000 + 1)
        sums = [np.asarray(self.matrix[block].sum(axis=1, dtype=np.float64)).reshape(-1) for block in blocks]
        return np.concatenate(sums).astype(np.float32)


def dense_rows(block: Any) -> np.ndarray:
    """Rows of a matrix, sparse or not, as a dense float32 array."""
    block = block.toarray() if sp.issparse(block) else np.asarray(block)
    return np.ascontiguousarray(block, dtype=np.float32)


def as_tensor(block: Any, *, sparse: bool) -> Tensor:
    """Rows of a matrix as a float32 tensor, dense or, whatever the matrix is, CSR without stored zeros."""
    if sparse and sp.issparse(block):
        return to_csr(sp.csr_matrix(block))
    rows = torch.from_numpy(dense_rows(block))
    return dense_to_csr(rows) if sparse else rows


def cell_table(adata: AnnData | StreamedCells, registry: dict) -> CellTable:
    """Read an AnnData, or cells on disk, as the registry of a model demands; nothing is written to it.

    Genes are matched by name: reordered ones are put in order, extra ones dropped.

    Raises
    ------
    ValueError
        If genes are missing, names are duplicated, a covariate category is unknown, or rows are not finite.
    KeyError
        If a registered column, layer or array is absent.
    """
    if isinstance(adata, StreamedCells):
        from scgde.data.streamed_table import StreamedTable

        return StreamedTable(adata, registry)
    args = registry["setup_args"]
    state = {name: entry["state_registry"] for name, entry in registry["field_registries"].items()}
    matrix = locate_matrix(adata, args["layer"], args["obsm_key"])
    if args["obsm_key"] is None:
        expected = pd.Index(np.asarray(state["X"]["column_names"], dtype=object))
        columns = match_genes(adata.var_names, expected)
        if columns is not None:
            matrix = matrix[:, columns]
    else:
        expected = pd.Index([f"{args['obsm_key']}_{i}" for i in range(state["X"]["n_vars"])])
        if matrix.shape[1] != len(expected):
            message = (
                f"obsm[{args['obsm_key']!r}] has {matrix.shape[1]} columns and the model was set up with "
                f"{len(expected)}. Compute it in the same way for both."
            )
            raise ValueError(message)
    if sp.issparse(matrix):
        matrix = _with_one_index_type(matrix.tocsr())
    check_finite(matrix)

    field_state = state["population"]
    labels = population_labels(adata.obs, field_state["keys"], field_state["unassigned"])
    codes, names = encode_labels(labels, field_state["categorical_mapping"])
    batch, categorical, continuous, size_factor = read_covariates(adata, registry)
    return CellTable(
        matrix=matrix,
        codes=codes,
        labels=names,
        batch=batch,
        categorical=categorical,
        continuous=continuous,
        size_factor=size_factor,
        obs=adata.obs,
        var_names=expected,
    )


def _with_one_index_type(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same entries with pointers and indices of one type: SciPy copies all of them whenever rows are taken from others."""
    if matrix.indptr.dtype == matrix.indices.dtype:
        return matrix
    wide = np.int64 if matrix.nnz > np.iinfo(np.int32).max else np.int32
    same = sp.csr_matrix(matrix.shape, dtype=matrix.dtype)
    same.data = matrix.data
    same.indices, same.indptr = (a.astype(wide, copy=False) for a in (matrix.indices, matrix.indptr))
    return same


def read_covariates(
    adata: AnnData | StreamedCells, registry: dict
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Batch codes ``(cells,)``, categorical and continuous covariates ``(cells, n)``, and size factors or None."""
    args = registry["setup_args"]
    state = {name: entry["state_registry"] for name, entry in registry["field_registries"].items()}
    batch = np.zeros(adata.n_obs, dtype=np.int64)
    if args["batch_key"] is not None:
        batch = _batch_codes(adata, args["batch_key"], state["batch"]["categorical_mapping"])
    categorical = [
        _category_codes(adata, key, state["extra_categorical_covs"]["mappings"][key])
        for key in args["categorical_covariate_keys"] or []
    ]
    continuous = [numeric_column(adata, key) for key in args["continuous_covariate_keys"] or []]
    size_factor = None
    if args["size_factor_key"] is not None:
        size_factor = numeric_column(adata, args["size_factor_key"])
        if (size_factor <= 0).any():
            message = f"size_factor_key={args['size_factor_key']!r} holds values that are not positive."
            raise ValueError(message)
    n = adata.n_obs
    return batch, _columns(categorical, n, np.int64), _columns(continuous, n, np.float32), size_factor


def locate_matrix(adata: AnnData, layer: str | None, obsm_key: str | None):
    """The array that holds the rows, checked to be in memory.

    Raises
    ------
    ValueError
        If both places are given, or the AnnData is backed, a view of nothing readable, or lazy.
    KeyError
        If the layer or obsm array is absent.
    """
    if layer is not None and obsm_key is not None:
        message = f"layer={layer!r} and obsm_key={obsm_key!r} are both given; rows live in one place: pass one of them."
        raise ValueError(message)
    if adata.isbacked:
        message = (
            "adata is backed by a file on disk, which is read in file order and slowly. Load it first: "
            "`adata = adata.to_memory()`."
        )
        raise ValueError(message)
    if layer is not None:
        if layer not in adata.layers:
            message = f"layer={layer!r} is not in adata.layers; there are {sorted(adata.layers)}."
            raise KeyError(message)
        matrix, place, remedy = adata.layers[layer], f"adata.layers[{layer!r}]", f"adata.layers[{layer!r}]"
    elif obsm_key is not None:
        if obsm_key not in adata.obsm:
            message = f"obsm_key={obsm_key!r} is not in adata.obsm; there are {sorted(adata.obsm)}."
            raise KeyError(message)
        matrix, place, remedy = adata.obsm[obsm_key], f"adata.obsm[{obsm_key!r}]", f"adata.obsm[{obsm_key!r}]"
    else:
        matrix, place, remedy = adata.X, "adata.X", "adata.X"
    if matrix is None:
        message = f"{place} is empty; put the rows there or name their place with layer= or obsm_key=."
        raise ValueError(message)
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)):
        message = (
            f"{place} is a {type(matrix).__module__}.{type(matrix).__name__}, which is not in memory. Load it first: "
            f"`{remedy} = {remedy}.compute()` for a Dask array."
        )
        raise ValueError(message)
    return matrix


def match_genes(var_names: pd.Index, expected: pd.Index) -> np.ndarray | None:
    """Columns of ``var_names`` in the order of ``expected``; None if they are the same already."""
    if not var_names.is_unique:
        names = list(var_names[var_names.duplicated()].unique()[:5])
        message = (
            f"adata.var_names has duplicates ({names} ...); genes are matched by name: `adata.var_names_make_unique()`."
        )
        raise ValueError(message)
    if var_names.equals(expected):
        return None
    columns = var_names.get_indexer(expected)
    missing = expected[columns < 0]
    if len(missing):
        message = (
            f"{len(missing)} of the model's {len(expected)} genes are missing from adata.var_names: "
            f"{list(missing[:10])}{' ...' if len(missing) > 10 else ''}. Use the gene names of the training data, or fill "
            "missing genes with zeros: `GDEModel.prepare_query_anndata(adata, model)`."
        )
        raise ValueError(message)
    return columns


def _entries(matrix: Any) -> np.ndarray:
    """Stored entries of a sparse matrix, or the dense array itself."""
    return matrix.data if sp.issparse(matrix) else matrix


def check_finite(matrix: np.ndarray | sp.spmatrix) -> None:
    """Raise if any entry is NaN or infinite."""
    data = _entries(matrix)
    if data.dtype.kind not in "fiub":
        message = f"Rows have dtype {data.dtype}; they must be numbers."
        raise ValueError(message)
    # the sum is finite if all entries are, and needs no mask of the size of the data
    if data.dtype.kind == "f" and not np.isfinite(data.sum(dtype=np.float64)):
        bad = int((~np.isfinite(data)).sum())
        if bad:
            message = f"{bad} entries of the rows are NaN or infinite. Remove or impute them before setup."
            raise ValueError(message)


def check_counts(matrix: np.ndarray | sp.spmatrix, gene_likelihood: str) -> None:
    """Raise unless rows are non-negative integers."""
    data = _entries(matrix).reshape(-1)
    for start in range(0, len(data), 10_000_000):
        block = data[start : start + 10_000_000]
        if block.size == 0:
            continue
        if block.min() < 0:
            reason = f"negative values (smallest {block.min():.4g})"
        elif block.dtype.kind == "f" and (block != np.floor(block)).any():
            reason = f"values that are not integers (for example {block[block != np.floor(block)][0]:.4g})"
        else:
            continue
        message = (
            f"gene_likelihood={gene_likelihood!r} needs raw counts and the rows hold {reason}. Point layer= at the "
            "raw counts, or use gene_likelihood='normal' for continuous rows."
        )
        raise ValueError(message)


def _columns(columns: list[np.ndarray], n: int, dtype: type) -> np.ndarray:
    return np.stack(columns, axis=1).astype(dtype) if columns else np.empty((n, 0), dtype=dtype)


def _column(adata: AnnData | StreamedCells, key: str) -> pd.Series:
    if isinstance(adata, StreamedCells):
        return adata.column(key)
    if key not in adata.obs:
        message = f"{key!r} is not in adata.obs, and the model was set up with it; there are {list(adata.obs.columns)}."
        raise KeyError(message)
    return adata.obs[key]


def numeric_column(adata: AnnData | StreamedCells, key: str) -> np.ndarray:
    """Finite numbers of a column of ``obs``, ``(cells,)``.

    Raises
    ------
    ValueError
        If there are others than finite numbers.
    """
    try:
        values = pd.to_numeric(_column(adata, key)).to_numpy(dtype=np.float32)
    except (TypeError, ValueError) as error:
        message = f"obs[{key!r}] holds values that are not numbers; convert them, or name it as categorical."
        raise ValueError(message) from error
    if not np.isfinite(values).all():
        message = f"obs[{key!r}] holds missing or infinite values; fill them or drop those cells."
        raise ValueError(message)
    return values


def _codes(adata: AnnData | StreamedCells, key: str, mapping: Sequence) -> tuple[np.ndarray, list[str]]:
    lookup = {as_label(m): i for i, m in enumerate(mapping)}
    found, distinct = pd.factorize(_column(adata, key))  # missing values are -1
    names = [as_label(value) for value in distinct]
    unseen = sorted(set(names) - set(lookup))
    if (found < 0).any():
        unseen.append("missing values")
    codes = np.array([*(lookup.get(name, UNSEEN_BATCH) for name in names), UNSEEN_BATCH], dtype=np.int64)
    return codes[found], unseen


def _batch_codes(adata: AnnData | StreamedCells, key: str, mapping: Sequence) -> np.ndarray:
    codes, unseen = _codes(adata, key, mapping)
    if unseen:
        warnings.warn(
            f"obs[{key!r}] holds batches the model was not trained with: {unseen[:5]}. These cells are embedded (the "
            "encoder never sees the batch) and cannot be decoded under their own batch.",
            UserWarning,
            stacklevel=2,
        )
    return codes


def _category_codes(adata: AnnData | StreamedCells, key: str, mapping: Sequence) -> np.ndarray:
    codes, unseen = _codes(adata, key, mapping)
    if unseen:
        message = (
            f"obs[{key!r}] holds categories the model was not trained with: {unseen[:5]}; it knows {list(mapping)}."
        )
        raise ValueError(message)
    return codes


def subset_codes(table: CellTable, indices: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Cells that take part and the population codes they have: ``indices=None`` means all cells.

    Boolean masks and negative positions are accepted as NumPy does.
    """
    rows = np.arange(table.n_cells) if indices is None else np.arange(table.n_cells)[np.asarray(indices)]
    codes = table.codes if indices is None else table.codes[rows]
    if (codes != UNASSIGNED_CODE).sum() == 0:
        message = "None of the given cells is in a population."
        raise ValueError(message)
    return rows, codes
