"""The Lightning data module: cells first, sets of cells afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from scgde._constants import BATCH_KEYS
from scgde._sparse import supports_sparse
from scgde.data.sampler import PopulationSampler, SetBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from scgde.data.cells import CellTable


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
        self.latent: tuple[Tensor, Tensor] | None = None
        self.contrasts: np.ndarray | None = None
        self.sampler = PopulationSampler(
            table.codes[train_idx],
            populations_per_batch=populations_per_batch,
            cells_per_population=cells_per_population,
            mixing=mixing,
            seed=seed,
        )

    @property
    def n_cell_batches(self) -> int:
        """Batches in an epoch of the cell phase."""
        return max(int(np.ceil(self.n_train / self.batch_size)), 1)

    @property
    def n_set_batches(self) -> int:
        """Batches in an epoch of the population phase."""
        return len(self.sampler)

    def set_contrasts(self, contrasts: np.ndarray | None) -> None:
        """Give the contrasts of the training cells, ``(n_train, n)``, in the order of ``train_idx``."""
        if contrasts is not None:
            self.contrasts = np.zeros((self.table.n_cells, contrasts.shape[1]), dtype=np.float32)
            self.contrasts[self.train_idx] = contrasts

    def set_latent(self, mean: Tensor, sd: Tensor) -> None:
        """Switch to the population phase with the latents of all cells, each ``(cells, n_latent)``."""
        self.latent = (mean, sd)

    def train_dataloader(self) -> DataLoader:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        batches: list = self.sampler.epoch(epoch) if self.latent is not None else self._cell_batches(epoch)
        return _loader(self, batches)

    def val_dataloader(self) -> DataLoader | list:
        if self.n_val == 0:
            return []
        batches: list
        if self.latent is None:
            batches = [_Scored(b) for b in np.array_split(self.val_idx, int(np.ceil(self.n_val / self.batch_size)))]
        else:
            batches = self._validation_sets()
        return _loader(self, batches)

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Make sparse rows dense where the device has no sparse tensors."""
        if self.sparse and self.trainer is not None and not supports_sparse(self.trainer.strategy.root_device):
            rows = batch.get(BATCH_KEYS.X)
            if rows is not None and rows.layout == torch.sparse_csr:
                batch = {**batch, BATCH_KEYS.X: rows.to_dense()}
        return batch

    def cell_batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Rows and covariates of cells, as tensors."""
        table = self.table
        batch = {
            BATCH_KEYS.X: table.tensor(indices, sparse=self.sparse),
            BATCH_KEYS.BATCH: torch.from_numpy(table.batch[indices])[:, None],
        }
        if table.categorical.shape[1]:
            batch[BATCH_KEYS.CATEGORICAL] = torch.from_numpy(table.categorical[indices])
        if table.continuous.shape[1]:
            batch[BATCH_KEYS.CONTINUOUS] = torch.from_numpy(table.continuous[indices])
        if table.size_factor is not None:
            batch[BATCH_KEYS.SIZE_FACTOR] = torch.from_numpy(table.size_factor[indices])[:, None]
        return batch

    def set_batch(self, sets: SetBatch, scored: np.ndarray | None = None) -> dict[str, Tensor]:
        """Latents of ragged sets; ``scored`` marks the cells that are scored and not encoded (validation)."""
        assert self.latent is not None
        mean, sd = self.latent
        rows = torch.from_numpy(sets.rows)
        batch = {
            BATCH_KEYS.U_MEAN: mean[rows],
            BATCH_KEYS.U_SD: sd[rows],
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
        return np.array_split(order, self.n_cell_batches)

    def _validation_sets(self) -> list[tuple[SetBatch, np.ndarray]]:
        rng = np.random.default_rng(self.seed)
        codes = self.table.codes
        train = _rows_by_population(codes, self.train_idx)
        validation = _rows_by_population(codes, self.val_idx)
        limit = self.sampler.cells_per_population
        drawn = []
        for population, rows in validation.items():
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


class _Scored(NamedTuple):
    """Cells of the cell phase that validate, and so have no contrasts to learn."""

    indices: np.ndarray


class _Batches(Dataset):
    """One item is one whole batch."""

    def __init__(self, module: PopulationDataModule, batches: list) -> None:
        self.module = module
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        batch = self.batches[i]
        if isinstance(batch, SetBatch):
            return self.module.set_batch(self.module._of_table(batch))
        if isinstance(batch, _Scored):
            return self.module.cell_batch(batch.indices)
        if isinstance(batch, tuple):
            return self.module.set_batch(*batch)
        tensors = self.module.cell_batch(batch)
        if self.module.contrasts is not None:
            tensors[BATCH_KEYS.CONTRASTS] = torch.from_numpy(self.module.contrasts[batch])
        return tensors


def _loader(module: PopulationDataModule, batches: list) -> DataLoader:
    # a loader draws a base seed for its workers: from a generator of its own, not from the global one
    generator = torch.Generator().manual_seed(module.seed)
    return DataLoader(_Batches(module, batches), batch_size=None, shuffle=False, generator=generator)


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
