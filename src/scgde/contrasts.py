"""Linear contrasts between populations: what the cell latent should not lose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from scgde.components import CellComponents, nuisance_design, nuisance_effects
from scgde.data.streamed_table import StreamedTable

if TYPE_CHECKING:
    from scgde.data.cells import CellTable


MAX_CELLS = 200_000
"""Cells that contrasts are fitted on, at most."""

SATURATION = 4
"""Cells, in units of the median size of populations, from which on a population's weight hardly grows."""

N_PERMUTATIONS = 20
"""Permutations of labels that say how far chance alone separates populations."""


@dataclass(frozen=True)
class Contrasts:
    r"""Discriminant scores of cells, each weighted by how surely its direction differs between populations.

    The effects of batch and covariates are taken off cells' principal components. Within-population spread is whitened, directions
    are ordered by the variance ``b`` that population means have along them (less what sampling alone gives), and a direction's score
    is multiplied by :math:`(b / (b + 1/n_0))^{1/2}`, where ``n_0`` is the mean number of cells per population. This is linear
    discriminant analysis with empirical-Bayes shrinkage. Directions count as long as they separate populations more than
    permuted labels do: what chance alone separates, training would write into the latents of these very cells.

    Attributes
    ----------
    components
        Principal components of cells.
    centre
        Effects of batch and covariates on the components, which are taken off, ``(p, r)``; see
        :func:`scgde.components.nuisance_design`.
    axes
        Map from centred components to scores, ``(r, n)``.
    known
        Scores of all cells of a table in memory, ``(cells, n)``; None where they are computed as they are used.
    """

    components: CellComponents
    centre: np.ndarray
    axes: np.ndarray
    known: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Number of contrasts."""
        return self.axes.shape[1]

    def of(self, indices: np.ndarray, rows: Any, table: CellTable) -> np.ndarray:
        """Scores ``(len(indices), n)``, float32, of cells of a table given their rows."""
        if self.known is not None:
            return self.known[indices]
        return self._scores(self.components.scores(rows), table, indices)

    def _scores(self, components: np.ndarray, table: CellTable, indices: np.ndarray) -> np.ndarray:
        return ((components - nuisance_design(table, indices) @ self.centre) @ self.axes).astype(np.float32)

    @classmethod
    def fit(cls, table: CellTable, indices: np.ndarray, components: CellComponents, seed: int = 0) -> Contrasts | None:
        """Contrasts of the training cells ``indices``; None when fewer than two populations have replicates.

        They are fitted on at most :data:`MAX_CELLS` of them, as many of each population as there may be.
        """
        sizes = np.bincount(table.codes[indices][table.codes[indices] >= 0])
        if (sizes > 1).sum() < 2:
            return None
        used = some_of_each(table.codes, indices, MAX_CELLS, seed)
        rows, batch = components.transform(table, used), table.batch[used]
        design = nuisance_design(table, used)
        centre = nuisance_effects(design, rows)
        rows -= design @ centre
        if np.square(rows).mean() < 1e-10:  # logarithms of counts: cells that do not differ but by rounding
            return None
        axes = discriminant_axes(rows, table.codes[used], batch, float(sizes[sizes > 0].mean()), seed)
        if axes is None:
            return None
        return cls(components, centre, axes).for_table(table, indices)

    def for_table(self, table: CellTable, indices: np.ndarray) -> Contrasts:
        """The same contrasts with the scores of the cells ``indices`` kept, where the table is in memory."""
        if isinstance(table, StreamedTable):
            return self
        known = np.zeros((table.n_cells, self.width), dtype=np.float32)
        for block in np.array_split(indices, len(indices) // MAX_CELLS + 1):
            known[block] = self._scores(self.components.transform(table, block), table, block)
        return replace(self, known=known)

    def state(self) -> dict[str, Any]:
        """What the scores of cells are computed from, as numbers and tensors."""
        arrays = {"centre": self.centre, "axes": self.axes}
        parts = {name: getattr(self.components, name) for name in ("centre", "axes", "sd")}
        return {
            "target": self.components.target,
            "components": {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in parts.items()},
            **{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], table: CellTable, indices: np.ndarray) -> Contrasts:
        """Inverse of :meth:`state`, for the training cells ``indices`` of a table."""
        parts = {name: value.numpy() for name, value in state["components"].items()}
        components = CellComponents(state["target"], **parts)
        return cls(components, state["centre"].numpy(), state["axes"].numpy()).for_table(table, indices)


def some_of_each(codes: np.ndarray, indices: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """About ``limit`` of the indices, sorted: as many of each population as there may be, at least two."""
    if len(indices) <= limit:
        return indices
    shuffled = np.random.default_rng([seed, 23]).permutation(indices)
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(codes[order], prepend=codes[order[0]] - 1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[place < max(limit // len(starts), 2)])


def discriminant_axes(
    components: np.ndarray,
    codes: np.ndarray,
    batch: np.ndarray | None = None,
    mean_size: float | None = None,
    seed: int = 0,
) -> np.ndarray | None:
    """Axes of discriminant scores along which populations differ by more than chance.

    Parameters
    ----------
    components
        Cells, centred, ``(cells, r)``.
    codes
        Population of each cell, ``(cells,)``; negative for none.
    batch
        Batch of each cell, ``(cells,)``, within which permutations stay; one batch by default.
    mean_size
        Mean number of cells of populations, where not all are given.
    seed
        Seed of the permutations.

    Returns
    -------
    ``(r, n)``, or None where no direction is beyond the noise edge.
    """
    sizes = np.bincount(codes[codes >= 0])
    replicated = np.append(sizes > 1, False)[codes]  # code -1 is last
    labels, inverse, sizes = np.unique(codes[replicated], return_inverse=True, return_counts=True)
    x = components[replicated]
    if len(labels) < 2 or len(x) - len(labels) < 2:
        return None
    white, variance, rotation = _discriminants(x, inverse, sizes)
    residual = x - (_sums(x, inverse, len(labels)) / sizes[:, None])[inverse]
    chance = _chance(residual, inverse, sizes, None if batch is None else batch[replicated], seed)
    # one after another: once a direction is not beyond chance, no later one is believed
    n = int(np.cumprod(variance > chance.max(0)).sum())
    if not n:
        return None
    signal = np.maximum(variance - chance.mean(0), 0.0)[:n]
    weight = np.sqrt(signal / (signal + 1 / (sizes.mean() if mean_size is None else mean_size)))
    return white @ rotation[:, :n] * weight


def _discriminants(x: np.ndarray, codes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitening by the spread within populations ``(r, r)``, variances between them ``(r,)``, falling, and their axes ``(r, r)``."""
    residual = x - (_sums(x, codes, len(sizes)) / sizes[:, None])[codes]
    r, freedom = x.shape[1], len(x) - len(sizes)
    within = residual.T @ residual / freedom
    # few residual degrees of freedom make the small eigenvalues far too small; pull towards a multiple of identity
    pull = min(r / (r + freedom), 0.99)
    within = (1 - pull) * within + pull * np.trace(within) / r * np.eye(r)
    values, axes = np.linalg.eigh(within)
    white = axes / np.sqrt(np.maximum(values, 1e-6 * max(values[-1], 1e-300)))
    variance, rotation = np.linalg.eigh(between_covariance(x @ white, codes, sizes))
    return white, variance[::-1], rotation[:, ::-1]


