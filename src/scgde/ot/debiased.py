from typing import Any

import numpy as np

from ._validate import check_cloud, check_same_dimension, to_numpy
from .exact import exact_cost

Halves = tuple[np.ndarray, np.ndarray]


def debiased_wasserstein(x: Any, y: Any, *, squared: bool = False, seed: int | np.random.Generator = 0) -> float:
    r"""Exact 2-Wasserstein distance between samples, less the distance that two draws of one law have.

    Each sample is split at random into halves :math:`x_1, x_2` and :math:`y_1, y_2`, and

    .. math:: D = \tfrac14 \sum_{ij} W_2^2(x_i, y_j) - \tfrac12 \big(W_2^2(x_1, x_2) + W_2^2(y_1, y_2)\big).

    All terms compare disjoint samples of half the size, so that no rate of convergence has to be assumed. For samples of
    one law and of one size the mean of ``D`` is zero, whatever the law, where that of :math:`W_2^2` is positive; for a
    translation by ``v`` it is the square of its length. Unlike sizes leave a small rest. For laws of unlike shape ``D``
    subtracts too much, since the bias of :math:`W_2^2` then is smaller than between draws of one law, and its variance
    is larger: use it to ask how far apart close populations are, not to rank distant ones.

    Parameters
    ----------
    x, y
        Samples of shape ``(n, d)`` and ``(m, d)``, of at least two points each, NumPy arrays or tensors.
    squared
        Return ``D``, which can be negative.
    seed
        Seed or generator of the splits.

    Returns
    -------
    The root of ``D``, zero where ``D`` is negative; or ``D`` if ``squared``.

    Raises
    ------
    ValueError
        If a sample has fewer than two points or is not finite or not a matrix, or if the dimensions differ.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).normal(size=(2, 40, 5))
    >>> from scgde.ot import wasserstein
    >>> wasserstein(x, y) > 1 > debiased_wasserstein(x, y)
    True
    """
    x, y = to_numpy(x), to_numpy(y)
    check_cloud("x", x)
    check_cloud("y", y)
    check_same_dimension("x", x, "y", y)
    rng = np.random.default_rng(seed)
    halves_x, halves_y = draw_halves("x", x, rng), draw_halves("y", y, rng)
    value = cross_cost(halves_x, halves_y) - (exact_cost(*halves_x) + exact_cost(*halves_y)) / 2
    return value if squared else max(value, 0.0) ** 0.5


def draw_halves(name: str, points: np.ndarray, rng: np.random.Generator) -> Halves:
    """Two disjoint random halves; of an odd number of points one is left out, for halves of equal size."""
    n = len(points) // 2
    if n == 0:
        raise ValueError(
            f"`{name}` has 1 point: a debiased distance needs two halves of at least one point. "
            "Drop sets of a single point, or leave the distance biased."
        )
    order = rng.permutation(len(points))
    return points[order[:n]], points[order[n : 2 * n]]


def cross_cost(halves_x: Halves, halves_y: Halves) -> float:
    """Mean squared distance over the four pairs of halves."""
    return sum(exact_cost(a, b) for a in halves_x for b in halves_y) / 4
