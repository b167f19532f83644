"""Which populations, and which of their cells, form a training batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SetBatch:
    """K sets of cells, ragged.

    Attributes
    ----------
    rows
        Row of each cell in the table the sampler was built from, ``(cells,)``.
    segment
        Set of each cell, ``(cells,)``, from 0 to K - 1.
    sources
        Populations that each set was drawn from, ``(K, c)``; the first is repeated with weight zero where there are
        fewer than ``c``.
    weights
        Realised share of each source in its set, ``(K, c)``; rows sum to one.
    """

    rows: np.ndarray
    segment: np.ndarray
    sources: np.ndarray
    weights: np.ndarray


class PopulationSampler:
    """Draw batches of K populations with up to M cells each.

    Contract: within an epoch every population comes once before any comes twice; a population of at most M cells is
    used whole, a larger one gives M distinct cells drawn anew; no cell is ever replicated within a set. With
    probability ``mixing`` a set is instead a *mixture*: a Dirichlet(1, 1, 1)-weighted draw, without replacement, from
    up to three populations (GDE's set mixer), which turns a few populations into a continuum of laws to learn from.
    What an epoch draws depends on (seed, epoch) alone.

    Parameters
    ----------
    codes
        Population code of each row, ``(rows,)``; negative codes never enter a set.
    populations_per_batch, cells_per_population
        K and M.
    mixing
        Probability that a set is a mixture.
    seed
        Seed of all draws.
    min_cells
        Populations with fewer cells are left out.
    """

    N_MIXED = 3

    def __init__(
        self,
        codes: np.ndarray,
        *,
        populations_per_batch: int = 32,
        cells_per_population: int = 64,
        mixing: float = 0.0,
        seed: int = 0,
        min_cells: int = 1,
    ) -> None:
        for name, value in (
            ("populations_per_batch", populations_per_batch),
            ("cells_per_population", cells_per_population),
        ):
            if value < 1 or int(value) != value:
                message = f"{name}={value!r} must be a positive integer."
                raise ValueError(message)
        if not 0 <= mixing <= 1:
            message = f"mixing={mixing!r} must be a probability between 0 and 1."
            raise ValueError(message)
        order = np.argsort(codes, kind="stable")
        order = order[codes[order] >= 0]
        labels, starts = np.unique(codes[order], return_index=True)
        groups = np.split(order, starts[1:]) if len(labels) else []
        self._groups = {int(k): g for k, g in zip(labels, groups, strict=True) if len(g) >= min_cells}
        self.populations = np.array(sorted(self._groups), dtype=np.int64)
        if len(self.populations) == 0:
            message = f"No population has {min_cells} or more cells to draw from."
            raise ValueError(message)
        self.n_cells = sum(len(g) for g in self._groups.values())
        self.populations_per_batch = populations_per_batch
        self.cells_per_population = cells_per_population
        self.mixing = mixing if len(self.populations) > 1 else 0.0
        self.seed = seed

    def __len__(self) -> int:
        """Batches in an epoch of one process."""
        return self.n_batches()

    def n_batches(self, world_size: int = 1) -> int:
        """Batches of each process in an epoch: about one pass over populations and over cells, whichever is longer."""
        return max(int(np.ceil(max(self._passes(world_size)))), 1)

    def _passes(self, world_size: int) -> tuple[float, float]:
        """Batches that hold all populations once, and all cells."""
        together = self.populations_per_batch * world_size
        return len(self.populations) / together, self.n_cells / (together * self.cells_per_population)

    def epoch(self, epoch: int, rank: int = 0, world_size: int = 1) -> list[SetBatch]:
        """All batches of an epoch.

        Of several processes each takes other populations, as many batches of them as the others.
        """
        rng = np.random.default_rng([self.seed, epoch])
        n_batches = self.n_batches(world_size)
        n_needed = n_batches * self.populations_per_batch * world_size
        passes = int(np.ceil(n_needed / len(self.populations)))
        queue = np.concatenate([rng.permutation(self.populations) for _ in range(passes)])[:n_needed]
        if world_size == 1:
            # with few populations one batch holds a population several times over, each time with other cells or mixtures
            return [self._draw(chunk, rng) for chunk in queue.reshape(n_batches, -1)]
        by_population, by_cell = self._passes(world_size)
        if by_population >= by_cell and len(self.populations) >= n_batches * world_size:
            queue = queue[: len(self.populations)]
        rng = np.random.default_rng([self.seed, epoch, rank])
        return [self._draw(chunk, rng) for chunk in np.array_split(queue, n_batches * world_size)[rank::world_size]]

    def _draw(self, populations: np.ndarray, rng: np.random.Generator) -> SetBatch:
        rows, sources, weights = [], [], []
        for population in populations:
            if self.mixing and rng.random() < self.mixing:
                cells, source, weight = self._mixture(population, rng)
            else:
                cells = self._cells(population, self.cells_per_population, rng)
                source = np.full(self.N_MIXED, population)
                weight = np.array([1.0] + [0.0] * (self.N_MIXED - 1))
            rows.append(cells)
            sources.append(source)
            weights.append(weight)
        segment = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        return SetBatch(np.concatenate(rows), segment, np.stack(sources), np.stack(weights).astype(np.float32))

    def _cells(self, population: int, n: int, rng: np.random.Generator) -> np.ndarray:
        group = self._groups[int(population)]
        return group if len(group) <= n else rng.choice(group, n, replace=False)

    def _mixture(self, first: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n_sources = min(self.N_MIXED, len(self.populations))
        others = rng.choice(self.populations[self.populations != first], n_sources - 1, replace=False)
        chosen = np.concatenate([[first], others])
        share = rng.dirichlet(np.ones(n_sources))
        sizes = np.array([len(self._groups[int(k)]) for k in chosen])
        # as many cells as the shares allow without using one twice
        total = min(self.cells_per_population, max(int((sizes / np.maximum(share, 1e-9)).min()), 1))
        counts = np.minimum(rng.multinomial(total, share), sizes)
        if counts.sum() == 0:
            counts[0] = 1
        cells = [self._cells(k, c, rng) for k, c in zip(chosen, counts, strict=True) if c > 0]
        source = np.full(self.N_MIXED, first)
        weight = np.zeros(self.N_MIXED)
        source[:n_sources] = chosen
        weight[:n_sources] = counts / counts.sum()
        return np.concatenate(cells), source, weight
