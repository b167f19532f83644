"""Information that early populations hold about late ones, with what chance alone would show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.special import digamma

from scgde.data.populations import as_label
from scgde.lineage._dependence import (
    STRONG_EVIDENCE,
    NormalDependence,
    class_information,
    class_residuals,
    find_classes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

JITTER = 1e-10
"""Noise against ties, in standard deviations of a coordinate."""

RIDGES = (0.05, 0.5, 5.0, 50.0)
"""Ridges that a projection chooses from."""

RIDGE_GAIN = 0.03
"""Bits of correlation in left-out clones that a larger ridge must gain."""

MAX_COMPONENTS = 8
"""Coordinates of each side that classes are sought in, at most."""

FEW_COMPONENTS = 3
"""Coordinates of each side up to which neighbours are counted."""

N_FOLDS = 5

SIGNIFICANT = 3.0
"""Standard errors by which residuals must go together to count beside classes."""

MIN_CLONES = 10
"""Clones that information can be estimated from at all."""

WINDOW = 10
"""Clones with late populations of similar numbers of cells that late populations are permuted among."""


@dataclass(frozen=True)
class Information:
    """Estimated mutual information, in bits.

    Attributes
    ----------
    bits
        Estimate less the mean of the null, which takes away what dimension and number of clones alone give. Of normal embeddings it has no bias while there
        are four clones for each dimension; of others it is a lower bound in general (see :func:`clone_information`).
    raw, null
        Estimate, and estimates with late populations permuted over clones, ``(n_permutations,)``.
    p_value
        Share of permutations (with the data themselves) that reach the estimate.
    interval
        95 % interval for what the estimate is of: the information itself where embeddings are normal, else that which the method sees, so that it need not cover
        the information. NaN with few clones.
    pointwise
        Local information of each clone, by clone, of which ``raw`` is the mean.
    n_components
        Canonical coordinates of each side in which classes are sought and neighbours counted.
    method
        ``"normal"``, ``"neighbours"`` or ``"classes"``, see :func:`clone_information`.
    """

    bits: float
    raw: float
    null: np.ndarray
    p_value: float
    interval: tuple[float, float]
    pointwise: pd.Series
    n_components: int
    method: str = "normal"

    @property
    def n_clones(self) -> int:
        """Clones that were compared."""
        return len(self.pointwise)


def ksg_information(x: np.ndarray, y: np.ndarray, k: int = 3, seed: int = 0) -> np.ndarray:
    r"""Local mutual information in bits of paired samples, whose mean estimates :math:`I(X; Y)`.

    .. math:: i_j = (\psi(k) + \psi(N) - \psi(n_{x,j} + 1) - \psi(n_{y,j} + 1)) / \ln 2,

    the first estimator of Kraskov, Stögbauer and Grassberger (2004, Phys Rev E 69, 066138), with the maximum norm; :math:`n_x` counts
    other points strictly nearer in ``x`` than the ``k``-th neighbour is in both.

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(n, e)``. The estimate depends on the scales of coordinates; whiten first.
    k
        Number of neighbours.
    seed
        Seed of the noise that parts ties.

    Returns
    -------
    ``(n,)``.

    Raises
    ------
    ValueError
        If there are not more than ``k`` samples, numbers differ, or values are not finite.
    """
    x, y = (np.asarray(v, dtype=np.float64).reshape(len(v), -1) for v in (x, y))
    n = len(x)
    if len(y) != n or n <= k or k < 1:
        message = f"x has {n} rows and y {len(y)}; both need the same number, more than k={k} of at least one."
        raise ValueError(message)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        message = "x or y holds NaN or infinite values; drop these rows."
        raise ValueError(message)
    rng = np.random.default_rng(seed)
    x, y = (v + JITTER * (v.std(0) + 1e-300) * rng.standard_normal(v.shape) for v in (x, y))
    both = np.concatenate([x, y], axis=1)
    reach = np.nextafter(cKDTree(both).query(both, k + 1, p=np.inf)[0][:, -1], 0)
    local = np.full(n, digamma(k) + digamma(n))
    for v in (x, y):
        # a point counts itself, which is the one that the formula adds
        local -= digamma(cKDTree(v).query_ball_point(v, reach, p=np.inf, return_length=True))
    return local / np.log(2)


class Projection:
    """Few whitened coordinates of early and late embeddings that go together most: canonical correlations with a ridge.

    Nearest-neighbour estimates see little in many dimensions, and any that are fitted to the clones they are estimated from see what is not there:
    fit on training clones only.

    Parameters
    ----------
    early, late
        Embeddings of training clones, ``(clones, n_embedding)`` each.
    n_components
        Dimensions of each side; by default as many as correlate in clones that were left out, ``max_components`` at most.
    ridge
        Share of the mean variance that is added to each coordinate's. ``None`` is the one of :data:`RIDGES` whose coordinates correlate the most in clones
        that were left out.
    max_components
        See ``n_components``.
    """

    def __init__(
        self,
        early: np.ndarray,
        late: np.ndarray,
        n_components: int | None = None,
        ridge: float | None = 0.05,
        max_components: int = 4,
    ) -> None:
        early, late = np.asarray(early, dtype=np.float64), np.asarray(late, dtype=np.float64)
        most = min(max_components, *(v.shape[1] for v in (early, late)))
        chosen, best = 1, -np.inf
        for candidate in RIDGES if ridge is None else (ridge,):
            if ridge is not None and n_components is not None:
                break
            correlations = self._left_out(early, late, most, candidate)
            bits = float(-np.log2(1 - np.clip(correlations, 0, 0.999) ** 2).sum() / 2)
            if bits > best + RIDGE_GAIN:
                strong = correlations > 3 / np.sqrt(len(early))
                chosen = max(int(np.argmin(strong)) if not strong.all() else most, 1)
                ridge_chosen, best = candidate, bits
        self.ridge = ridge if ridge is not None else ridge_chosen
        self.n_components = chosen if n_components is None else n_components
        self.centres, self.axes = self._fit(early, late, self.n_components, self.ridge)

    def _fit(self, early: np.ndarray, late: np.ndarray, n_components: int, ridge: float) -> tuple[list, list]:
        centres = [v.mean(0) for v in (early, late)]
        roots, white = [], []
        for v, centre in zip((early, late), centres, strict=True):
            cov = np.cov(v - centre, rowvar=False).reshape(v.shape[1], v.shape[1])
            size, axes = np.linalg.eigh(cov + ridge * np.trace(cov) / len(cov) * np.eye(len(cov)))
            roots.append(axes / np.sqrt(np.maximum(size, 1e-12)))
            white.append((v - centre) @ roots[-1])
        left, _, right = np.linalg.svd(white[0].T @ white[1] / len(early))
        pair = [roots[0] @ left[:, :n_components], roots[1] @ right[:n_components].T]
        for i, v in enumerate((early, late)):
            spread = ((v - centres[i]) @ pair[i]).std(0)
            pair[i] = pair[i] / np.maximum(spread, 1e-12)
        return centres, pair

    def _left_out(self, early: np.ndarray, late: np.ndarray, most: int, ridge: float) -> np.ndarray:
        """Mean correlations of leading pairs of coordinates in fifths that they were not fitted to, ``(most,)``."""
        fold = np.random.default_rng(0).permutation(len(early)) % N_FOLDS
        correlations = []
        for i in range(N_FOLDS):
            own, other = fold != i, fold == i
            centres, axes = self._fit(early[own], late[own], most, ridge)
            a, b = ((v[other] - c) @ w for v, c, w in zip((early, late), centres, axes, strict=True))
            a, b = a - a.mean(0), b - b.mean(0)
            correlations.append((a * b).sum(0) / np.maximum(np.sqrt((a * a).sum(0) * (b * b).sum(0)), 1e-12))
        return np.mean(correlations, axis=0)

    def __call__(self, early: np.ndarray, late: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of early and late embeddings, ``(clones, n_components)`` each."""
        left, right = ((np.asarray(v) - c) @ w for v, c, w in zip((early, late), self.centres, self.axes, strict=True))
        return left, right


