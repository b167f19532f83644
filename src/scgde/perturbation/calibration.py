"""Regions around predicted embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import f

if TYPE_CHECKING:
    from collections.abc import Sequence

PRIOR_GROUPS = 10
"""Groups left out in turn that weigh as much as the normal distribution."""


def region_level(
    error: np.ndarray, variance: np.ndarray, sampling: np.ndarray, freedom: float, ratios: np.ndarray
) -> float:
    r"""Level of the smallest region around a predicted embedding that holds the observed one.

    The region is :math:`\{z : \sum_d (z_d - \hat z_d)^2 \le q\}`. Errors are taken for normal, independent between coordinates, with a
    scale that was estimated with ``freedom`` degrees of freedom; the sum of their squares over its mean then is close to an F variable
    with numerator freedom :math:`(\sum v)^2 / \sum v^2` (Satterthwaite 1946, Biometrics Bull 2, 110-114). Effects of perturbations are not
    normal: a few are strong, most weak. The distribution of the same ratio among what was left out in turn says how far from it they
    are; the level is the mean of both, weighed by the number of those against :data:`PRIOR_GROUPS`.

    Parameters
    ----------
    error
        Observed less predicted embedding, ``(n_embedding,)``.
    variance, sampling
        Variance of the prediction, and squared standard errors of the observed embedding.
    freedom
        Degrees of freedom of ``variance``.
    ratios
        Squared errors over foreseen variances of what was left out in turn, ``(groups,)``.

    Returns
    -------
    Between 0 and 1; uniform if the variances are right.
    """
    total = variance + np.where(np.isfinite(sampling), sampling, 0.0)
    mean = float(total.sum())
    if mean <= 0:
        return 0.0 if np.square(error).sum() == 0 else 1.0
    numerator = mean**2 / float(np.square(total).sum())
    # sampling of cells has no estimated scale of its own
    denominator = freedom * (mean / max(float(variance.sum()), 1e-12)) ** 2
    ratio = float(np.square(error).sum() / mean)
    normal = float(f.cdf(ratio, numerator, denominator))
    if not len(ratios):
        return normal
    # a ratio between the i-th and the next of n is at level (i + 1/2) / (n + 1)
    empirical = ((ratios < ratio).sum() + 0.5) / (len(ratios) + 1)
    return float((len(ratios) * empirical + PRIOR_GROUPS * normal) / (len(ratios) + PRIOR_GROUPS))


def joined_freedom(variances: Sequence[np.ndarray], freedoms: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances ``(n_embedding,)``, by the sizes of its terms (Satterthwaite, as above)."""
    sizes = np.array([float(v.sum()) for v in variances])
    squares = np.square(sizes) / np.asarray(freedoms, dtype=np.float64)
    return float(sizes.sum() ** 2 / squares.sum()) if squares.sum() > 0 else float(max(freedoms))
