import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ._entropic import entropic_cost
from ._validate import as_pair, check_cloud, check_weights, restore
from .sliced import safe_sqrt

# Bytes of the matrices of a batch that are held at once; each pair holds its cost, its plan and about three temporaries.
_CHUNK_BYTES = 128 * 2**20
_MATRICES = 5
# Blur as a share of the root mean squared distance from the mean.
_BLUR = 0.1
_ITERATIONS = 2000
_TOLERANCE = 1e-3


def sinkhorn_divergence(
    x: Any,
    y: Any,
    *,
    weights_x: Any = None,
    weights_y: Any = None,
    blur: float | None = None,
    n_iterations: int = _ITERATIONS,
    tolerance: float = _TOLERANCE,
    squared: bool = False,
) -> Any:
    r"""Debiased Sinkhorn divergence between weighted point clouds, on the scale of W2; one pair or a batch of pairs.

    .. math:: S_\varepsilon(x, y) = OT_\varepsilon(x, y) - \tfrac12 OT_\varepsilon(x, x)
              - \tfrac12 OT_\varepsilon(y, y), \qquad
              OT_\varepsilon(x, y) = \min_{\pi \in \Pi(a, b)} \sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert^2
              + \varepsilon \operatorname{KL}(\pi \mid a \otimes b)

    with :math:`\varepsilon = 2\,\text{blur}^2` (Feydy et al. 2019, AISTATS, equations 1 and 3, at twice their cost and
    temperature). It is zero for equal clouds, :math:`|v|^2` for a translation by :math:`v`, close to the squared W2 for a
    small blur and to that of the means for a large one, and smooth in the points. Its bias from the number of points is
    less than that of W2, the more so the larger the blur.

    Potentials are updated in the log domain, with the temperature lowered from the largest cost by a factor of four
    per update and, between updates, cheap scalings of the plan (Schmitzer 2019, SIAM J Sci Comput 41, A1443-A1481). Both
    clouds are centred first, which changes the result by the squared distance of their means and nothing else.

    Parameters
    ----------
    x, y
        Point clouds of shape ``(n, d)`` and ``(m, d)``, or batches of pairs ``(B, n, d)`` and ``(B, m, d)``, NumPy arrays
        or tensors. Computations run on the device and in the precision of tensors.
    weights_x, weights_y
        Weights of the points, of shape ``(n,)`` and ``(m,)`` or ``(B, n)`` and ``(B, m)``; each row is scaled to sum to
        one. Uniform by default. Points of weight zero do not count, so that batches of clouds of different sizes are
        padded with any finite points of weight zero.
    blur
        Distance below which differences are blurred, in the units of the points. By default a tenth of the root mean
        squared distance of the points of a pair from the means of their clouds, pair by pair.
    n_iterations, tolerance
        Iterations stop when the marginals of the plan are wrong by less than ``tolerance`` in total (of a mass of one).
        The squared divergence then is wrong by at most ``tolerance`` times the error of the potentials, which is itself
        below the largest squared distance. After ``n_iterations`` there is a warning.
    squared
        Return :math:`S_\varepsilon` itself, clipped at zero, and not its square root.

    Returns
    -------
    A float for a pair and an array ``(B,)`` for a batch; for tensors a tensor, ``()`` or ``(B,)``, through which
    gradients flow to the points with potentials and blur held fixed, by the envelope theorem. No gradient flows to
    weights, and second derivatives are not available.

    Raises
    ------
    ValueError
        If a cloud is empty or not finite, shapes do not fit, weights are not valid, or ``blur``, ``n_iterations`` or
        ``tolerance`` is not positive.

    Warns
    -----
    UserWarning
        If some pairs do not meet the tolerance; it says how many and by how much.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.random.default_rng(0).normal(size=(20, 2))
    >>> round(sinkhorn_divergence(points, points + [3.0, 4.0]), 3)
    5.0
    """
    as_tensor = isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor)
    x, y = as_pair(x, y)
    batched = x.ndim == 3
    x, y = _check_batch(x, y)
    weights_x = _check_batch_weights("weights_x", weights_x, x, batched)
    weights_y = _check_batch_weights("weights_y", weights_y, y, batched)
    check_sinkhorn(blur, n_iterations, tolerance)

    x, mean_x, variance_x = centre(x, weights_x)
    y, mean_y, variance_y = centre(y, weights_y)
    epsilon = temperature(blur, (variance_x + variance_y) / 2)
    residuals = []
    values = []
    for part in batch_slices(len(x), x.shape[1] * y.shape[1], x.element_size()):
        a, b = (x[part], weights_x[part]), (y[part], weights_y[part])
        cross, left, right = (
            entropic_cost(*first, *second, epsilon[part], n_iterations, tolerance, same=first is second)
            for first, second in ((a, b), (a, a), (b, b))
        )
        values.append(cross[0] - (left[0] + right[0]) / 2)
        residuals.append(torch.stack([cross[1], left[1], right[1]]).amax(0))
    warn_residual(torch.cat(residuals), n_iterations, tolerance)
    value = ((mean_x - mean_y).square().sum(-1) + torch.cat(values)).clamp_min(0)
    value = value if squared else safe_sqrt(value)
    value = value if batched else value[0]
    return value if as_tensor else (restore(value, False) if batched else float(value))


