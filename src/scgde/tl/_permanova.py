"""Tests and distances between groups of replicates, on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from math import factorial
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student_t

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_ENTRIES = 2**22
_TIE = 1e-9
"""Shares of variation in [0, 1] that differ by less are one arrangement summed in another order."""

LEAST_REPLICATES = 3
"""Replicates of the smallest group (blocks of a paired design) from which on a distance has an interval."""


class DesignError(ValueError):
    """Groups that these replicates, blocks and covariates do not allow to compare."""


@dataclass(frozen=True)
class GroupTest:
    """A permutation test of groups of replicates.

    Attributes
    ----------
    statistic
        Pseudo-F; NaN where all replicates are alike.
    p_value
        Share of arrangements, the observed one among them, whose pseudo-F is as large.
    r2
        Share of the variation left by blocks and covariates that lies between groups.
    n_arrangements
        Distinct ways to assign replicates to groups, within blocks and for given covariates.
    smallest_p
        The p-value of the most extreme arrangement there is; where arrangements are too many to look at all, a lower bound.
    enumerated
        Whether every arrangement was looked at.
    """

    statistic: float
    p_value: float
    r2: float
    n_arrangements: int
    smallest_p: float
    enumerated: bool


def permanova(
    x: NDArray[np.floating] | Sequence[NDArray[np.floating]],
    groups: NDArray[np.integer],
    rng: np.random.Generator,
    *,
    n_permutations: int = 999,
    block: NDArray[np.integer] | None = None,
    covariates: NDArray[np.floating] | None = None,
    spread: bool = True,
) -> GroupTest:
    r"""Test whether groups of replicates have one law, by permuting replicates between groups.

    With the sums of squares that groups explain beyond blocks and covariates, :math:`SS_g`, and that nothing
    explains, :math:`SS_e`, the statistic is the pseudo-F :math:`(SS_g / df_g) / (SS_e / df_e)` (Anderson 2001,
    Austral Ecology 26). Residuals of the model without groups are permuted within blocks (Freedman and Lane 1983,
    Journal of Business and Economic Statistics 1). Without covariates this is a permutation of the replicates, and
    the p-value is exact. With covariates it is approximate: residuals of a regression are not quite exchangeable.

    If there are no more than ``n_permutations`` distinct arrangements all are looked at, and the p-value is their share
    with a pseudo-F at least that observed. Otherwise ``n_permutations`` are drawn, and it is
    :math:`(1 + \#\{F^* \ge F\}) / (1 + B)`.

    Parameters
    ----------
    x
        Vectors of replicates, ``(n, d)``, or several such arrays that weigh alike: each is divided by its whole variation.
    groups
        Group of each replicate, ``(n,)``.
    rng
        Source of the permutations.
    n_permutations
        Number ``B`` of permutations.
    block
        Block of each replicate, ``(n,)``; one by default.
    covariates
        Numbers that the vectors are regressed on, ``(n, q)``.
    spread
        Multiply residuals by :math:`S^{-1/4}` first, with :math:`S` their covariance, which does not know the groups
        (as :func:`scgde.uncertainty.spread_vectors` does for cells): directions in which replicates differ little
        weigh more than in plain distances, and not as much as in a Mahalanobis distance.

    Raises
    ------
    DesignError
        If groups cannot be told from blocks and covariates, or nothing is left over to compare them with.
    """
    reduced, between = _spaces(groups, block, covariates)
    n, df = len(groups), between.shape[1]
    df_error = n - reduced.shape[1] - df
    if df < 1:
        given = [name for name, v in (("block_key", block), ("covariates", covariates)) if v is not None]
        message = f"{', '.join(given)}: groups follow from what is given, and nothing is left to compare. Leave some of it out."
        raise DesignError(message)
    if df_error < 1:
        message = (
            f"covariates, block_key: {n} replicates leave no degree of freedom beside groups, blocks "
            "and covariates. Use "
            "fewer covariates."
        )
        raise DesignError(message)
    cells, strata = _cells(groups, block, covariates)
    codes = np.zeros(n, dtype=np.int64) if block is None else np.unique(block, return_inverse=True)[1]
    total = n_arrangements(cells, codes)
    enumerated = total <= n_permutations
    own = np.arange(n)[None]
    rows = all_arrangements(cells, codes) if enumerated else own
    if enumerated:
        # arrangements that are one for any vectors (groups with their names exchanged, for example) are one for random ones
        generic = np.random.default_rng(0).normal(size=(n, 3))
        generic -= reduced @ (reduced.T @ generic)
        shares = _shares(generic, rows, reduced, between)
        smallest = float((np.abs(shares - _shares(generic, own, reduced, between)[0]) <= _TIE).mean())
    else:
        smallest = max(_relabellings(groups, strata) / total, 1 / (1 + n_permutations))

    parts = [_coordinates(part, reduced, spread) for part in ([x] if isinstance(x, np.ndarray) else x)]
    y = np.concatenate(parts, axis=1)
    if not y.shape[1]:
        return GroupTest(np.nan, np.nan, np.nan, total, smallest, enumerated)

    observed = _shares(y, own, reduced, between)[0]
    if enumerated:
        p_value = float((_shares(y, rows, reduced, between) >= observed - _TIE).mean())
    else:
        exceeding, step = 0, max(_ENTRIES // n, 1)
        for start in range(0, n_permutations, step):
            drawn = _draw(codes, min(step, n_permutations - start), rng)
            exceeding += int((_shares(y, drawn, reduced, between) >= observed - _TIE).sum())
        p_value = (1 + exceeding) / (1 + n_permutations)
    with np.errstate(divide="ignore"):
        statistic = float(np.divide(observed / df, max(1 - observed, 0.0) / df_error))
    return GroupTest(statistic, p_value, float(observed), total, smallest, enumerated)


def _coordinates(x: NDArray[np.floating], reduced: NDArray[np.float64], spread: bool) -> NDArray[np.float64]:
    """Principal coordinates of what blocks and covariates leave of vectors, of whole variation one; none where nothing is left."""
    y = np.asarray(x, dtype=np.float64)
    y = y - y.mean(0)
    scale = np.square(y).sum()
    y = y - reduced @ (reduced.T @ y)
    if np.square(y).sum() <= 1e-20 * max(scale, 1e-280):
        return np.empty((len(y), 0))
    # rows of principal coordinates have the distances of rows of y; S^(-1/4) takes roots of their scales
    left, scales, _ = np.linalg.svd(y, full_matrices=False)
    kept = scales > 1e-9 * scales[0]
    scales = np.sqrt(scales[kept]) if spread else scales[kept]
    return left[:, kept] * (scales / np.sqrt(np.square(scales).sum()))


def n_arrangements(cells: NDArray[np.integer], block: NDArray[np.integer]) -> int:
    """Number of distinct arrangements of ``cells`` within blocks."""
    total = 1
    for b in np.unique(block):
        inside = cells[block == b]
        ways = factorial(len(inside))
        for m in np.unique(inside, return_counts=True)[1]:
            ways //= factorial(int(m))
        total *= ways
    return total


def all_arrangements(cells: NDArray[np.integer], block: NDArray[np.integer]) -> NDArray[np.intp]:
    """Every distinct arrangement once, ``(arrangements, n)``.

    Entry ``(a, i)`` is a row whose cell replicate ``i`` has in arrangement ``a``.
    """
    first = {c: int(np.flatnonzero(cells == c)[0]) for c in np.unique(cells)}
    members = [np.flatnonzero(block == b) for b in np.unique(block)]
    ways = [list(_multiset(cells[rows].tolist())) for rows in members]
    out = np.empty((int(np.prod([len(w) for w in ways])), len(cells)), dtype=np.intp)
    for a, choice in enumerate(product(*ways)):
        for rows, labels in zip(members, choice, strict=True):
            out[a, rows] = [first[c] for c in labels]
    return out


def _multiset(labels: list[int]) -> Iterator[list[int]]:
    """Distinct orders of labels."""
    distinct = sorted(set(labels))
    if len(distinct) <= 1:
        yield labels
        return
    m = labels.count(distinct[0])
    rest = [c for c in labels if c != distinct[0]]
    for taken in combinations(range(len(labels)), m):
        free = [k for k in range(len(labels)) if k not in taken]
        for order in _multiset(rest):
            out = [distinct[0]] * len(labels)
            for k, c in zip(free, order, strict=True):
                out[k] = c
            yield out


def _draw(block: NDArray[np.integer], n_permutations: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Random permutations within blocks, ``(permutations, n)``."""
    rows = np.empty((n_permutations, len(block)), dtype=np.intp)
    for b in np.unique(block):
        inside = np.flatnonzero(block == b)
        rows[:, inside] = inside[np.argsort(rng.random((n_permutations, len(inside))), axis=1)]
    return rows


