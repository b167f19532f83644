"""Reductions over ragged sets: flat rows plus one integer code per row."""

import torch
from torch import Tensor


def count_segments(segment: Tensor) -> int:
    """Number of sets, taken as the largest code plus one (0 for no rows)."""
    return int(segment.max()) + 1 if segment.numel() else 0


def segment_sum(values: Tensor, segment: Tensor, n_sets: int) -> Tensor:
    """Sum of the rows of each set: ``(cells, *)`` to ``(n_sets, *)``."""
    out = values.new_zeros((n_sets, *values.shape[1:]))
    return out.index_add(0, segment, values)


def normalised_weights(segment: Tensor, n_sets: int, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights that sum to one within every set, ``(cells,)``; uniform when ``weight`` is None."""
    if weight is None:
        weight = torch.ones(segment.shape[0], dtype=dtype, device=segment.device)
    weight = weight.to(dtype)
    total = segment_sum(weight, segment, n_sets)
    # a set of total weight zero has no mean; the clamp leaves zeros there and no NaN elsewhere
    return weight / total.clamp_min(torch.finfo(dtype).tiny)[segment]


def segment_mean(values: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None = None) -> Tensor:
    """Weighted mean of the rows of each set: ``(cells, F)`` to ``(n_sets, F)``."""
    # in double precision: rounding would make a mean depend on the order and the number of copies of rows, and what is
    # computed from it (a covariance as a difference, its root) magnifies that
    w = normalised_weights(segment, n_sets, weight, torch.float64)
    return segment_sum(values.double() * w[:, None], segment, n_sets).to(values.dtype)


def pad_sets(segment: Tensor, n_sets: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions of the rows of each set in a rectangle as wide as the largest set.

    Returns
    -------
    ``index`` ``(n_sets, width)``, rows in order (0 where a set has ended), and ``present``, the same shape, False there.
    """
    n_sets = count_segments(segment) if n_sets is None else n_sets
    sizes = torch.bincount(segment, minlength=n_sets)
    order = torch.argsort(segment, stable=True)
    starts = torch.cumsum(sizes, 0) - sizes
    column = torch.arange(int(sizes.max()) if n_sets else 0, device=segment.device)
    present = column < sizes[:, None]
    index = order[(starts[:, None] + column).clamp_max(max(len(order) - 1, 0))]
    return index * present, present


MAX_PADDING = 4
"""Sets are padded to the size of the largest where that makes no more than so many times the rows."""


def gram_by_set(a: Tensor, b: Tensor, segment: Tensor, n_sets: int) -> Tensor:
    """Sum over the rows of each set of the products of ``a`` ``(cells, d)`` and ``b`` ``(cells, e)``: ``(n_sets, d, e)``.

    One product of matrices for each set, where products for each row would fill memory with ``d * e`` numbers each.
    """
    if is_even(segment, n_sets):
        index, present = pad_sets(segment, n_sets)
        left, right = (v[index].masked_fill(~present[..., None], 0) for v in (a, b))
        return left.mT @ right
    if n_sets == 0:
        return a.new_zeros((0, a.shape[1], b.shape[1]))
    return torch.stack([a[rows].mT @ b[rows] for rows in _rows_of_sets(segment, n_sets)])


def matmul_by_set(x: Tensor, matrices: Tensor, segment: Tensor) -> Tensor:
    """Each row of ``x`` ``(cells, d)`` times the matrix of its set, of ``matrices`` ``(n_sets, d, e)``: ``(cells, e)``."""
    n_sets = len(matrices)
    if len(segment) == 0:
        return x.new_zeros((0, matrices.shape[2]))
    if is_even(segment, n_sets):
        index, present = pad_sets(segment, n_sets)
        rows, products = index[present], (x[index] @ matrices)[present]
    else:
        sets = _rows_of_sets(segment, n_sets)
        rows = torch.cat(sets)
        products = torch.cat([x[own] @ m for own, m in zip(sets, matrices, strict=True)])
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows), device=rows.device)
    return products[place]


def is_even(segment: Tensor, n_sets: int) -> bool:
    """Whether the sets are of so similar sizes that padding them is cheap."""
    largest = int(torch.bincount(segment, minlength=n_sets).max()) if len(segment) else 0
    return n_sets > 0 and n_sets * largest <= MAX_PADDING * max(len(segment), 1)


def _rows_of_sets(segment: Tensor, n_sets: int) -> list[Tensor]:
    """Rows of each set."""
    sizes = torch.bincount(segment, minlength=n_sets)
    return list(torch.argsort(segment, stable=True).split(sizes.tolist()))
