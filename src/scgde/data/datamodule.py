"""The Lightning data module: cells first, sets of cells afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

from scgde._constants import BATCH_KEYS
from scgde._sparse import supports_sparse
from scgde.data.cells import as_tensor
from scgde.data.loader import BatchLoader, CellStream, bounded
from scgde.data.sampler import PopulationSampler, SetBatch
from scgde.data.streamed_table import StreamedTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from scgde.contrasts import Contrasts
    from scgde.data.cells import CellTable
    from scgde.data.latents import Latents

MAX_VALIDATION_CELLS = 20_000
"""Cells that the cell phase is validated on, at most."""

MAX_VALIDATION_SETS = 1000
"""Populations that the population phase is validated on, at most."""


class PopulationDataModule(pl.LightningDataModule):
    """Batches for the two phases of training.

    In the *cell phase* a batch holds cells drawn at random from all training cells, those in no population included.
    In the *population phase*, which starts once :meth:`set_latent` has been given the cell latents, a batch holds K
    ragged sets of latents, flat, with a code per row: no padding, no replication. Validation follows the same
    phases; sets then are encoded from training cells and scored on validation cells of the same population (split by
    cell) or encoded from one half of a held-out population and scored on the other.

    Parameters
    ----------
    table
        Cells of the training AnnData.
    train_idx, val_idx, test_idx
        Cells of each part; kept under these names, which scvi-tools' runner reads.
    batch_size
        Cells per batch of the cell phase.
    populations_per_batch, cells_per_population, mixing
        See :class:`~scgde.data.PopulationSampler`.
    sparse
        Whether rows of a sparse matrix stay sparse.
    seed
        Seed of batch order; what an epoch draws depends on (seed, epoch) alone.
    """

    def __init__(
        self,
        table: CellTable,
        train_idx: np.ndarray,
        val_idx: np.ndarray,
        test_idx: np.ndarray,
        *,
        batch_size: int = 512,
        populations_per_batch: int = 32,
        cells_per_population: int = 64,
        mixing: float = 0.0,
        sparse: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sparse = sparse
        self.table = table
        self.train_idx, self.val_idx, self.test_idx = train_idx, val_idx, test_idx
        self.n_train, self.n_val = len(train_idx), len(val_idx)
        self.batch_size = min(batch_size, max(self.n_train, 1))
        self.seed = seed
        self.latent: Latents | None = None
        self.contrasts: Contrasts | None = None
        self.stream = CellStream(table, train_idx, seed) if isinstance(table, StreamedTable) else None
        self.sampler = PopulationSampler(
            table.codes[train_idx],
            populations_per_batch=populations_per_batch,
            cells_per_population=cells_per_population,
            mixing=mixing,
            seed=seed,
        )

    @property
    def _processes(self) -> tuple[int, int]:
        """Number of this process, and of all that train together."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def n_cell_batches(self) -> int:
        """Batches in an epoch of the cell phase, for each of the processes that train together."""
        return max(int(np.ceil(self.n_train / (self.batch_size * self._processes[1]))), 1)

    @property
    def n_set_batches(self) -> int:
        """Batches in an epoch of the population phase, for each of the processes that train together."""
        return self.sampler.n_batches(self._processes[1])

    def set_contrasts(self, contrasts: Contrasts | None) -> None:
        """Give the contrasts of the training cells."""
        self.contrasts = contrasts

    def set_latent(self, latents: Latents) -> None:
        """Switch to the population phase with the latents of all cells."""
        self.latent = latents

    def train_dataloader(self) -> BatchLoader:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        rank, world_size = self._processes
        if self.latent is not None:
            sets = self.sampler.epoch(epoch, rank, world_size)
            return BatchLoader(len(sets), lambda start: (self.set_batch(self._of_table(s)) for s in sets[start:]))
        n, stream = self.n_cell_batches, self.stream
        if stream is not None:
            return BatchLoader(
                n,
                lambda start: (
                    self.cell_batch(cells, rows, with_contrasts=True)
                    for cells, rows in stream.batches(epoch, n, start, rank, world_size)
                ),
            )
        batches = self._cell_batches(epoch)[rank::world_size]
        return BatchLoader(n, lambda start: (self.cell_batch(b, with_contrasts=True) for b in batches[start:]))

    def val_dataloader(self) -> BatchLoader | list:
        if self.n_val == 0:
            return []
        rank, world_size = self._processes
        if self.latent is None:
            runs = None if self.stream is None else self.stream.bounds
            cells = bounded(self.val_idx, MAX_VALIDATION_CELLS, self.seed, runs)
            batches = np.array_split(cells, int(np.ceil(len(cells) / self.batch_size)))
            batches = batches[rank::world_size] or batches  # no process may be without
            return BatchLoader(len(batches), lambda start: (self.cell_batch(b) for b in batches[start:]))
        sets = self._validation_sets()
        sets = sets[rank::world_size] or sets
        return BatchLoader(len(sets), lambda start: (self.set_batch(*s) for s in sets[start:]))

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Make sparse rows dense where the device has no sparse tensors."""
        if self.sparse and self.trainer is not None and not supports_sparse(self.trainer.strategy.root_device):
            rows = batch.get(BATCH_KEYS.X)
            if rows is not None and rows.layout == torch.sparse_csr:
                batch = {**batch, BATCH_KEYS.X: rows.to_dense()}
        return batch

    def cell_batch(self, indices: np.ndarray, rows: Any = None, *, with_contrasts: bool = False) -> dict[str, Tensor]:
        """Rows and covariates of cells, as tensors; ``rows`` are those of the cells where they have been read."""
        table = self.table
        rows = table.matrix[indices] if rows is None else rows
        batch = {
            BATCH_KEYS.X: as_tensor(rows, sparse=self.sparse),
            BATCH_KEYS.BATCH: torch.from_numpy(table.batch[indices])[:, None],
        }
        if table.categorical.shape[1]:
            batch[BATCH_KEYS.CATEGORICAL] = torch.from_numpy(table.categorical[indices])
        if table.continuous.shape[1]:
            batch[BATCH_KEYS.CONTINUOUS] = torch.from_numpy(table.continuous[indices])
        if table.size_factor is not None:
            batch[BATCH_KEYS.SIZE_FACTOR] = torch.from_numpy(table.size_factor[indices])[:, None]
        if with_contrasts and self.contrasts is not None:
            batch[BATCH_KEYS.CONTRASTS] = torch.from_numpy(self.contrasts.of(indices, rows, table))
        return batch

    def set_batch(self, sets: SetBatch, scored: np.ndarray | None = None) -> dict[str, Tensor]:
        """Latents of ragged sets; ``scored`` marks the cells that are scored and not encoded (validation)."""
        assert self.latent is not None
        mean, sd = self.latent.rows(sets.rows)
        batch = {
            BATCH_KEYS.U_MEAN: mean,
            BATCH_KEYS.U_SD: sd,
            BATCH_KEYS.SEGMENT: torch.from_numpy(sets.segment),
            BATCH_KEYS.SOURCES: torch.from_numpy(sets.sources),
            BATCH_KEYS.SOURCE_WEIGHTS: torch.from_numpy(sets.weights),
        }
        if scored is not None:
            batch[BATCH_KEYS.SCORED] = torch.from_numpy(scored)
        return batch

    def training_sets(self, n: int) -> Iterator[dict[str, Tensor]]:
        """Batches of about ``n`` training sets in all, as the first epochs hold them."""
        left, epoch = n, 0
        while left > 0:
            for sets in self.sampler.epoch(epoch):
                yield self.set_batch(self._of_table(sets))
                left -= len(sets.sources)
                if left <= 0:
                    return
            epoch += 1

    def _of_table(self, sets: SetBatch) -> SetBatch:
        """Sets drawn among the training cells, by rows of the table."""
        return SetBatch(self.train_idx[sets.rows], sets.segment, sets.sources, sets.weights)

    def _cell_batches(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.train_idx)
        # equal shares: a last batch of a few cells would take a full optimiser step on them
        return np.array_split(order, self.n_cell_batches * self._processes[1])

    def _validation_sets(self) -> list[tuple[SetBatch, np.ndarray]]:
        rng = np.random.default_rng(self.seed)
        codes = self.table.codes
        train = _rows_by_population(codes, self.train_idx)
        validation = _rows_by_population(codes, self.val_idx)
        limit = self.sampler.cells_per_population
        drawn = []
        chosen = bounded(np.array(sorted(validation), dtype=np.int64), MAX_VALIDATION_SETS, self.seed).tolist()
        for population in chosen:
            rows = validation[population]
            context = train.get(population)
            if context is None:  # a held-out population: one half is encoded, the other scored
                if len(rows) < 2:
                    continue
                shuffled = rng.permutation(rows)
                context, rows = shuffled[::2], shuffled[1::2]
            context, rows = (r if len(r) <= limit else rng.choice(r, limit, replace=False) for r in (context, rows))
            drawn.append((population, context, rows))
        k = self.sampler.populations_per_batch
        return [_validation_batch(drawn[i : i + k]) for i in range(0, len(drawn), k)]


def _rows_by_population(codes: np.ndarray, indices: np.ndarray) -> dict[int, np.ndarray]:
    order = indices[np.argsort(codes[indices], kind="stable")]
    order = order[codes[order] >= 0]
    labels, starts = np.unique(codes[order], return_index=True)
    groups = np.split(order, starts[1:]) if len(labels) else []
    return dict(zip(labels.tolist(), groups, strict=True))


def _validation_batch(drawn: list[tuple[int, np.ndarray, np.ndarray]]) -> tuple[SetBatch, np.ndarray]:
    rows, segment, scored, sources = [], [], [], []
    for k, (population, context, target) in enumerate(drawn):
        rows.append(np.concatenate([context, target]))
        segment.append(np.full(len(context) + len(target), k))
        scored.append(np.repeat([False, True], [len(context), len(target)]))
        sources.append(np.full(PopulationSampler.N_MIXED, population))
    weights = np.zeros((len(drawn), PopulationSampler.N_MIXED), dtype=np.float32)
    weights[:, 0] = 1.0
    batch = SetBatch(np.concatenate(rows), np.concatenate(segment), np.stack(sources), weights)
    return batch, np.concatenate(scored)
