"""How close predicted cells are to real ones. Pure functions on arrays of log-normalised expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist, pdist
from scipy.stats import pearsonr, ranksums

from scgde import ot
from scgde.components import log_normalised
from scgde.uncertainty import adjust_p_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "differential_genes",
    "differential_overlap",
    "discrimination_score",
    "energy_distance",
    "log_normalise",
    "mmd",
    "mse_delta",
    "pearson_delta",
    "r2_delta",
    "wasserstein",
]

MAX_CELLS = 2000
"""Cells of each side of a distance between samples; more are thinned evenly."""

TARGET = 10_000.0
"""Total to which cells are scaled before the logarithm, as in scanpy's tutorials."""


def log_normalise(counts: ArrayLike, target: float = TARGET) -> np.ndarray:
    """log(1 + counts scaled to a common total), ``(cells, genes)`` in double precision; cells without counts stay zero."""
    x = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    return log_normalised(x.astype(np.float64), target)


def energy_distance(x: ArrayLike, y: ArrayLike, *, unbiased: bool = True) -> float:
    r"""E-distance :math:`2 E|x - y| - E|x - x'| - E|y - y'|` between two samples, ``(cells, features)`` each.

    Pertpy's ``edistance`` and cell-eval's take the means within a sample over all pairs, a cell with itself included, which makes
    small samples look far apart (``unbiased=False``). Without these pairs it is unbiased, and negative by chance where laws agree.
    (Szekely and Rizzo 2013, J Stat Plan Inference 143, 1249-1272.)

    Raises
    ------
    ValueError
        If a sample has one cell and ``unbiased`` is asked for, or features differ.
    """
    x, y = _pair(x, y, 2 if unbiased else 1)
    within = 0.0
    for z in (x, y):
        pairs = len(z) * (len(z) - 1) / 2 if unbiased else len(z) ** 2 / 2
        within += float(pdist(z).sum()) / pairs
    return float(2 * cdist(x, y).mean() - within)


def mmd(x: ArrayLike, y: ArrayLike, *, kernel: str = "rbf", gamma: float | None = None, unbiased: bool = True) -> float:
    r"""Squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13, 723-773, lemma 6).

    Parameters
    ----------
    x, y
        Samples, ``(cells, features)``.
    kernel
        ``"rbf"``: :math:`\exp(-\gamma |a - b|^2)`; ``"linear"``: inner product (pertpy's default), which compares means alone.
    gamma
        By default one over the median squared distance between the samples.
    unbiased
        Leave out pairs of a cell with itself; pertpy's ``mmd`` does not.
    """
    x, y = _pair(x, y, 2 if unbiased else 1)
    if kernel not in ("rbf", "linear"):
        message = f"kernel={kernel!r} must be 'rbf' or 'linear'."
        raise ValueError(message)
    if kernel == "rbf":
        between = cdist(x, y, "sqeuclidean")
        gamma = 1 / max(float(np.median(between)), 1e-12) if gamma is None else gamma
        grams = [np.exp(-gamma * cdist(a, a, "sqeuclidean")) for a in (x, y)]
        cross = np.exp(-gamma * between)
    else:
        grams, cross = [a @ a.T for a in (x, y)], x @ y.T
    within = 0.0
    for gram in grams:
        n = len(gram)
        within += (gram.sum() - np.trace(gram)) / (n * (n - 1)) if unbiased else gram.mean()
    return float(within - 2 * cross.mean())


