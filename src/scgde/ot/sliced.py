from typing import Any

import numpy as np
import torch

from ._validate import check_cloud, check_same_dimension, check_weights, to_tensor


def sliced_wasserstein(
    x: Any,
    y: Any,
    *,
    weights_x: Any = None,
    weights_y: Any = None,
    n_projections: int = 128,
    seed: int | np.random.Generator | torch.Generator = 0,
) -> float | torch.Tensor:
    r"""Sliced 2-Wasserstein distance between two weighted point clouds, on the scale of W2.

    .. math:: SW_2(x, y) = \Big(\frac{d}{L} \sum_{l=1}^{L} W_2^2(\langle\theta_l, x\rangle,
              \langle\theta_l, y\rangle)\Big)^{1/2}

    The factor :math:`d` is absent from the usual definition (Bonneel et al. 2015, J Math Imaging Vis 51, 22-45).
    With it the value estimates W2 itself when one cloud is a translation of the other, since a unit vector keeps
    :math:`1/d` of the squared length of a shift on average. For other clouds it is a lower bound of W2 on average.
    Directions are drawn in orthogonal blocks of ``d``, so that a translation is measured without error whenever
    ``n_projections`` is a multiple of ``d``.

    Parameters
    ----------
    x, y
        Point clouds of shape ``(n, d)`` and ``(m, d)``, of any two sizes.
    weights_x, weights_y
        Weights of the points, scaled to sum to one. Uniform by default.
    n_projections
        Number of directions.
    seed
        A seed, or the generator that the directions are drawn from.

    Returns
    -------
    A float for NumPy input; for tensors a 0-d tensor through which gradients flow to the points.

    Raises
    ------
    ValueError
        If a cloud is empty, not finite or not a matrix, if the dimensions differ, or if weights are not valid.

    Examples
    --------
    >>> import numpy as np
    >>> round(sliced_wasserstein(np.zeros((3, 2)), np.full((5, 2), 3.0)) ** 2, 6)
    18.0
    """
    as_tensor = isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor)
    x, y = to_tensor(x), to_tensor(y)
    check_cloud("x", x)
    check_cloud("y", y)
    check_same_dimension("x", x, "y", y)
    weights_x = check_weights("weights_x", weights_x, len(x))
    weights_y = check_weights("weights_y", weights_y, len(y))

    directions = draw_directions(x.shape[1], n_projections, seed)
    x_sorted, levels_x = sort_projections(x, directions, weights_x)
    y_sorted, levels_y = sort_projections(y, directions, weights_y)
    squared = x.shape[1] * quantile_cost(x_sorted, y_sorted, levels_x, levels_y).mean()
    value = safe_sqrt(squared)
    return value if as_tensor else float(value)


def draw_directions(
    n_dimensions: int, n_projections: int, seed: int | np.random.Generator | torch.Generator
) -> torch.Tensor:
    """Unit vectors of shape ``(d, L)``, each uniform on the sphere, orthogonal within blocks of ``d``."""
    if isinstance(n_projections, bool) or not isinstance(n_projections, int | np.integer) or n_projections < 1:
        raise ValueError(
            f"`n_projections` is {n_projections!r}: it must be a positive integer. 64 to 256 directions usually do."
        )
    if n_dimensions == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    n_blocks, width = -(-n_projections // n_dimensions), min(n_dimensions, n_projections)
    shape = (n_blocks, n_dimensions, width)
    if isinstance(seed, torch.Generator):
        gaussian = torch.randn(shape, generator=seed, dtype=torch.float64, device=seed.device).cpu()
    else:
        # default_rng passes a NumPy generator through.
        gaussian = torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
    frames = torch.linalg.qr(gaussian).Q
    return frames.transpose(0, 1).reshape(n_dimensions, n_blocks * width)[:, :n_projections]


def sort_projections(
    points: torch.Tensor, directions: torch.Tensor, weights: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Quantile functions ``(L, n)`` along each direction, and their levels ``(L, n)`` if the points are weighted."""
    values, order = (points @ directions.to(points)).T.sort(dim=-1)
    if weights is None:
        return values, None
    return values, torch.as_tensor(weights).to(points.device)[order].cumsum(-1)


def quantile_cost(
    x_sorted: torch.Tensor,
    y_sorted: torch.Tensor,
    levels_x: torch.Tensor | None = None,
    levels_y: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared W2 on the line from sorted values ``(L, n)`` and ``(L, m)``; returns ``(L,)``.

    ``levels`` are cumulative weights, of shape ``(L, n)`` or ``(1, n)``; ``None`` means equal weights. Both quantile
    functions are step functions, so the integral of their squared difference is a sum over the merged grid of levels.
    """
    n, m = x_sorted.shape[-1], y_sorted.shape[-1]
    if levels_x is None and levels_y is None and n == m:
        return (x_sorted - y_sorted).square().mean(-1)
    # Levels are kept in double precision: intervals between merged levels can be far below single precision.
    levels_x = _equal_levels(x_sorted) if levels_x is None else levels_x.double()
    levels_y = _equal_levels(y_sorted) if levels_y is None else levels_y.double()
    n_rows = max(len(levels_x), len(levels_y))
    levels_x, levels_y = levels_x.expand(n_rows, n).contiguous(), levels_y.expand(n_rows, m).contiguous()
    grid = torch.cat([levels_x, levels_y], dim=-1).sort(dim=-1).values
    width = torch.diff(grid, dim=-1, prepend=grid.new_zeros(n_rows, 1))
    at_x = torch.searchsorted(levels_x, grid).clamp_max(n - 1).expand(len(x_sorted), n + m)
    at_y = torch.searchsorted(levels_y, grid).clamp_max(m - 1).expand(len(y_sorted), n + m)
    difference = x_sorted.gather(-1, at_x) - y_sorted.gather(-1, at_y)
    return (width.to(difference.dtype) * difference.square()).sum(-1)


def _equal_levels(values: torch.Tensor) -> torch.Tensor:
    n = values.shape[-1]
    return (torch.arange(1, n + 1, dtype=torch.float64, device=values.device) / n)[None]


def safe_sqrt(squared: torch.Tensor) -> torch.Tensor:
    """Square root clipped at zero, whose gradient there is zero rather than infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
