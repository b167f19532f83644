"""Linear contrasts between populations: what the cell latent should not lose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from scgde.components import CellComponents
from scgde.data.streamed_table import StreamedTable

if TYPE_CHECKING:
    from scgde.data.cells import CellTable


MAX_CELLS = 200_000
"""Cells that contrasts are fitted on, at most."""


@dataclass(frozen=True)
class Contrasts:
    r"""Discriminant scores of cells, each weighted by how surely its direction differs between populations.

    Cells' principal components are centred by batch. Within-population spread is whitened, directions are ordered by the variance ``b`` that population means have along them (less what sampling
    alone gives), and a direction's score is multiplied by :math:`(b / (b + 1/n_0))^{1/2}`, where ``n_0`` is the mean
    number of cells per population: one that populations do not differ along is shrunk to nothing. This is linear
    discriminant analysis with empirical-Bayes shrinkage.

    Attributes
    ----------
    components
        Principal components of cells.
    centre
        What is taken off the components of the cells of each batch, ``(n_batch, r)``.
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

    def of(self, indices: np.ndarray, rows: Any, batch: np.ndarray) -> np.ndarray:
        """Scores ``(len(indices), n)``, float32, of cells given their rows and batch codes."""
        if self.known is not None:
            return self.known[indices]
        scores = self.components.scores(rows)
        return ((scores - self.centre[batch]) @ self.axes).astype(np.float32)

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
        centre = np.zeros((int(table.batch.max()) + 1, rows.shape[1]))
        for b in np.unique(batch):
            centre[b] = rows[batch == b].mean(0)
            rows[batch == b] -= centre[b]
        axes = discriminant_axes(rows, table.codes[used], float(sizes[sizes > 0].mean()))
        if axes is None:
            return None
        return cls(components, centre + rows.mean(0), axes).for_table(table, indices)

    def for_table(self, table: CellTable, indices: np.ndarray) -> Contrasts:
        """The same contrasts with the scores of the cells ``indices`` kept, where the table is in memory."""
        if isinstance(table, StreamedTable):
            return self
        known = np.zeros((table.n_cells, self.width), dtype=np.float32)
        for block in np.array_split(indices, len(indices) // MAX_CELLS + 1):
            known[block] = (self.components.transform(table, block) - self.centre[table.batch[block]]) @ self.axes
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


def discriminant_scores(components: np.ndarray, codes: np.ndarray) -> np.ndarray | None:
    """Shrunk discriminant scores of ``components`` ``(cells, r)`` given population codes (negative: none)."""
    axes = discriminant_axes(components, codes)
    return None if axes is None else (components - components.mean(0)) @ axes


def discriminant_axes(components: np.ndarray, codes: np.ndarray, mean_size: float | None = None) -> np.ndarray | None:
    """Axes ``(r, n)`` of the scores; ``mean_size`` is the mean number of cells of populations, where not all are given."""
    assigned = codes >= 0
    labels, inverse, sizes = np.unique(codes[assigned], return_inverse=True, return_counts=True)
    one_hot = sp.csr_matrix((np.ones(len(inverse)), (inverse, np.arange(len(inverse)))))
    means = (one_hot @ components[assigned]) / sizes[:, None]
    residual = components[assigned] - means[inverse]
    freedom = len(inverse) - len(labels)
    r = components.shape[1]
    if freedom < 2:
        return None
    within = residual.T @ residual / freedom
    # few residual degrees of freedom make the small eigenvalues far too small; pull towards a multiple of identity
    pull = min(r / (r + freedom), 0.99)
    within = (1 - pull) * within + pull * np.trace(within) / r * np.eye(r)
    values, axes = np.linalg.eigh(within)
    white = axes / np.sqrt(np.maximum(values, 1e-6 * values[-1]))
    centred = (means - means.mean(0)) @ white
    between = centred.T @ centred / max(len(labels) - 1, 1) - np.eye(r) * np.mean(1 / sizes)
    variance, rotation = np.linalg.eigh(between)
    variance, rotation = variance[::-1], rotation[:, ::-1]
    keep = variance > 0
    if not keep.any():
        return None
    weight = np.sqrt(variance[keep] / (variance[keep] + 1 / (sizes.mean() if mean_size is None else mean_size)))
    return white @ rotation[:, keep] * weight
