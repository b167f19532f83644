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
