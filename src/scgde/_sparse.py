"""Rows of counts as sparse tensors: what was counted, without the zeros."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import scipy.sparse as sp


class Entries(NamedTuple):
    """Entries of ``(cells, genes)`` rows that are not zero, in the order of cells.

    Attributes
    ----------
    row, col, value
        Cell, gene and value of each.
    flat
        Position of each in a matrix of that shape, laid out row by row.
    offsets
        Where each cell starts, and the end, ``(cells + 1,)``.
    """

    row: Tensor
    col: Tensor
    value: Tensor
    flat: Tensor
    offsets: Tensor

    def of(self, matrix: Tensor) -> Tensor:
        """Values of a matrix ``(cells, genes)`` at the entries."""
        return matrix.reshape(-1).index_select(0, self.flat)

    def row_sums(self, values: Tensor) -> Tensor:
        """Sum of one value for each entry over every cell, ``(cells,)``."""
        return torch.segment_reduce(values, "sum", offsets=self.offsets, unsafe=True)


def to_csr(block: sp.csr_matrix) -> Tensor:
    """A SciPy CSR block as a float32 CSR tensor, entries summed where there are several and zeros left out.

    The block is changed if it holds such entries.
    """
    block.sum_duplicates()
    block.eliminate_zeros()
    indptr, indices = (torch.from_numpy(a.astype("int64", copy=False)) for a in (block.indptr, block.indices))
    return _csr(indptr, indices, torch.from_numpy(block.data.astype("float32", copy=False)), block.shape)


def dense_to_csr(rows: Tensor) -> Tensor:
    """Dense rows as a CSR tensor."""
    found = entries(rows)
    return _csr(found.offsets, found.col, found.value, tuple(rows.shape))


def _csr(offsets: Tensor, col: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        # their interface may change, says a warning at the first one
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
        return torch.sparse_csr_tensor(offsets, col, value, size=shape, check_invariants=False)


def supports_sparse(device: torch.device) -> bool:
    """Whether CSR tensors can be used on a device."""
    return device.type in ("cpu", "cuda")


def entries(x: Tensor) -> Entries:
    """Entries of rows ``(cells, genes)``, dense or CSR without stored zeros."""
    if x.layout != torch.sparse_csr:
        row, col = x.nonzero(as_tuple=True)
        flat = row * x.shape[1] + col
        offsets = F.pad(torch.cumsum(torch.bincount(row, minlength=len(x)), 0), (1, 0))
        return Entries(row, col, x.reshape(-1).index_select(0, flat), flat, offsets)
    offsets, col = x.crow_indices(), x.col_indices()
    row = torch.repeat_interleave(torch.diff(offsets), output_size=len(col))
    return Entries(row, col, x.values(), row * x.shape[1] + col, offsets)


def row_totals(x: Tensor) -> Tensor:
    """Sums of rows ``(cells, genes)``, dense or CSR: ``(cells, 1)``."""
    if x.layout != torch.sparse_csr:
        return x.sum(dim=1, keepdim=True)
    return torch.segment_reduce(x.values(), "sum", offsets=x.crow_indices(), unsafe=True)[:, None]


def weighted_columns(found: Entries, values: Tensor, weight: Tensor) -> Tensor:
    """Product of rows, that hold ``values`` at the entries and else zeros, with ``weight`` ``(genes, k)``: ``(cells, k)``."""
    return F.embedding_bag(found.col, weight, found.offsets[:-1], mode="sum", per_sample_weights=values)
