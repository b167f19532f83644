"""Linear loadings of genes on cell scores: the closed-form start of a count decoder."""

from __future__ import annotations

import numpy as np

_GENES_PER_BLOCK = 500
_NEWTON_STEPS = 8


def fit_loadings(
    counts: np.ndarray, library: np.ndarray, scores: np.ndarray, prior_sd: float, *, overdispersed: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Regress counts on scores, gene by gene: :math:`x \sim NB(\ell\, e^{a + w^T s}, \theta)` with :math:`w \sim N(0, \sigma^2)`.

    Newton's method (iteratively reweighted least squares) for ``a`` and ``w``, and after each step the moment estimate
    of the inverse dispersion. The method of generalised linear models, as in GLM-PCA (Townes et al. 2019).

    Parameters
    ----------
    counts
        ``(cells, n_vars)``.
    library
        Library sizes, positive, ``(cells,)``.
    scores
        ``(cells, d)``.
    prior_sd
        Standard deviation of a loading.
    overdispersed
        Whether counts are negative binomial; Poisson otherwise.

    Returns
    -------
    Intercepts ``(n_vars,)``, loadings ``(n_vars, d)`` and log inverse dispersions ``(n_vars,)``.
    """
    design = np.column_stack([np.ones(len(scores)), scores]).astype(np.float64)
    p = design.shape[1]
    upper = np.triu_indices(p)
    products = design[:, upper[0]] * design[:, upper[1]]
    precision = np.diag([1e-3, *[prior_sd**-2] * (p - 1)])
    offset = np.log(library.astype(np.float64))[:, None]
    coefficients, dispersions = [], []
    for start in range(0, counts.shape[1], _GENES_PER_BLOCK):
        y = counts[:, start : start + _GENES_PER_BLOCK].astype(np.float64)
        theta = np.ones(y.shape[1]) if overdispersed else np.full(y.shape[1], np.inf)
        beta = np.zeros((p, y.shape[1]))
        beta[0] = np.log((y.sum(0) + 1e-2) / library.sum())
        for _ in range(_NEWTON_STEPS):
            mu = np.exp(np.clip(design @ beta, -30.0, 0.0) + offset)
            weight = mu / (1 + mu / theta)
            penalty = precision @ beta
            penalty[0] = 0
            gradient = design.T @ (weight * (y / mu - 1)) - penalty
            curvature = np.empty((y.shape[1], p, p))
            curvature[:, upper[0], upper[1]] = curvature[:, upper[1], upper[0]] = weight.T @ products
            step = np.linalg.solve(curvature + precision, gradient.T[:, :, None])[:, :, 0].T
            beta += np.clip(step, -1.0, 1.0)
            if overdispersed:
                excess = (np.square(y - mu) - mu).sum(0)
                theta = np.clip(np.square(mu).sum(0) / np.maximum(excess, 1e-6), 0.02, 100.0)
        coefficients.append(beta)
        dispersions.append(np.log(theta) if overdispersed else np.zeros(y.shape[1]))
    beta = np.concatenate(coefficients, axis=1)
    return beta[0], beta[1:].T.copy(), np.concatenate(dispersions)
