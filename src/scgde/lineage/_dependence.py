"""Local information under two models of dependence: normal laws, and classes of either side."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import digamma, polygamma
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

MAX_CLASSES = 12
"""Classes of one side at most."""

PER_CLASS = 10
"""Clones that a class must have on average."""

STRONG_EVIDENCE = 10.0
"""Difference of the Bayesian information criterion that counts as very strong (Kass and Raftery 1995, J Am Stat Assoc 90, 773-795)."""


class NormalDependence:
    r"""Information of jointly normal vectors, from their canonical correlations :math:`\rho_i`.

    .. math:: I = -\tfrac{1}{2} \sum_i \log_2 (1 - \rho_i^2).

    Of normal vectors the expected excess of the estimate hangs on numbers of clones and dimensions only, since the expected log-determinant of a Wishart matrix is
    that of its scale and a constant. The mean over permutations is the same excess, and the difference is unbiased in any number of dimensions, without
    a choice of directions.

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(n, e)``. Of each, at most ``n // 4`` leading principal components count.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = (_orthonormal(v, len(x) // 4) for v in (x, y))

    def local(self, order: np.ndarray) -> np.ndarray:
        """Log density ratio of each pair in bits, ``(n,)``, with row ``order[i]`` of ``y`` at row ``i`` of ``x``."""
        y = self.y[order]
        left, rho, right = np.linalg.svd(self.x.T @ y, full_matrices=False)
        rho = np.minimum(rho, 1 - 1e-9)
        a, b = (np.sqrt(len(y)) * v for v in (self.x @ left, y @ right.T))
        excess = (rho * (a * a + b * b) - 2 * a * b) @ (rho / (1 - rho**2))
        return -(np.log(1 - rho**2).sum() + excess) / (2 * np.log(2))

    @property
    def chance(self) -> tuple[float, float]:
        r"""Mean and standard deviation of the estimate in bits for independent normal vectors.

        :math:`\prod_i (1 - \rho_i^2)` is then Wilks' statistic, a product of independent beta variables (Anderson 2003, An Introduction to Multivariate
        Statistical Analysis, theorem 8.4.1).
        """
        n, (d, e) = len(self.x), sorted((self.x.shape[1], self.y.shape[1]))
        a, b = (n - e - np.arange(1, d + 1)) / 2, (n - np.arange(1, d + 1)) / 2
        mean = (digamma(b) - digamma(a)).sum() / 2
        variance = (polygamma(1, a) - polygamma(1, b)).sum() / 4
        return float(mean / np.log(2)), float(np.sqrt(variance) / np.log(2))


def _orthonormal(v: np.ndarray, most: int) -> np.ndarray:
    left, size, _ = np.linalg.svd(v - v.mean(0), full_matrices=False)
    return left[:, : min(most, int((size > 1e-5 * size[0]).sum()))]


def find_classes(v: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Classes of the rows of one side, as a mixture of normal laws of equal covariance.

    Parameters
    ----------
    v
        ``(n, d)``.
    seed
        Seed of the starts.

    Returns
    -------
    Probabilities of classes ``(n, n_classes)``, their number chosen by the Bayesian information criterion, and the gain in that criterion over
    a single class.
    """
    best: tuple[float, np.ndarray] | None = None
    single = 0.0
    chosen = 1
    for n_classes in range(1, min(MAX_CLASSES, max(len(v) // PER_CLASS, 1)) + 1):
        mixture = GaussianMixture(n_classes, covariance_type="tied", max_iter=60, random_state=seed)
        with warnings.catch_warnings():
            # more steps would not change the number of classes
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(v)
        criterion = mixture.bic(v)
        if best is None or criterion < best[0]:
            best, chosen = (criterion, mixture.predict_proba(v)), n_classes
            single = criterion if n_classes == 1 else single
        elif n_classes > chosen + 2:
            break
    assert best is not None
    return best[1], single - best[0]


def class_information(x: np.ndarray, y: np.ndarray, n_steps: int = 200, tolerance: float = 1e-5) -> np.ndarray:
    r"""Local information in bits of pairs whose dependence is one of classes.

    .. math:: i_j = \log_2 \sum_{kl} P_{kl} \frac{x_{jk}}{p_k} \frac{y_{jl}}{q_l}

    with the joint probabilities of classes ``P`` of largest likelihood, found by expectation and maximisation.

    Parameters
    ----------
    x, y
        Probabilities of classes of each side, ``(n, K)`` and ``(n, L)``, with means ``p`` and ``q``.
    n_steps, tolerance
        Steps at most, and the gain in mean bits below which they end.
    """
    p, q = x.mean(0), y.mean(0)
    x, y = x / p, y / q
    joint = np.outer(p, q)
    before = -np.inf
    for _ in range(n_steps):
        ratio = np.maximum(((x @ joint) * y).sum(1), 1e-300)
        value = float(np.log2(ratio).mean())
        if value - before < tolerance:
            break
        before = value
        joint *= (x / ratio[:, None]).T @ y / len(x)
    return np.log2(ratio)


def class_residuals(v: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Rows less the mean of their classes, ``(n, d)``."""
    means = classes.T @ v / np.maximum(classes.sum(0), 1e-12)[:, None]
    return v - classes @ means
