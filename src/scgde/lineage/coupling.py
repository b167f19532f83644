"""How much more alike sisters are than strangers in the same state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from scgde.data.populations import column_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK = 2**15
"""Pairs that distances are taken of at a time."""


@dataclass(frozen=True)
class Coupling:
    """Distances between units of one clone against those between units of different clones, within strata.

    Attributes
    ----------
    ratio
        ``within / between``: 1 where clones are nothing to their units, 0 where units of a clone are all the same.
    within
        Mean distance of pairs of one clone in one stratum.
    between
        Mean distance of pairs of different clones in one stratum, strata weighted by their numbers of pairs of one clone.
    null
        Ratios with clones permuted within strata, ``(n_permutations,)``.
    p_value
        Share of permutations (with the data themselves) whose ratio is not larger.
    per_clone
        Mean distance of the pairs of each clone over that of pairs of different clones in their strata, by clone.
    n_pairs
        Pairs of one clone in one stratum.
    """

    ratio: float
    within: float
    between: float
    null: np.ndarray
    p_value: float
    per_clone: pd.Series
    n_pairs: int

    @property
    def n_clones(self) -> int:
        """Clones that have a pair."""
        return len(self.per_clone)

    @property
    def z_score(self) -> float:
        """Ratio less the mean of the null, in its standard deviations; negative where sisters are alike, NaN where the null does not vary."""
        spread = float(self.null.std())
        return (self.ratio - float(self.null.mean())) / spread if spread > 0 else float("nan")


def clonal_coupling(
    x: np.ndarray | pd.DataFrame,
    clones: pd.Series | Sequence | np.ndarray,
    strata: pd.Series | pd.DataFrame | Sequence | np.ndarray | None = None,
    *,
    n_permutations: int = 1000,
    max_pairs: int = 200_000,
    seed: int = 0,
) -> Coupling:
    r"""How much more alike units of one clone are than units of different clones in the same stratum.

    With :math:`N_s` pairs of one clone in stratum :math:`s`, of mean distance :math:`w_s`, and mean distance :math:`b_s` of pairs of different
    clones, the ratio is :math:`\sum_s N_s w_s / \sum_s N_s b_s`: both sides see strata in the same shares, so that a clone that prefers a state
    is not called alike for it. The null permutes clones within strata. A clone counts by its number of pairs, which grows with the square
    of its units; ``per_clone`` has each once.

    Parameters
    ----------
    x
        Latents or embeddings, units x coordinates: of cells, or of populations.
    clones
        Clone of each row; rows without one have no part.
    strata
        What is held equal, by row: cell states, days, wells. Several columns of a DataFrame are crossed. Rows without one have no part, nor
        have strata of a single clone, in which there is nothing to compare with. By default all rows are of one stratum.
    n_permutations
        Permutations of clones within strata.
    max_pairs
        Strata of at most as many pairs are taken whole. In others, at most as many pairs of different clones are drawn, and of one clone
        likewise, most from the largest clones; mean distances stay unbiased.
    seed
        Seed of permutations and of draws.

    Raises
    ------
    ValueError
        If numbers or names of rows differ, values are not finite, an argument is out of range, no clone has two units in a stratum, or no such
        stratum has a second clone.
    """
    for name, value in (("n_permutations", n_permutations), ("max_pairs", max_pairs)):
        if value < 1:
            message = f"{name}={value} must be at least 1."
            raise ValueError(message)
    values, clone, names, stratum = _rows(x, clones, strata)
    rng = np.random.default_rng(seed)
    n_pairs, null_within, null_between = 0, np.zeros(n_permutations), np.zeros(n_permutations)
    total, expected = np.zeros(len(names)), np.zeros(len(names))
    for rows in _usable_strata(clone, stratum):
        part = _Stratum(values[rows], clone[rows], max_pairs, rng)
        own, other = part.permuted(n_permutations, rng)
        n_pairs += part.n_pairs
        null_within += part.n_pairs * own
        null_between += part.n_pairs * other
        np.add.at(total, part.owner, part.weight * part.distances(np.arange(len(rows)), part.pairs))
        np.add.at(expected, part.owner, part.weight * part.between)
    within, between = float(total.sum()) / n_pairs, float(expected.sum()) / n_pairs
    if not between > 0:
        message = "All units of a stratum have the same coordinates: there is no distance to compare."
        raise ValueError(message)
    null, seen = null_within / null_between, expected > 0
    index = pd.Index(names[seen], name="clone", dtype=str)
    # sums in another order differ by rounding: the same division into clones must count as a tie
    reached = int((null <= within / between * (1 + 1e-9)).sum())
    return Coupling(
        within / between,
        within,
        between,
        null,
        (1 + reached) / (1 + n_permutations),
        pd.Series(total[seen] / expected[seen], index=index, name="coupling"),
        n_pairs,
    )


class _Stratum:
    """One stratum: pairs of rows of one clone and, where there are too many, drawn pairs of different clones.

    Permuting clones moves units over rows, so that pairs of rows stay. The mean distance of all pairs does not change by it, and gives
    that of pairs of different clones from that of the others.
    """

    def __init__(self, x: np.ndarray, clone: np.ndarray, max_pairs: int, rng: np.random.Generator) -> None:
        self.x = x
        n = len(x)
        order = np.argsort(clone, kind="stable")
        codes, start, size = np.unique(clone[order], return_index=True, return_counts=True)
        several = size > 1
        first, second, self.weight, which = _own_pairs(start[several], size[several], max_pairs, rng)
        self.pairs, self.owner = (order[first], order[second]), codes[several][which]
        all_pairs = n * (n - 1) // 2
        self.n_pairs = int((size * (size - 1) // 2).sum())
        self.share = self.n_pairs / all_pairs
        self.matrix = cdist(x, x) if all_pairs <= max_pairs else None
        self.within = self._mean(np.arange(n))
        self.drawn = None
        if self.matrix is not None:
            self.overall = float(self.matrix.sum()) / (2 * all_pairs)
            self.between = (self.overall - self.share * self.within) / (1 - self.share)
            return
        drawn = _other_pairs(order, start, size, max_pairs, rng)
        self.between = float(self.distances(np.arange(n), drawn).mean())
        self.overall = self.share * self.within + (1 - self.share) * self.between
        if self.share > 0.5 and len(self.weight) < self.n_pairs:
            # few pairs are of different clones: errors of a mean over drawn pairs of one clone would be multiplied
            self.drawn = drawn

    def distances(self, order: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Distances of pairs of rows, with unit ``order[i]`` in row ``i``."""
        first, second = (order[rows] for rows in pairs)
        if self.matrix is not None:
            return self.matrix[first, second]
        result = np.empty(len(first))
        for a in range(0, len(first), _BLOCK):
            difference = self.x[first[a : a + _BLOCK]] - self.x[second[a : a + _BLOCK]]
            result[a : a + _BLOCK] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return result

    def _mean(self, order: np.ndarray) -> float:
        return float(self.weight @ self.distances(order, self.pairs)) / self.n_pairs

    def permuted(self, n_permutations: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Mean distances of pairs of one clone and of different ones, with units permuted over rows."""
        n = len(self.x)
        within, between = np.empty(n_permutations), np.empty(n_permutations)
        if self.matrix is None:
            for i in range(n_permutations):
                order = rng.permutation(n)
                within[i] = self._mean(order)
                if self.drawn is not None:
                    between[i] = self.distances(order, self.drawn).mean()
        else:
            step = max(16 * _BLOCK // (n + len(self.weight)), 1)
            for a in range(0, n_permutations, step):
                orders = rng.permuted(np.tile(np.arange(n), (min(step, n_permutations - a), 1)), axis=1)
                distances = self.matrix[orders[:, self.pairs[0]], orders[:, self.pairs[1]]]
                within[a : a + step] = distances @ self.weight / self.n_pairs
        if self.drawn is None:
            between = (self.overall - self.share * within) / (1 - self.share)
        return within, between


def _rows(
    x: np.ndarray | pd.DataFrame,
    clones: pd.Series | Sequence | np.ndarray,
    strata: pd.Series | pd.DataFrame | Sequence | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates, codes of clones, their names, and codes of strata, of rows that have all."""
    values = np.asarray(x)
    if values.ndim != 2:
        message = f"x has {values.ndim} dimensions and must have two, units x coordinates."
        raise ValueError(message)
    if strata is None:
        strata = np.zeros(len(values), dtype=int)
    for name, given in (("clones", clones), ("strata", strata)):
        if len(given) != len(values):
            message = f"{name} has {len(given)} entries and x {len(values)} rows; give one for each row."
            raise ValueError(message)
    named = {
        n: v.index
        for n, v in (("x", x), ("clones", clones), ("strata", strata))
        if isinstance(v, pd.Series | pd.DataFrame)
    }
    for name, index in list(named.items())[1:]:
        first, reference = next(iter(named.items()))
        plain = any(isinstance(i, pd.RangeIndex) for i in (index, reference))
        if not index.equals(reference) and not plain:
            message = f"{name} has other row names than {first}, or in another order; take {name}.loc[{first}.index]."
            raise ValueError(message)
    clone, names = pd.factorize(column_labels(pd.Series(clones)), sort=True)
    columns = strata if isinstance(strata, pd.DataFrame) else pd.DataFrame(np.asarray(strata, dtype=object))
    codes = np.stack(
        [pd.factorize(column_labels(columns.iloc[:, i]), sort=True)[0] for i in range(columns.shape[1])], axis=1
    )
    used = (clone >= 0) & (codes >= 0).all(1)
    values = values[used].astype(np.float64)
    if not np.isfinite(values).all():
        message = "x holds NaN or infinite values in rows with a clone and a stratum; drop these rows."
        raise ValueError(message)
    stratum = np.unique(codes[used], axis=0, return_inverse=True)[1].reshape(-1)
    return values, clone[used], np.asarray(names, dtype=object), stratum


def _usable_strata(clone: np.ndarray, stratum: np.ndarray) -> list[np.ndarray]:
    """Rows of strata with pairs of one clone and of different ones."""
    order = np.argsort(stratum, kind="stable")
    usable, paired = [], False
    for rows in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
        n_clones = len(np.unique(clone[rows]))
        paired |= n_clones < len(rows)
        if 1 < n_clones < len(rows):
            usable.append(rows)
    if not paired:
        message = (
            f"No clone has two units in one stratum, among {len(clone)} rows with a clone and a stratum: singletons teach nothing, having no "
            "sister to be compared with. Use coarser strata, or larger clones."
        )
        raise ValueError(message)
    if not usable:
        message = "Strata in which a clone has two units hold that clone only: there are no pairs of different clones. Use coarser strata."
        raise ValueError(message)
    return usable


def _own_pairs(
    start: np.ndarray, size: np.ndarray, max_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows of each clone, rows being sorted by clone: both rows, the number of pairs that each stands for, and the clone."""
    n_pairs = size * (size - 1) // 2
    limit = _limit(n_pairs, max_pairs)
    first, second, weight, which = [], [], [], []
    for n in np.unique(size):
        own = np.flatnonzero(size == n)
        m = int(n) * (int(n) - 1) // 2
        if m <= limit:
            pair = np.tile(np.arange(m), len(own))
        else:
            pair = np.concatenate([rng.choice(m, limit, replace=False, shuffle=False) for _ in own])
        kept = len(pair) // len(own)
        # pairs in the order (0, 1), (0, 2), (1, 2), (0, 3), ...
        high = ((1 + np.sqrt(1 + 8 * pair.astype(np.float64))) / 2).astype(np.int64)
        high -= high * (high - 1) // 2 > pair
        high += high * (high + 1) // 2 <= pair
        offset = np.repeat(start[own], kept)
        first.append(offset + pair - high * (high - 1) // 2)
        second.append(offset + high)
        weight.append(np.full(len(pair), m / kept))
        which.append(np.repeat(own, kept))
    return np.concatenate(first), np.concatenate(second), np.concatenate(weight), np.concatenate(which)


def _limit(n_pairs: np.ndarray, max_pairs: int) -> int:
    """Pairs to take of each clone at most, one or more, so that they are ``max_pairs`` together."""
    ordered = np.sort(n_pairs)
    if ordered.sum() <= max_pairs:
        return int(ordered[-1])
    before = np.cumsum(ordered) - ordered
    room = (max_pairs - before) // np.arange(len(ordered), 0, -1)
    # the first clone that cannot be taken whole, and those after it, share what is left
    return max(int(room[np.argmax(ordered > room)]), 1)


def _other_pairs(
    order: np.ndarray, start: np.ndarray, size: np.ndarray, n_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of rows of different clones, with replacement; all are as likely."""
    n = int(size.sum())
    other = n - size
    clone = rng.choice(len(size), n_pairs, p=size * other / float((size * other).sum()))
    first = start[clone] + rng.integers(size[clone])
    # rows are sorted by clone: count over those that are not of the clone
    second = rng.integers(other[clone])
    second += np.where(second >= start[clone], size[clone], 0)
    return order[first], order[second]
