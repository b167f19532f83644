from typing import Any

import numpy as np
import torch

from ._validate import as_pair, check_cloud, check_covariances, check_means, check_same_dimension, restore, to_numpy
from .exact import exact_plan


def gaussian_map(mean_x: Any, cov_x: Any, mean_y: Any, cov_y: Any) -> tuple[Any, Any]:
    r"""Optimal transport map between Gaussian laws, :math:`T(u) = A u + b`.

    .. math:: A = \Sigma_x^{-1/2} \big(\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2}\big)^{1/2} \Sigma_x^{-1/2},
              \qquad b = \mu_y - A \mu_x

    (Peyré and Cuturi 2019, Computational Optimal Transport, remark 2.31). If ``cov_x`` is singular there may be no map;
    ``A`` then is that of the conditional mean :math:`E[Y \mid X]` under an optimal plan, which is the optimal map
    whenever there is one.

    Parameters
    ----------
    mean_x, mean_y
        Means of shape ``(*, d)``; leading dimensions are broadcast.
    cov_x, cov_y
        Covariance matrices of shape ``(*, d, d)``.

    Returns
    -------
    The matrices ``A``, ``(*, d, d)``, and the offsets ``b``, ``(*, d)``: tensors if an argument is one, else NumPy
    arrays. No gradient flows through them.

    Raises
    ------
    ValueError
        If means and covariances do not have the same dimension.

    Examples
    --------
    >>> import numpy as np
    >>> matrix, offset = gaussian_map(np.zeros(2), np.eye(2), np.ones(2), np.diag([4.0, 9.0]))
    >>> (matrix @ [1.0, 1.0] + offset).round(6)
    array([3., 4.])
    """
    as_tensor, mean_x, cov_x, mean_y, cov_y = _as_laws(mean_x, cov_x, mean_y, cov_y)
    with torch.no_grad():
        _, _, cross = _optimal_coupling(cov_x, cov_y)
        matrix = cross.mT @ torch.linalg.pinv(cov_x, rtol=_rank_tolerance(cov_x), hermitian=True)
        offset = mean_y - (matrix @ mean_x.unsqueeze(-1)).squeeze(-1)
    return restore(matrix, as_tensor), restore(offset, as_tensor)


def gaussian_geodesic(mean_x: Any, cov_x: Any, mean_y: Any, cov_y: Any, t: Any) -> tuple[Any, Any]:
    r"""McCann's interpolation between Gaussian laws: the laws on the W2 geodesic from ``x`` to ``y``.

    .. math:: \mu_t = (1 - t) \mu_x + t \mu_y, \qquad
              \Sigma_t = (1 - t)^2 \Sigma_x + t^2 \Sigma_y + t (1 - t) (K + K^\top)

    where :math:`K` is the cross-covariance of an optimal plan: the law of :math:`(1 - t) X + t Y` (McCann 1997, Adv Math
    128, 153-179; Takatsu 2011, Osaka J Math 48, 1005-1026). With the singular value decomposition
    :math:`\Sigma_x^{1/2} \Sigma_y^{1/2} = U S V^\top` it is :math:`K = \Sigma_x^{1/2} U V^\top \Sigma_y^{1/2}`, which
    inverts nothing. Directions of zero singular value cost the same under any plan; they are taken as independent,
    so that singular covariances, whose geodesic need not be unique, have one fixed answer.

    Parameters
    ----------
    mean_x, mean_y
        Means of shape ``(*, d)``; leading dimensions are broadcast.
    cov_x, cov_y
        Covariance matrices of shape ``(*, d, d)``.
    t
        Position between 0 (``x``) and 1 (``y``): a number or an array of any shape, whose dimensions come first in the
        result.

    Returns
    -------
    Means ``(*t, *, d)`` and covariances ``(*t, *, d, d)``: tensors if an argument is one, else NumPy arrays. No
    gradient flows through them.

    Raises
    ------
    ValueError
        If means and covariances do not have the same dimension, or ``t`` leaves [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> mean, cov = gaussian_geodesic(np.zeros(1), np.eye(1), np.ones(1), 9 * np.eye(1), t=0.5)
    >>> mean, cov
    (array([0.5]), array([[4.]]))
    """
    as_tensor, mean_x, cov_x, mean_y, cov_y = _as_laws(mean_x, cov_x, mean_y, cov_y)
    position = torch.as_tensor(_check_position(t)).to(mean_x)
    with torch.no_grad():
        cov_x, cov_y, cross = _optimal_coupling(cov_x, cov_y)
        shape = torch.broadcast_shapes(mean_x.shape[:-1], mean_y.shape[:-1], cross.shape[:-2])
        s = position.reshape(*position.shape, *(1 for _ in shape), 1)
        mean = (1 - s) * mean_x + s * mean_y
        s = s.unsqueeze(-1)
        cov = (1 - s) ** 2 * cov_x + s**2 * cov_y + s * (1 - s) * (cross + cross.mT)
    d = mean.shape[-1]
    mean = mean.expand(*position.shape, *shape, d).contiguous()
    cov = cov.expand(*position.shape, *shape, d, d).contiguous()
    return restore(mean, as_tensor), restore(cov, as_tensor)