def pairwise_sinkhorn(
    sets: list[np.ndarray],
    others: list[np.ndarray] | None,
    *,
    blur: float | None,
    like: torch.Tensor,
    progress: bool,
) -> np.ndarray:
    """Divergences between all pairs of sets as a float64 matrix, computed in the precision and on the device of ``like``.

    All pairs have one blur, so that the self-term of a set is computed once. Pairs are ordered by size before they are
    cut into batches, which are padded to their largest sets.
    """
    from tqdm.auto import tqdm

    groups = [sets] if others is None else [sets, others]
    check_sinkhorn(blur, _ITERATIONS, _TOLERANCE)
    means = [np.stack([points.mean(axis=0) for points in group]) for group in groups]
    centred = [[p - m for p, m in zip(g, mean, strict=True)] for g, mean in zip(groups, means, strict=True)]
    if blur is None:
        total = np.mean([np.square(points).sum(axis=1).mean() for group in centred for points in group])
        # Point masses have the same transport at any blur.
        blur = _BLUR * float(total) ** 0.5 or 1.0
    sizes = [np.array([len(points) for points in group]) for group in groups]
    if others is None:
        rows, columns = np.triu_indices(len(sets), 1)
    else:
        rows, columns = (index.ravel() for index in np.indices((len(sets), len(others))))

    residuals = []

    def costs(left: list[np.ndarray], right: list[np.ndarray] | None) -> np.ndarray:
        a = _pad(left, like)
        b = a if right is None else _pad(right, like)
        epsilon = a[0].new_full((len(left),), 2 * blur**2)
        settings = _ITERATIONS, _TOLERANCE
        value, residual = entropic_cost(*a, *b, epsilon, *settings, same=right is None)
        residuals.append(residual)
        return value.double().cpu().numpy()

    selves = []
    for group, size in zip(centred, sizes, strict=True):
        value = np.zeros(len(group))
        for part in _similar_batches(size, size, like.element_size()):
            value[part] = costs([group[i] for i in part], None)
        selves.append(value)

    squared = np.zeros((len(groups[0]), len(groups[-1])))
    with tqdm(total=len(rows), desc="sinkhorn distances", unit="pair", disable=not progress) as bar:
        for part in _similar_batches(sizes[0][rows], sizes[-1][columns], like.element_size()):
            i, j = rows[part], columns[part]
            value = costs([centred[0][k] for k in i], [centred[-1][k] for k in j])
            value += np.square(means[0][i] - means[-1][j]).sum(axis=1) - (selves[0][i] + selves[-1][j]) / 2
            squared[i, j] = value
            bar.update(len(part))
    if residuals:
        warn_residual(torch.cat(residuals), _ITERATIONS, _TOLERANCE, stacklevel=4)
    distances = np.sqrt(squared.clip(min=0))
    return distances + distances.T if others is None else distances


def _similar_batches(n: np.ndarray, m: np.ndarray, itemsize: int) -> Iterator[np.ndarray]:
    """Indices of pairs of similar sizes ``n`` by ``m``, as many at once as the memory allows once they are padded."""
    order = np.lexsort((m, n))[::-1]
    start = 0
    while start < len(order):
        # In descending order the first pair has the largest rows; its columns may grow within the batch.
        stop, largest = start, 0
        while stop < len(order):
            largest = max(largest, m[order[stop]])
            if stop > start and (stop + 1 - start) * _MATRICES * n[order[start]] * largest * itemsize > _CHUNK_BYTES:
                break
            stop += 1
        yield order[start:stop]
        start = stop