class _Scored:
    """Clones to estimate from, in coordinates that other clones chose: classes of each side and what is left of embeddings beside them."""

    def __init__(self, projection: Projection, early: np.ndarray, late: np.ndarray, k: int, seed: int) -> None:
        self.early, self.late, self.k, self.seed = early, late, k, seed
        self.x, self.y = projection(early, late)
        found = [find_classes(v, seed) for v in (self.x, self.y)]
        self.classes = [classes for classes, _ in found]
        self.evidence = sum(gain for _, gain in found)
        self.method = "neighbours" if projection.n_components <= FEW_COMPONENTS else "classes"

    def without_classes(self) -> None:
        """Take each side for one class."""
        self.classes = [np.ones((len(self.x), 1))] * 2
        self.method = "normal"

    def residuals(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings less the mean of their classes."""
        early, late = (class_residuals(v, c) for v, c in zip((self.early, self.late), self.classes, strict=True))
        return early, late

    @cached_property
    def _counted_twice(self) -> NormalDependence:
        """What neighbours see in the coordinates and residuals have too."""
        return NormalDependence(*(class_residuals(v, c) for v, c in zip((self.x, self.y), self.classes, strict=True)))

    def local(self, order: np.ndarray, beside_residuals: bool) -> np.ndarray:
        """Local information of coordinates, ``(clones,)``, with late populations in another order."""
        if self.method == "normal":
            return np.zeros(len(order))
        if self.method == "neighbours":
            local = ksg_information(self.x, self.y[order], self.k, self.seed)
            return local - self._counted_twice.local(order) if beside_residuals else local
        return class_information(self.classes[0], self.classes[1][order])


def _estimate(
    groups: list[_Scored], remainder: NormalDependence | None, orders: list[np.ndarray] | None = None
) -> np.ndarray:
    """Local information of all scored clones, of late populations in other orders within groups if these are given."""
    orders = [np.arange(len(g.x)) for g in groups] if orders is None else orders
    local = np.concatenate([g.local(o, remainder is not None) for g, o in zip(groups, orders, strict=True)])
    if remainder is None:
        return local
    starts = np.cumsum([0] + [len(g.x) for g in groups[:-1]])
    return local + remainder.local(np.concatenate([start + o for start, o in zip(starts, orders, strict=True)]))


def _orders(groups: list[_Scored], sizes: list[np.ndarray] | None, rng: np.random.Generator) -> list[np.ndarray]:
    """Permutations of late populations within groups, among similar numbers of cells if these are given."""
    if sizes is None:
        return [rng.permutation(len(g.x)) for g in groups]
    return [_shuffled(size, rng) for size in sizes]


def _of_chance(
    groups: list[_Scored], remainder: NormalDependence | None, sizes: list[np.ndarray] | None, rng: np.random.Generator
) -> float:
    """Mean local information with late populations permuted."""
    orders = _orders(groups, sizes, rng)
    local = _estimate(groups, remainder, orders)
    if sizes is None:
        return float(local.mean())
    # one in ten keeps its own late population, and would count as chance what is information
    moved = np.concatenate([order != np.arange(len(order)) for order in orders])
    return float(local[moved].mean())


def _shuffled(size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation that exchanges rows of similar sizes only, in windows that start anew each time."""
    rank = np.lexsort((rng.random(len(size)), size))
    order = np.empty(len(size), dtype=np.int64)
    half = WINDOW // 2
    for rows in np.split(rank, np.arange(rng.integers(half, WINDOW + half), len(size) - half + 1, WINDOW)):
        order[rows] = rng.permutation(rows)
    return order


def clone_information(
    early: pd.DataFrame,
    late: pd.DataFrame,
    *,
    training: Sequence[str] | None = None,
    n_components: int | None = None,
    n_cells: pd.Series | None = None,
    k: int = 3,
    n_permutations: int = 100,
    seed: int = 0,
) -> Information:
    """Information in bits that early populations of clones hold about their late ones.

    Embeddings of one class on either side are taken for normal: the estimate is that of all their canonical correlations, in any number of dimensions. If
    their few most correlated coordinates fall into classes, information is estimated there by neighbours (three coordinates at most) or from the table of classes, and the
    canonical correlations of embeddings less the means of classes are added where they are significant.

    Only the first is free of bias, and only for normal embeddings. Others are lower bounds in general: skewed coordinates lose
    much, and dependence without correlation is hardly found beyond three dimensions. With some 100 clones or dimensions as many as a third of the clones, classes can also be
    overestimated.

    Parameters
    ----------
    early, late
        Embeddings by clone. Clones in one of them only have no part.
    training
        Clones that the projection to few whitened coordinates is fitted to (and, to be honest, those that trained the model); information is
        estimated from the others. By default each half of the clones is estimated from with the projection of the other.
    n_components
        See :class:`Projection`.
    n_cells
        Numbers of cells of the late populations, by clone (of those that are estimated from). Embeddings of few cells scatter more: if clones of many early cells have many
        late ones, sizes alone are information, and count as such. With this argument late populations are permuted among clones of similar numbers only,
        and what sizes tell is taken away.
    k
        Neighbours.
    n_permutations
        Permutations of late populations over clones.
    seed
        Seed.

    Raises
    ------
    ValueError
        If too few clones are in both, or a clone has two rows.
    """
    for name, frame in (("early", early), ("late", late)):
        if not frame.index.is_unique:
            twice = list(frame.index[frame.index.duplicated()].unique()[:5])
            message = f"{name} has several rows for the clones {twice}; give one embedding for each clone."
            raise ValueError(message)
    clones = early.index.intersection(late.index)
    rng = np.random.default_rng(seed)
    own = training_clones(clones, training, rng)
    if n_permutations < 1:
        message = f"n_permutations={n_permutations} must be at least 1: without a null there are no bits."
        raise ValueError(message)
    width = min(early.shape[1], late.shape[1])
    if n_components is not None and not 1 <= n_components <= width:
        message = f"n_components={n_components} must be between 1 and {width}, the width of the embeddings."
        raise ValueError(message)
    splits = [(own, ~own), (~own, own)] if training is None else [(own, ~own)]
    fewest = min(int(scored.sum()) for _, scored in splits)
    if k >= fewest:
        message = f"k={k} neighbours of {fewest} clones: choose fewer."
        raise ValueError(message)
    if own.sum() < MIN_CLONES or (~own).sum() < MIN_CLONES:
        message = (
            f"{len(clones)} clones have both an early and a late population, {own.sum()} of them for training and {(~own).sum()} to "
            f"estimate from; at least {MIN_CLONES} of each are needed."
        )
        raise ValueError(message)
    if n_components is None and max(early.shape[1], late.shape[1]) <= FEW_COMPONENTS:
        n_components = width
    x, y = (frame.loc[clones].to_numpy(dtype=np.float64) for frame in (early, late))
    groups, components = [], []
    for fitted, scored in splits:
        projection = Projection(x[fitted], y[fitted], n_components, None, MAX_COMPONENTS)
        groups.append(_Scored(projection, x[scored], y[scored], k, seed))
        components.append(projection.n_components)
    if sum(g.evidence for g in groups) <= STRONG_EVIDENCE:
        for group in groups:
            group.without_classes()
    residuals = [np.concatenate(v) for v in zip(*(g.residuals() for g in groups), strict=True)]
    beside = NormalDependence(*residuals)
    chance, spread = beside.chance
    excess = beside.local(np.arange(len(residuals[0]))).mean() - chance
    # noise of many dimensions would hide classes that explain the rest
    counts = groups[0].method == "normal" or excess >= SIGNIFICANT * spread
    remainder = beside if counts else None
    local = _estimate(groups, remainder)
    sizes = None if n_cells is None else [_sizes(n_cells, clones[scored]) for _, scored in splits]
    null = np.array([_of_chance(groups, remainder, sizes, rng) for _ in range(n_permutations)])
    raw = float(local.mean())
    bits = raw - float(null.mean())
    # local information of normal vectors already varies twice as much as estimates of independent ones do
    variance = float(local.var(ddof=1)) / len(local) + (float(null.var()) if remainder is None else 0.0)
    error = 1.96 * np.sqrt(variance) if len(local) >= 4 * MIN_CLONES else float("nan")
    names = clones[np.concatenate([np.flatnonzero(scored) for _, scored in splits])]
    return Information(
        bits,
        raw,
        null,
        float((1 + (null >= raw).sum()) / (1 + n_permutations)),
        (bits - error, bits + error),
        pd.Series(local, index=names, name="information"),
        max(components),
        groups[int(np.argmax(components))].method,
    )


def _sizes(n_cells: pd.Series, clones: pd.Index) -> np.ndarray:
    """Numbers of cells of clones, ``(clones,)``."""
    if not isinstance(n_cells, pd.Series):
        message = f"n_cells is a {type(n_cells).__name__} and must be a Series of numbers by clone."
        raise TypeError(message)
    labels = pd.Index([as_label(clone) for clone in n_cells.index])
    if not labels.is_unique:
        message = f"n_cells has several entries for the clones {list(labels[labels.duplicated()].unique()[:5])}; give one for each clone."
        raise ValueError(message)
    numbers = pd.Series(pd.to_numeric(n_cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan), labels)
    sizes = numbers.reindex([as_label(clone) for clone in clones]).to_numpy()
    if not np.isfinite(sizes).all():
        message = f"n_cells has no number for the clones {list(clones[~np.isfinite(sizes)][:5])}; give that of every late population that is estimated from."
        raise ValueError(message)
    return sizes


def training_clones(clones: pd.Index, training: Sequence[str] | None, rng: np.random.Generator) -> np.ndarray:
    """Which clones are to learn from, ``(clones,)``; every second one, at random, if they are not named."""
    if training is None:
        return rng.permutation(len(clones)) % 2 == 0
    named = list(training)
    if named and all(isinstance(c, bool | np.bool_) for c in named):
        message = "training is a mask and must hold the names of clones, such as early.index[mask]."
        raise TypeError(message)
    return np.asarray(pd.Index([as_label(c) for c in clones]).isin([as_label(c) for c in named]))