def _shares(
    y: NDArray[np.float64], rows: NDArray[np.intp], reduced: NDArray[np.float64], between: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of variation between groups, beyond blocks and covariates, of each arrangement."""
    total = float(np.square(y).sum())
    step = max(_ENTRIES // (y.size + len(y) * (reduced.shape[1] + between.shape[1])), 1)
    out = np.empty(len(rows))
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        explained, lost = (
            np.square(np.matmul(basis[chosen].transpose(0, 2, 1), y)).sum((1, 2)) for basis in (between, reduced)
        )
        out[start : start + step] = explained / np.maximum(total - lost, 1e-300)
    return out


def _spaces(
    groups: NDArray[np.integer], block: NDArray[np.integer] | None, covariates: NDArray[np.floating] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal bases of what blocks and covariates explain, and of what groups explain beyond them."""
    n = len(groups)
    columns = [np.ones((n, 1))]
    if block is not None:
        columns.append(_indicators(block))
    if covariates is not None:
        columns.append(standardised(covariates))
    reduced = _basis(np.concatenate(columns, axis=1))
    indicators = _indicators(groups)
    return reduced, _basis(indicators - reduced @ (reduced.T @ indicators))


def _basis(x: NDArray[np.float64]) -> NDArray[np.float64]:
    left, scales, _ = np.linalg.svd(x, full_matrices=False)
    # columns are indicators and standardised numbers: what rounding leaves of them is far below this
    return left[:, scales > 1e-7]


def _indicators(codes: NDArray[np.integer]) -> NDArray[np.float64]:
    return (codes[:, None] == np.unique(codes)[None]).astype(np.float64)


def standardised(covariates: NDArray[np.floating]) -> NDArray[np.float64]:
    """Columns of mean zero and unit variance; constants become zero."""
    largest = np.abs(covariates).max(0, initial=0.0)
    covariates = covariates / np.where(largest > 1e100, largest, 1.0)  # squares of larger numbers overflow
    centred = covariates - covariates.mean(0)
    sd = centred.std(0)
    return np.where(sd > 1e-12 * (1 + np.abs(covariates).max(0)), centred / np.where(sd > 0, sd, 1.0), 0.0)


def _cells(
    groups: NDArray[np.integer], block: NDArray[np.integer] | None, covariates: NDArray[np.floating] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Code of each replicate's row of the whole design, and of its row without the group."""
    columns = [np.zeros((len(groups), 1))]
    if block is not None:
        columns.append(np.asarray(block, dtype=np.float64)[:, None])
    if covariates is not None:
        columns.append(np.asarray(covariates, dtype=np.float64))
    without = np.concatenate(columns, axis=1)
    strata = np.unique(without, axis=0, return_inverse=True)[1].ravel()
    pairs = np.stack([strata, np.unique(groups, return_inverse=True)[1]], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel(), strata


def _relabellings(groups: NDArray[np.integer], strata: NDArray[np.integer]) -> int:
    """Ways to exchange names of groups that leave the design as it is: these arrangements, at least, have one pseudo-F."""
    counts = _indicators(groups).T @ _indicators(strata)
    total = 1
    for m in np.unique(counts, axis=0, return_counts=True)[1]:
        total *= factorial(int(m))
    return total


def squared_distance(
    x: NDArray[np.floating],
    groups: NDArray[np.integer],
    *,
    block: NDArray[np.integer] | None = None,
    covariates: NDArray[np.floating] | None = None,
) -> float:
    r"""Squared distance between the means of groups, freed of the variance of replicates; the average over pairs.

    A difference of two group means adjusted for blocks and covariates is :math:`\delta = \sum_i a_i x_i`, and

    .. math:: \|\delta\|^2 - \sum_i a_i^2 \|e_i\|^2 / (1 - h_i)

    with residuals :math:`e_i` and leverages :math:`h_i` of the whole design estimates the squared length of its
    expectation (variance HC2; MacKinnon and White 1985, Journal of Econometrics 29). For two groups alone and for
    pairs it is the U-statistic, unbiased; with covariates it is unbiased if replicates vary alike in all groups.

    Parameters
    ----------
    x, groups, block, covariates
        See :func:`permanova`.

    Returns
    -------
    Estimate, which may be negative; NaN where the design does not tell some pair of groups apart or leaves a
    replicate no residual.
    """
    x = np.asarray(x, dtype=np.float64)
    design = _indicators(groups)
    n_groups = design.shape[1]
    if covariates is not None:
        design = np.concatenate([design, standardised(covariates)], axis=1)
    leverage = np.zeros(len(x))
    if block is not None:
        membership = _indicators(block)
        share = membership / membership.sum(0)
        design, x = design - membership @ (share.T @ design), x - membership @ (share.T @ x)
        leverage = (membership * share).sum(1)
    inverse = np.linalg.pinv(design, rcond=1e-9)
    residual = np.square(x - design @ (inverse @ x)).sum(1)
    free = 1 - leverage - (design * inverse.T).sum(1)
    pairs = list(combinations(range(n_groups), 2))
    contrast = np.zeros((len(pairs), design.shape[1]))
    for row, (i, j) in zip(contrast, pairs, strict=True):
        row[i], row[j] = 1.0, -1.0
    weights = contrast @ inverse
    if np.abs(weights @ design - contrast).max() > 1e-6 or (free[np.abs(weights).max(0) > 1e-9] < 1e-9).any():
        return float("nan")
    noise = np.square(weights) @ np.divide(residual, free, out=np.zeros_like(free), where=free > 1e-9)
    return float((np.square(weights @ x).sum(1) - noise).mean())


def distance_interval(
    x: NDArray[np.floating],
    groups: NDArray[np.integer],
    *,
    block: NDArray[np.integer] | None = None,
    covariates: NDArray[np.floating] | None = None,
    level: float = 0.95,
) -> tuple[float, float, float]:
    r""":func:`squared_distance` with an interval by the jackknife over replicates, or over blocks where there are any.

    The interval is the estimate plus or minus the t quantile, with the degrees of freedom of the smallest group,
    times the standard error :math:`\{\sum_g (n_g - 1) \operatorname{Var}_i(\theta_{(-i)})\}^{1/2}` over the
    replicates of each group (Arvesen 1969, Annals of Mathematical Statistics 40). It is wider than need be near zero.

    Parameters
    ----------
    x, groups, block, covariates
        See :func:`permanova`.
    level
        Coverage that is aimed at.

    Returns
    -------
    Estimate, lower and upper end. Ends are NaN where the smallest group has fewer than :data:`LEAST_REPLICATES`
    replicates, or there are fewer blocks.
    """
    estimate = squared_distance(x, groups, block=block, covariates=covariates)
    units = [np.flatnonzero(groups == g) for g in np.unique(groups)] if block is None else [np.unique(block)]
    if not np.isfinite(estimate) or min(map(len, units)) < LEAST_REPLICATES:
        return estimate, float("nan"), float("nan")
    variance = 0.0
    for part in units:
        values = []
        for unit in part:
            kept = np.arange(len(x)) != unit if block is None else block != unit
            values.append(
                squared_distance(
                    x[kept],
                    groups[kept],
                    block=None if block is None else block[kept],
                    covariates=None if covariates is None else covariates[kept],
                )
            )
        variance += (len(part) - 1) * float(np.var(values))
    half = student_t.ppf((1 + level) / 2, min(map(len, units)) - 1) * np.sqrt(variance)
    return estimate, estimate - half, estimate + half