def wasserstein(x: ArrayLike, y: ArrayLike) -> float:
    """Exact 2-Wasserstein distance between two samples, ``(cells, features)`` each; biased upwards for few cells."""
    x, y = _pair(x, y, 1)
    return float(ot.wasserstein(x[:: -(-len(x) // 500)], y[:: -(-len(y) // 500)]))


def pearson_delta(predicted: ArrayLike, real: ArrayLike) -> float:
    """Correlation over genes of predicted and real changes of the mean, ``(genes,)`` each; NaN if one does not vary."""
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(real, dtype=np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(pearsonr(a, b)[0])


def r2_delta(predicted: ArrayLike, real: ArrayLike) -> float:
    """Coefficient of determination of changes, 1 - SSE / SST; negative if worse than their mean over genes."""
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(real, dtype=np.float64)
    total = np.square(b - b.mean()).sum()
    return float(1 - np.square(a - b).sum() / total) if total > 0 else float("nan")


def mse_delta(predicted: ArrayLike, real: ArrayLike) -> float:
    """Mean squared error of changes of the mean over genes."""
    return float(np.square(np.asarray(predicted) - np.asarray(real)).mean())


def discrimination_score(
    predicted: ArrayLike, real: ArrayLike, metric: str = "cityblock", exclude: list[int | None] | None = None
) -> np.ndarray:
    """Perturbation discrimination score of each perturbation, ``(perturbations,)``: cell-eval's ``discrimination_score_l1``.

    One less the rank of the true change among all real ones by distance to the predicted change, over their number: 1 if the
    nearest real change is the true one, (n + 1) / 2n on average by chance with n perturbations.

    Parameters
    ----------
    predicted, real
        Changes of the mean, ``(perturbations, genes)``, in one order.
    metric
        Distance of :func:`scipy.spatial.distance.cdist`.
    exclude
        Column of each perturbation's own target gene, which is left out (None: nothing to leave out).
    """
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(real, dtype=np.float64)
    scores = np.empty(len(a))
    for i in range(len(a)):
        keep = np.ones(a.shape[1], dtype=bool)
        if exclude is not None and exclude[i] is not None:
            keep[exclude[i]] = False
        distance = cdist(b[:, keep], a[i : i + 1, keep], metric)[:, 0]
        rank = int(np.flatnonzero(np.argsort(distance) == i)[0])
        scores[i] = 1 - rank / len(a)
    return scores


def differential_genes(treated: ArrayLike, control: ArrayLike, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Genes that differ by the rank-sum test at a false discovery rate ``alpha``, and changes of the mean, each ``(genes,)``."""
    a, b = np.asarray(treated, dtype=np.float64), np.asarray(control, dtype=np.float64)
    delta = a.mean(0) - b.mean(0)
    p = np.asarray(ranksums(a, b, axis=0).pvalue)
    return np.asarray(adjust_p_values(np.where(np.isfinite(p), p, 1.0), "fdr_bh")) < alpha, delta


def differential_overlap(predicted: np.ndarray, real: np.ndarray, control: np.ndarray) -> tuple[float, float]:
    """Overlap and direction of differential genes; cell-eval's ``overlap_at_N`` and ``de_direction_match``.

    Parameters
    ----------
    predicted, real, control
        Log-normalised cells, ``(cells, genes)``.

    Returns
    -------
    The share of the N differential genes of the real cells that are among the N with the largest change of those that differ in
    the prediction, and the share of them whose predicted change has the real sign. NaN if no gene differs.
    """
    significant, delta = differential_genes(real, control)
    n = int(significant.sum())
    if n == 0:
        return float("nan"), float("nan")
    found, change = differential_genes(predicted, control)
    truth = set(np.flatnonzero(significant)[np.argsort(-np.abs(delta[significant]), kind="stable")])
    ranked = np.flatnonzero(found)[np.argsort(-np.abs(change[found]), kind="stable")][:n]
    direction = float((np.sign(change[significant]) == np.sign(delta[significant])).mean())
    return len(truth & set(ranked)) / n, direction


def _pair(x: ArrayLike, y: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        message = f"samples have shapes {a.shape} and {b.shape}; both must be cells x the same features."
        raise ValueError(message)
    if min(len(a), len(b)) < least:
        message = f"samples have {len(a)} and {len(b)} cells; at least {least} are needed."
        raise ValueError(message)
    # evenly over the order of cells, so that the same cells are used for every method
    return a[:: -(-len(a) // MAX_CELLS)], b[:: -(-len(b) // MAX_CELLS)]
