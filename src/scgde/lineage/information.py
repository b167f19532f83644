"""Information that early populations hold about late ones, with what chance alone would show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.special import digamma

from scgde.data.populations import as_label

if TYPE_CHECKING:
    from collections.abc import Sequence

JITTER = 1e-10
"""Noise against ties, in standard deviations of a coordinate."""

MIN_CLONES = 10
"""Clones that information can be estimated from at all."""


@dataclass(frozen=True)
class Information:
    """Estimated mutual information, in bits.

    Attributes
    ----------
    bits
        Estimate less the mean of the null, which takes away what dimension and number of clones alone give. What remains errs low where
        early and late go together closely and clones are few.
    raw, null
        Estimate, and estimates with late populations permuted over clones, ``(n_permutations,)``.
    p_value
        Share of permutations (with the data themselves) that reach the estimate.
    interval
        95 % interval from clones drawn in halves without replacement: of the choice of clones, and not of what the estimate misses; NaN with
        few clones.
    pointwise
        Local information of each clone, by clone, of which ``raw`` is the mean.
    n_components
        Dimensions of each side.
    """

    bits: float
    raw: float
    null: np.ndarray
    p_value: float
    interval: tuple[float, float]
    pointwise: pd.Series
    n_components: int

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
        Dimensions of each side; by default as many as correlate in clones that were left out, four at most.
    ridge
        Share of the mean variance that is added to each coordinate's.
    """

    def __init__(
        self, early: np.ndarray, late: np.ndarray, n_components: int | None = None, ridge: float = 0.05
    ) -> None:
        self.ridge = ridge
        early, late = np.asarray(early, dtype=np.float64), np.asarray(late, dtype=np.float64)
        most = min(4, *(v.shape[1] for v in (early, late)))
        if n_components is None:
            n_components = self._choose(early, late, most)
        self.n_components = n_components
        self.centres, self.axes = self._fit(early, late, n_components)

    def _fit(self, early: np.ndarray, late: np.ndarray, n_components: int) -> tuple[list, list]:
        centres = [v.mean(0) for v in (early, late)]
        roots, white = [], []
        for v, centre in zip((early, late), centres, strict=True):
            cov = np.cov(v - centre, rowvar=False).reshape(v.shape[1], v.shape[1])
            size, axes = np.linalg.eigh(cov + self.ridge * np.trace(cov) / len(cov) * np.eye(len(cov)))
            roots.append(axes / np.sqrt(np.maximum(size, 1e-12)))
            white.append((v - centre) @ roots[-1])
        left, _, right = np.linalg.svd(white[0].T @ white[1] / len(early))
        pair = [roots[0] @ left[:, :n_components], roots[1] @ right[:n_components].T]
        for i, v in enumerate((early, late)):
            spread = ((v - centres[i]) @ pair[i]).std(0)
            pair[i] = pair[i] / np.maximum(spread, 1e-12)
        return centres, pair

    def _choose(self, early: np.ndarray, late: np.ndarray, most: int) -> int:
        """Leading pairs of coordinates that correlate beyond three standard errors in halves that they were not fitted to; at least one."""
        n = len(early)
        order = np.random.default_rng(0).permutation(n)
        correlations = []
        for own, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
            centres, axes = self._fit(early[own], late[own], most)
            a, b = ((v[other] - c) @ w for v, c, w in zip((early, late), centres, axes, strict=True))
            correlations.append([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(most)])
        strong = np.mean(correlations, axis=0) > 3 / np.sqrt(n)
        return max(int(np.argmin(strong)) if not strong.all() else most, 1)

    def __call__(self, early: np.ndarray, late: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of early and late embeddings, ``(clones, n_components)`` each."""
        left, right = ((np.asarray(v) - c) @ w for v, c, w in zip((early, late), self.centres, self.axes, strict=True))
        return left, right


def clone_information(
    early: pd.DataFrame,
    late: pd.DataFrame,
    *,
    training: Sequence[str] | None = None,
    n_components: int | None = None,
    k: int = 3,
    n_permutations: int = 100,
    seed: int = 0,
) -> Information:
    """Information in bits that early populations of clones hold about their late ones.

    Parameters
    ----------
    early, late
        Embeddings by clone. Clones in one of them only have no part.
    training
        Clones that the projection to few whitened coordinates is fitted to (and, to be honest, those that trained the model); information is
        estimated from the others. By default every second clone.
    n_components
        See :class:`Projection`.
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
    if n_components is not None and not 1 <= n_components <= min(early.shape[1], late.shape[1]):
        message = f"n_components={n_components} must be between 1 and {min(early.shape[1], late.shape[1])}, the width of the embeddings."
        raise ValueError(message)
    if k >= (~own).sum():
        message = f"k={k} neighbours of {(~own).sum()} clones: choose fewer."
        raise ValueError(message)
    if own.sum() < MIN_CLONES or (~own).sum() < MIN_CLONES:
        message = (
            f"{len(clones)} clones have both an early and a late population, {own.sum()} of them for training and {(~own).sum()} to "
            f"estimate from; at least {MIN_CLONES} of each are needed."
        )
        raise ValueError(message)
    projection = Projection(early.loc[clones[own]].to_numpy(), late.loc[clones[own]].to_numpy(), n_components)
    x, y = projection(early.loc[clones[~own]].to_numpy(), late.loc[clones[~own]].to_numpy())
    local = ksg_information(x, y, k, seed)
    null = np.array([ksg_information(x, y[rng.permutation(len(y))], k, seed).mean() for _ in range(n_permutations)])
    raw = float(local.mean())
    return Information(
        raw - float(null.mean()),
        raw,
        null,
        float((1 + (null >= raw).sum()) / (1 + n_permutations)),
        _interval(x, y, k, raw - float(null.mean()), rng),
        pd.Series(local, index=clones[~own], name="information"),
        projection.n_components,
    )


def training_clones(clones: pd.Index, training: Sequence[str] | None, rng: np.random.Generator) -> np.ndarray:
    """Which clones are to learn from, ``(clones,)``; every second one, at random, if they are not named."""
    if training is None:
        return rng.permutation(len(clones)) % 2 == 0
    named = list(training)
    if named and all(isinstance(c, bool | np.bool_) for c in named):
        message = "training is a mask and must hold the names of clones, such as early.index[mask]."
        raise TypeError(message)
    return np.asarray(pd.Index([as_label(c) for c in clones]).isin([as_label(c) for c in named]))


def _interval(
    x: np.ndarray, y: np.ndarray, k: int, bits: float, rng: np.random.Generator, draws: int = 40
) -> tuple[float, float]:
    """From halves: repeated clones, as a bootstrap has, would be their own nearest neighbours."""
    n = len(x)
    if n < 4 * MIN_CLONES:
        return float("nan"), float("nan")
    halves = []
    for _ in range(draws):
        rows = rng.permutation(n)[: n // 2]
        shuffled = y[rows][rng.permutation(len(rows))]
        halves.append(ksg_information(x[rows], y[rows], k).mean() - ksg_information(x[rows], shuffled, k).mean())
    # a half is drawn without replacement from the clones: its variance around them is that of the whole around the truth
    error = 1.96 * float(np.std(halves, ddof=1))
    return bits - error, bits + error
