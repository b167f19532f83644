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

    Pooled over pairs for each coordinate by the method of moments, times a factor of each pair. Guides of some targets agree and of others do
    not, so that one variance for all would be too wide for most and too narrow for some: factors are drawn towards the usual one as far as
    all are alike (Smyth 2004, Stat Appl Genet Mol Biol 3, 3).
    Controls differ less than perturbations and are looked at apart.

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
    worst = np.nanmax(variance, initial=0.0)
    variance = np.where(np.isfinite(variance), variance, worst)
    counts = np.bincount(codes, minlength=len(is_control))
    means, squares, expected, result = (np.zeros((len(counts), z.shape[1])) for _ in range(4))
    np.add.at(means, codes, z / counts[codes][:, None])
    deviation = z - means[codes]
    np.add.at(squares, codes, np.square(deviation))
    np.add.at(expected, codes, variance * (1 - 1 / counts[codes])[:, None])
    freedom = np.full(len(counts), np.inf)
    for kind in (is_control, ~is_control):
        own = np.flatnonzero(kind & (counts > 1))
        pooled = np.maximum((squares[own] - expected[own]).sum(0) / max((counts[own] - 1).sum(), 1), 0.0)
        if not pooled.sum() > 0:
            continue
        spread = np.square(np.linalg.svd(deviation[np.isin(codes, own)], compute_uv=False))
        # replicates less one, times the number of axes that they differ along
        known = (counts - 1) * spread.sum() ** 2 / np.square(spread).sum()
        # over what the pooled variance and each pair's own sampling foresee: few cells are no reason to differ
        foreseen = pooled.sum() + expected[own].sum(1) / (counts[own] - 1)
        ratio = squares[own].sum(1) / (counts[own] - 1) / foreseen
        usual, prior = usual_variance(ratio, known[own])
        factor = np.full(len(counts), usual)
        factor[own] = (prior * usual + known[own] * ratio) / (prior + known[own])
        result[kind] = factor[kind, None] * pooled
        freedom[kind] = (prior + known)[kind]
    return result, freedom


def usual_variance(values: np.ndarray, freedom: np.ndarray) -> tuple[float, float]:
    """Scale and degrees of freedom of the scaled inverse chi-squared law that variances come from.

    Parameters
    ----------
    values, freedom
        Estimated variances and their degrees of freedom, ``(n,)``.
    """
    low, high = FREEDOM_RANGE
    # identical replicates (the same cells under two labels) would be infinitely unusual
    logs = np.log(np.maximum(values, 1e-5 * np.median(values))) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = -np.inf
    if len(values) >= MIN_VARIANCES:
        excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if excess <= polygamma(1, high / 2):  # nothing says that variances differ
        return float((freedom * values).sum() / freedom.sum()), float(min(high, freedom.sum()))
    prior = low if excess > polygamma(1, low / 2) else float(brentq(lambda d: polygamma(1, d / 2) - excess, low, high))
    return float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2))), prior