def _pad(clouds: list[np.ndarray], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clouds ``(B, n, d)`` with zeros behind their points, and weights ``(B, n)``."""
    n = max(map(len, clouds))
    points, weights = np.zeros((len(clouds), n, clouds[0].shape[1])), np.zeros((len(clouds), n))
    for i, cloud in enumerate(clouds):
        points[i, : len(cloud)] = cloud
        weights[i, : len(cloud)] = 1 / len(cloud)
    return torch.as_tensor(points).to(like), torch.as_tensor(weights).to(like)


def temperature(blur: float | None, variance: torch.Tensor) -> torch.Tensor:
    """Temperatures ``(B,)`` from the blur, or from total variances ``(B,)`` where it is not given."""
    if blur is not None:
        return torch.full_like(variance, 2 * blur**2)
    epsilon = 2 * _BLUR**2 * variance.detach()
    # Point masses have the same transport at any temperature.
    return torch.where(epsilon > 0, epsilon, 1.0)


def centre(points: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centred points, with padding at the centre, means ``(B, d)`` and total variances ``(B,)``."""
    mean = (weights.unsqueeze(2) * points).sum(1)
    # Padding must not set the scale of the costs.
    points = torch.where(weights.unsqueeze(2) > 0, points - mean.unsqueeze(1), 0.0)
    return points, mean, (weights * points.square().sum(-1)).sum(1)


def batch_slices(n_pairs: int, n_entries: int, itemsize: int) -> Iterator[slice]:
    """Slices of a batch whose matrices of ``n_entries`` fit in the memory that is allowed."""
    size = max(1, _CHUNK_BYTES // (_MATRICES * n_entries * itemsize))
    for start in range(0, n_pairs, size):
        yield slice(start, start + size)


def check_sinkhorn(blur: float | None, n_iterations: int, tolerance: float) -> None:
    """Raise unless the settings of the iterations are positive."""
    if blur is not None and not 0 < blur < float("inf"):
        raise ValueError(
            f"`blur` is {blur!r}: it must be a positive length in the units of the points. Leave it out for a tenth "
            "of their spread, or use `wasserstein` for no blur."
        )
    if n_iterations < 1:
        raise ValueError(f"`n_iterations` is {n_iterations!r}: it must be at least 1. 2000 suits most pairs.")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` is {tolerance!r}: it must be positive. 1e-3 suits distances, 1e-6 gradients.")


def warn_residual(residual: torch.Tensor, n_iterations: int, tolerance: float, *, stacklevel: int = 3) -> None:
    """Warn of residuals of marginals above the tolerance."""
    missed = residual > tolerance
    if missed.any():
        warnings.warn(
            f"{int(missed.sum())} of {len(residual)} transport problems did not converge in {n_iterations} iterations: "
            f"up to {float(residual.max()):.1e} of the mass is misplaced, more than `tolerance` ({tolerance:.1e}). Raise "
            "`n_iterations`, `tolerance` or `blur`.",
            UserWarning,
            stacklevel=stacklevel,
        )


def _check_batch(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both clouds as batches ``(B, n, d)`` and ``(B, m, d)``."""
    if x.ndim == y.ndim == 2:
        x, y = x.unsqueeze(0), y.unsqueeze(0)
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y) or x.shape[2] != y.shape[2]:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)} and `y` {tuple(y.shape)}: they must be (n, d) and (m, d), or (B, n, d) and "
            "(B, m, d) for a batch of pairs. Give both the same dimension, and as many clouds on either side."
        )
    for name, points in (("x", x), ("y", y)):
        check_cloud(name, points.reshape(-1, points.shape[2]))
    return x, y


def _check_batch_weights(name: str, weights: Any, points: torch.Tensor, batched: bool) -> torch.Tensor:
    """Weights ``(B, n)`` whose rows sum to one."""
    n_batch, n = points.shape[:2]
    if weights is None:
        return points.new_full((n_batch, n), 1 / n)
    if not batched:
        rows: list[Any] = [check_weights(name, weights, n)]
    elif np.ndim(weights) != 2 or len(weights) != n_batch:
        raise ValueError(
            f"`{name}` has shape {tuple(np.shape(weights))}: a batch of {n_batch} clouds of {n} points takes weights of "
            f"shape {(n_batch, n)}. Repeat common weights for each cloud."
        )
    else:
        rows = [check_weights(f"{name}[{i}]", row, n) for i, row in enumerate(weights)]
    return torch.as_tensor(np.stack(rows)).to(points)