def displacement_interpolation(
    x: Any, y: Any, t: Any, *, n: int | None = None, seed: int | np.random.Generator = 0
) -> Any:
    r"""Points on the W2 geodesic between two point clouds: :math:`(1 - t) x_i + t y_j` for pairs of an optimal plan.

    Clouds of equal size have an optimal plan that is a permutation: every point then moves along one line to its partner.
    For other sizes, or for ``n`` points, pairs are drawn from the plan in proportion to their mass by systematic
    sampling, so that a pair of mass ``p`` is drawn either ``floor(n p)`` or ``ceil(n p)`` times.

    Parameters
    ----------
    x, y
        Point clouds of shape ``(n_x, d)`` and ``(n_y, d)``.
    t
        Position between 0 (``x``) and 1 (``y``): a number or an array of any shape. All positions use the same pairs, so
        that row ``i`` is one path.
    n
        Number of points; by default that of the larger cloud.
    seed
        Seed or generator of the pairs that are drawn; not used where they are a permutation.

    Returns
    -------
    Points of shape ``(*t, n, d)``, in the order of the rows of ``x``: a tensor if ``x`` or ``y`` is one, through which
    gradients flow to the points with the plan held fixed; else a NumPy array.

    Raises
    ------
    ValueError
        If a cloud is empty, not finite or not a matrix, if the dimensions differ, ``t`` leaves [0, 1] or ``n`` is below
        one.
    RuntimeError
        If the solver stops before it has found the optimal plan.

    Examples
    --------
    >>> import numpy as np
    >>> displacement_interpolation(np.array([[0.0], [1.0]]), np.array([[5.0], [4.0]]), t=0.5)
    array([[2.],
           [3.]])
    """
    as_tensor = isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor)
    x, y = as_pair(x, y)
    check_cloud("x", x)
    check_cloud("y", y)
    check_same_dimension("x", x, "y", y)
    position = torch.as_tensor(_check_position(t)).to(x)
    if n is not None and (isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1):
        raise ValueError(f"`n` is {n!r}: it must be a positive integer. Leave it out for the size of the larger cloud.")

    rows, columns, mass = exact_plan(to_numpy(x), to_numpy(y))
    if not (len(x) == len(y) and n in (None, len(x))):
        n = max(len(x), len(y)) if n is None else n
        # The levels lie inside the unit interval, whatever the rounding of the sum of the masses.
        levels = (np.arange(n) + np.random.default_rng(seed).random()) / n
        cumulative = np.cumsum(mass)
        drawn = np.searchsorted(cumulative / cumulative[-1], levels, side="right").clip(max=len(mass) - 1)
        rows, columns = rows[drawn], columns[drawn]
    index_x, index_y = torch.as_tensor(rows, device=x.device), torch.as_tensor(columns, device=y.device)
    s = position.reshape(*position.shape, 1, 1)
    return restore((1 - s) * x[index_x] + s * y[index_y], as_tensor)


def _as_laws(
    mean_x: Any, cov_x: Any, mean_y: Any, cov_y: Any
) -> tuple[bool, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    as_tensor = any(isinstance(value, torch.Tensor) for value in (mean_x, cov_x, mean_y, cov_y))
    mean_x, mean_y = as_pair(mean_x, mean_y)
    cov_x, cov_y = as_pair(cov_x, cov_y)
    mean_x, cov_x = as_pair(mean_x, cov_x)
    mean_y, cov_y = as_pair(mean_y, cov_y)
    check_covariances("cov_x", cov_x, "cov_y", cov_y)
    check_means("mean_x", mean_x, "cov_x", cov_x)
    check_means("mean_y", mean_y, "cov_y", cov_y)
    return as_tensor, mean_x, cov_x, mean_y, cov_y


def _optimal_coupling(cov_x: torch.Tensor, cov_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The symmetric covariances and the cross-covariance ``(*, d, d)`` of an optimal plan between centred laws.

    The plan maximises the trace of the cross-covariance. Cross-covariances are ``root_x C root_y`` with a contraction
    ``C``, and the trace of ``C root_y root_x`` is largest for the polar factor of ``root_x root_y`` (von Neumann).
    """
    cov_x, cov_y = (cov_x + cov_x.mT) / 2, (cov_y + cov_y.mT) / 2
    root_x, root_y = _exact_root(cov_x), _exact_root(cov_y)
    left, singular, right = torch.linalg.svd(root_x @ root_y)
    # Relative to the roots and not to the largest singular value, which is rounding itself for orthogonal supports.
    scale = torch.linalg.matrix_norm(root_x) * torch.linalg.matrix_norm(root_y)
    # The product carries a few roundings of each root.
    kept = singular > 10 * _rank_tolerance(cov_x) * scale.unsqueeze(-1)
    return cov_x, cov_y, root_x @ (left * kept.unsqueeze(-2)) @ right @ root_y


def _exact_root(cov: torch.Tensor) -> torch.Tensor:
    """Square root without variances that are rounding, whose roots would be far above rounding."""
    eigenvalues, vectors = torch.linalg.eigh(cov)
    kept = eigenvalues > _rank_tolerance(cov) * eigenvalues[..., -1:]
    return (vectors * torch.where(kept, eigenvalues, 0.0).sqrt().unsqueeze(-2)) @ vectors.mT


def _rank_tolerance(matrix: torch.Tensor) -> float:
    return matrix.shape[-1] * torch.finfo(matrix.dtype).eps


def _check_position(t: Any) -> np.ndarray:
    t = to_numpy(t)
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(
            f"`t` ranges from {t.min()} to {t.max()}: positions on a geodesic go from 0 (the source) to 1 (the target). "
            "Swap source and target, or scale `t`."
        )
    return t
