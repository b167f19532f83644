from typing import Any

import numpy as np
import torch

from ._validate import check_cloud, check_weights, to_numpy
from .exact import solve_plan
from .gaussian import pairwise_gaussian_wasserstein
from .sliced import safe_sqrt


def mixture_wasserstein(
    weights_x: Any, means_x: Any, covs_x: Any, weights_y: Any, means_y: Any, covs_y: Any, *, squared: bool = False
) -> float | torch.Tensor:
    r"""Mixture-Wasserstein distance between Gaussian mixtures: optimal transport by plans that are mixtures too.

    .. math:: MW_2^2 = \min_{\pi \in \Pi(a, b)} \sum_{kl} \pi_{kl}\, W_2^2\big(N(\mu_k, \Sigma_k), N(\nu_l, \Gamma_l)\big)

    (Delon and Desolneux 2020, SIAM J Imaging Sci 13, 936-970, section 4). It is a metric between Gaussian mixtures. It is
    at least W2, and at most :math:`W_2 + 2 (\sum_k a_k \operatorname{tr} \Sigma_k)^{1/2} + 2 (\sum_l b_l
    \operatorname{tr} \Gamma_l)^{1/2}`, by the triangle inequality over the mixtures of point masses at the means.

    Parameters
    ----------
    weights_x, weights_y
        Weights of the components, of shape ``(K,)`` and ``(L,)``; they are scaled to sum to one. None means uniform.
    means_x, means_y
        Means of shape ``(K, d)`` and ``(L, d)``.
    covs_x, covs_y
        Covariances of shape ``(K, d, d)`` and ``(L, d, d)``; zero for point masses.
    squared
        Return the squared distance.

    Returns
    -------
    A float; for tensors of means or covariances a 0-d tensor, through which gradients flow to the means and covariances
    with the plan held fixed (the envelope theorem), not to the weights.

    Raises
    ------
    ValueError
        If shapes do not fit or weights are not valid.
    RuntimeError
        If the solver stops before it has found the optimal plan.

    Examples
    --------
    >>> import numpy as np
    >>> means, covs = np.array([[0.0], [10.0]]), np.ones((2, 1, 1))
    >>> mixture_wasserstein([0.5, 0.5], means, covs, [0.5, 0.5], means + 3, covs)
    3.0
    """
    as_tensor = any(isinstance(value, torch.Tensor) for value in (means_x, covs_x, means_y, covs_y))
    distances = pairwise_gaussian_wasserstein(means_x, covs_x, means_y, covs_y)
    weights_x = check_weights("weights_x", weights_x, distances.shape[0])
    weights_y = check_weights("weights_y", weights_y, distances.shape[1])
    cost = torch.as_tensor(distances).square()
    rows, columns, mass = solve_plan(to_numpy(cost), weights_x, weights_y)
    value = (torch.as_tensor(mass).to(cost) * cost[torch.as_tensor(rows), torch.as_tensor(columns)]).sum()
    value = value if squared else safe_sqrt(value)
    return value if as_tensor else float(value)


def fit_gaussian_mixture(
    x: Any,
    n_components: int,
    *,
    means_init: Any = None,
    weights_init: Any = None,
    covs_init: Any = None,
    regularization: float = 1e-6,
    n_iterations: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian mixture of a point cloud by :class:`sklearn.mixture.GaussianMixture`, for :func:`mixture_wasserstein`.

    Parameters
    ----------
    x
        Points of shape ``(n, d)``.
    n_components
        Number of components, at most ``n``.
    means_init, weights_init, covs_init
        Values to start from, ``(K, d)``, ``(K,)`` and ``(K, d, d)``; those of k-means where not given. Starting all
        populations from one common mixture keeps their components comparable.
    regularization
        Added to the variances, as a share of the mean variance of the points.
    n_iterations
        Limit of the iterations; scikit-learn warns when it is met.
    seed
        Seed of k-means.

    Returns
    -------
    Weights ``(K,)``, means ``(K, d)`` and covariances ``(K, d, d)``, in the order in which
    :func:`mixture_wasserstein` takes them.

    Raises
    ------
    ValueError
        If the cloud is empty, not finite or not a matrix, or has fewer points than components.

    Examples
    --------
    >>> import numpy as np
    >>> weights, means, covs = fit_gaussian_mixture(np.array([[0.0], [0.2], [9.8], [10.0]]), 2, means_init=[[0], [10]])
    >>> weights.round(2), means.round(2).ravel()
    (array([0.5, 0.5]), array([0.1, 9.9]))
    """
    from sklearn.mixture import GaussianMixture

    x = to_numpy(x)
    check_cloud("x", x)
    if (
        isinstance(n_components, bool)
        or not isinstance(n_components, int | np.integer)
        or not 1 <= n_components <= len(x)
    ):
        raise ValueError(
            f"`n_components` is {n_components!r}: it must be an integer from 1 to the number of points ({len(x)}). "
            "Use fewer components for small populations."
        )
    # scikit-learn's terms are absolute: standardising by one number makes the fit independent of units.
    centre, scale = x.mean(axis=0), float(np.sqrt(x.var(axis=0).mean())) or 1.0
    model = GaussianMixture(
        n_components,
        means_init=None if means_init is None else (to_numpy(means_init) - centre) / scale,
        weights_init=None if weights_init is None else check_weights("weights_init", weights_init, n_components),
        precisions_init=None if covs_init is None else np.linalg.inv(to_numpy(covs_init) / scale**2),
        reg_covar=regularization,
        max_iter=n_iterations,
        random_state=seed,
    ).fit((x - centre) / scale)
    return model.weights_, model.means_ * scale + centre, model.covariances_ * scale**2
