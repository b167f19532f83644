import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ._validate import (
    as_pair,
    check_cloud,
    check_covariances,
    check_means,
    check_same_dimension,
    check_weights,
    restore,
    to_numpy,
)
from .gaussian import sqrtm_psd


def gaussian_barycenter(
    means: Any, covs: Any, weights: Any = None, *, n_iterations: int = 500, tolerance: float = 1e-8
) -> tuple[Any, Any]:
    r"""W2 barycenter of Gaussian laws, which is Gaussian: the minimiser of :math:`\sum_k w_k W_2^2(\cdot, P_k)`.

    Its mean is the mean of the means. Its covariance is the fixed point of

    .. math:: S \leftarrow T S T, \qquad T = \sum_k w_k S^{-1/2} \big(S^{1/2} \Sigma_k S^{1/2}\big)^{1/2} S^{-1/2},

    which pushes the present law forward by the mean of the optimal maps to all laws (Álvarez-Esteban et al. 2016, J Math
    Anal Appl 441, 744-762, theorem 4.2). Each step lowers the objective by at least the squared Bures distance between
    the iterates, so that iterations stop when that distance is small.

    Parameters
    ----------
    means, covs
        Means of shape ``(K, d)`` and covariances of shape ``(K, d, d)``. Convergence is proved if a covariance is not
        singular; inverses are pseudo-inverses, so that laws on one common subspace have a barycenter there.
    weights
        Weights of the laws, ``(K,)``, scaled to sum to one. Uniform by default.
    n_iterations, tolerance
        The iterations stop when the Bures distance between iterates is ``tolerance`` times the root of the trace of the
        covariance, with a warning after ``n_iterations``.

    Returns
    -------
    The mean ``(d,)`` and the covariance ``(d, d)``: tensors if an argument is one, else NumPy arrays. No gradient flows
    through them.

    Raises
    ------
    ValueError
        If shapes do not fit, weights are not valid, or ``n_iterations`` is below one.

    Warns
    -----
    UserWarning
        If the iterations end before the tolerance is met.

    Examples
    --------
    >>> import numpy as np
    >>> mean, cov = gaussian_barycenter(np.zeros((2, 1)), np.array([[[1.0]], [[9.0]]]))
    >>> cov.round(6)
    array([[4.]])
    """
    as_tensor = isinstance(means, torch.Tensor) or isinstance(covs, torch.Tensor)
    means, covs = as_pair(means, covs)
    check_covariances("covs", covs, "covs", covs)
    check_means("means", means, "covs", covs)
    if means.ndim != 2 or len(means) == 0 or covs.shape != (*means.shape, means.shape[-1]):
        raise ValueError(
            f"`means` has shape {tuple(means.shape)} and `covs` {tuple(covs.shape)}: they must be (laws, d) and "
            "(laws, d, d), of at least one law. Stack the laws along the first dimension."
        )
    if n_iterations < 1:
        raise ValueError(f"`n_iterations` is {n_iterations!r}: it must be at least 1. 500 is plenty for most laws.")
    weights = check_weights("weights", weights, len(means))
    weights = np.full(len(means), 1 / len(means)) if weights is None else weights
    with torch.no_grad():
        share = torch.as_tensor(weights).to(means)[:, None, None]
        mean = (share[..., 0] * means).sum(0)
        cov = (share * (covs + covs.mT) / 2).sum(0)
        for _ in range(n_iterations):
            cov, moved = _step(cov, covs, share)
            if moved <= tolerance:
                break
        else:
            warnings.warn(
                f"The barycenter moved by {moved:.1e} of its size in the last of {n_iterations} iterations, more than "
                f"`tolerance` ({tolerance:.1e}). Raise `n_iterations` or `tolerance`.",
                UserWarning,
                stacklevel=2,
            )
    return restore(mean, as_tensor), restore(cov, as_tensor)


def _step(cov: torch.Tensor, covs: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The next covariance and its Bures distance from ``cov``, relative to the root of the trace of ``cov``."""
    eigenvalues, vectors = torch.linalg.eigh(cov)
    roots = eigenvalues.clamp_min(0).sqrt()
    # Directions of no variance beyond rounding: a pseudo-inverse leaves them out.
    kept = eigenvalues > len(cov) * torch.finfo(cov.dtype).eps * eigenvalues[-1]
    inverse = torch.where(kept, 1 / torch.where(kept, roots, 1.0), 0.0)
    root, inverse_root = (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T
    mean_map = inverse_root @ (share * sqrtm_psd(root @ covs @ root)).sum(0) @ inverse_root
    # T is a gradient of a convex function, hence optimal: the distance is that of moving by T - 1, without cancellation.
    moved = (mean_map @ root - (vectors * (kept * roots)) @ vectors.T).norm()
    scale = roots.norm()
    updated = mean_map @ cov @ mean_map
    return (updated + updated.T) / 2, float(moved / scale) if scale > 0 else 0.0


def free_support_barycenter(
    clouds: Sequence[Any],
    *,
    n: int,
    weights: Any = None,
    n_iterations: int = 100,
    tolerance: float = 1e-7,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """A local W2 barycenter of point clouds on ``n`` points of equal mass, by :func:`ot.lp.free_support_barycenter`.

    Points start at ``n`` points drawn from all clouds, from each in proportion to its weight. The objective is not
    convex in the points: other seeds may find other, better points.

    Parameters
    ----------
    clouds
        Point clouds of shapes ``(n_k, d)``, NumPy arrays or tensors, whose points have equal mass.
    n
        Number of points of the barycenter.
    weights
        Weights of the clouds, scaled to sum to one. Uniform by default.
    n_iterations, tolerance
        The iterations stop when the squared displacement of all points together is below ``tolerance`` times the
        squared scale of the clouds, or after ``n_iterations``.
    seed
        Seed or generator of the points to start from.

    Returns
    -------
    The points, ``(n, d)``, in float64.

    Raises
    ------
    ValueError
        If there is no cloud, a cloud is empty, not finite or not a matrix, dimensions differ, weights are not valid or
        ``n`` is below one.

    Examples
    --------
    >>> import numpy as np
    >>> free_support_barycenter([np.zeros((3, 1)), np.ones((5, 1))], n=1)
    array([[0.5]])
    """
    import ot

    points = [to_numpy(cloud) for cloud in clouds]
    if not points:
        raise ValueError("`clouds` is empty: a barycenter needs at least one point cloud. Give a list of arrays.")
    for i, cloud in enumerate(points):
        check_cloud(f"clouds[{i}]", cloud)
        check_same_dimension("clouds[0]", points[0], f"clouds[{i}]", cloud)
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"`n` is {n!r}: it must be a positive integer. Give the number of points of the barycenter.")
    weights = check_weights("weights", weights, len(points))
    weights = np.full(len(points), 1 / len(points)) if weights is None else weights

    mass = [np.full(len(cloud), 1 / len(cloud)) for cloud in points]
    share = np.concatenate([w * m for w, m in zip(weights, mass, strict=True)])
    pooled = np.concatenate(points)
    centre = share @ pooled
    scale = float(np.sqrt(share @ np.square(pooled - centre).sum(axis=1))) or 1.0
    # Points drawn twice would share their targets for a while.
    twice = bool(n > np.count_nonzero(share))
    start = pooled[np.random.default_rng(seed).choice(len(pooled), size=n, replace=twice, p=share / share.sum())]
    found = ot.lp.free_support_barycenter(
        [(cloud - centre) / scale for cloud in points],
        mass,
        (start - centre) / scale,
        weights=weights,
        numItermax=n_iterations,
        stopThr=tolerance,
    )
    return found * scale + centre