def between_covariance(x: np.ndarray, codes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    r"""Unbiased covariance of population means, ``(r, r)``: products of *different* cells of a population only.

    .. math:: \sum_k v_k \{(m_k - \bar m)(m_k - \bar m)' - (1 - v_k) S_k / n_k\} / \sum_k v_k (1 - v_k)

    with covariances :math:`S_k` of cells. This is the average over all ways to halve each population of the product of the means of
    its halves. Its expectation is zero where populations have one law. The weights :math:`v_k`, inverse variances of such products of
    populations that differ by a variance of one over :data:`SATURATION` median sizes, keep small populations from having their
    noise in the leading directions.
    """
    weight = (sizes / (sizes + SATURATION * np.median(sizes))) ** 2
    weight = weight / weight.sum()
    means = _sums(x, codes, len(sizes)) / sizes[:, None]
    residual = x - means[codes]
    centred = means - weight @ means
    share = weight * (1 - weight) / (sizes * (sizes - 1))
    noise = (residual * share[codes][:, None]).T @ residual
    return ((centred * weight[:, None]).T @ centred - noise) / (weight * (1 - weight)).sum()


def _chance(
    residual: np.ndarray, codes: np.ndarray, sizes: np.ndarray, batch: np.ndarray | None, seed: int
) -> np.ndarray:
    """Variances between populations, falling, under :data:`N_PERMUTATIONS` permutations of labels, ``(permutations, r)``.

    Cells' deviations from their population's mean are permuted, within batches: they hold no difference between populations. All is
    computed anew, the whitening too, since few cells make that noisy. Comparing variances rank by rank with those of permuted data is
    known as parallel analysis (Horn 1965, Psychometrika 30, 179).
    """
    rng = np.random.default_rng([seed, 31])
    residual = residual * np.sqrt(sizes / (sizes - 1))[codes][:, None]
    batch = np.zeros(len(codes), dtype=np.int64) if batch is None else batch
    order = np.argsort(batch, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(batch[order])) + 1)
    chance, permuted = [], codes.copy()
    for _ in range(N_PERMUTATIONS):
        for rows in groups:
            permuted[rows] = codes[rng.permutation(rows)]
        chance.append(_discriminants(residual, permuted, sizes)[1])
    return np.stack(chance)


def _sums(x: np.ndarray, codes: np.ndarray, n: int) -> np.ndarray:
    """Sums of rows by code, ``(n, r)``."""
    return sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(n, len(codes))) @ x
