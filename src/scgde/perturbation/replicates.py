"""How much replicates of one perturbation differ."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

FREEDOM_RANGE = (0.5, 200.0)
"""Degrees of freedom that all perturbations together may count for in the variance of one."""

MIN_VARIANCES = 3
"""Pairs with replicates before it can be told how much their variances differ."""


def replicate_variance(
    z: np.ndarray, variance: np.ndarray, codes: np.ndarray, is_control: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variance between replicates beyond the sampling of their cells, of each pair of context and treatment.

    Guides of some targets agree and of others do not, so that one variance for all would be too wide for most and too narrow for some: that of a
    pair is drawn towards what is usual as far as the variances of all pairs are alike (Smyth 2004, Stat Appl Genet Mol Biol 3, 3).
    Controls differ less than perturbations and are looked at apart; how a variance is spread over coordinates is taken from all pairs.

    Parameters
    ----------
    z, variance
        Embeddings of the replicates and squared standard errors, ``(replicates, n_embedding)``.
    codes
        Pair that each replicate is of, ``(replicates,)``.
    is_control
        ``(pairs,)``.

    Returns
    -------
    Variances, ``(pairs, n_embedding)``, zeros where no pair (of controls, or of perturbations) has replicates; and the degrees of freedom
    that each is known with, ``(pairs,)``.
    """
    counts = np.bincount(codes, minlength=len(is_control))
    means, squares, expected, result = (np.zeros((len(counts), z.shape[1])) for _ in range(4))
    np.add.at(means, codes, z / counts[codes][:, None])
    deviation = z - means[codes]
    np.add.at(squares, codes, np.square(deviation))
    np.add.at(expected, codes, variance * (1 - 1 / counts[codes])[:, None])
    freedom = np.full(len(counts), np.inf)
    for kind in (is_control, ~is_control):
        own = np.flatnonzero(kind & (counts > 1))
        profile = np.maximum((squares[own] - expected[own]).sum(0), 0.0)
        if not profile.sum() > 0:
            continue
        profile /= profile.sum()
        scatter = deviation[np.isin(codes, own)]
        spread = np.square(np.linalg.svd(scatter, compute_uv=False))
        # replicates less one, times the number of axes that they differ along
        known = (counts - 1) * spread.sum() ** 2 / np.square(spread).sum()
        raw = squares[own].sum(1) / (counts[own] - 1)
        usual, prior = usual_variance(raw, known[own])
        sampling = np.zeros(len(counts))
        np.add.at(sampling, codes, variance.sum(1) / counts[codes])
        total = np.full(len(counts), usual)
        total[own] = (prior * usual + known[own] * raw) / (prior + known[own])
        result[kind] = np.maximum(total - sampling, 0.0)[kind, None] * profile
        freedom[kind] = (prior + known)[kind]
    return result, freedom


def usual_variance(values: np.ndarray, freedom: np.ndarray) -> tuple[float, float]:
    """Scale and degrees of freedom of the scaled inverse chi-squared law that variances come from.

    Parameters
    ----------
    values, freedom
        Estimated variances and their degrees of freedom, ``(n,)``.
    """
    logs = np.log(np.maximum(values, 1e-300)) - digamma(freedom / 2) + np.log(freedom / 2)
    low, high = FREEDOM_RANGE
    prior = high
    if len(values) >= MIN_VARIANCES:
        excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
        if excess > polygamma(1, low / 2):
            prior = low
        elif excess > polygamma(1, high / 2):
            prior = float(brentq(lambda d: polygamma(1, d / 2) - excess, low, high))
    return float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2))), prior
