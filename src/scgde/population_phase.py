"""From cells to sets: what is computed between the two phases of training, and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from scgde._segments import segment_mean
from scgde.data.latents import FileLatents, Latents
from scgde.data.streamed_table import StreamedTable
from scgde.inference import encode_blocks, encode_cells
from scgde.moments import PopulationMoments

if TYPE_CHECKING:
    from scgde.data import CellTable, PopulationDataModule
    from scgde.module import GDEModule

MAX_SCALE_SAMPLE = 2_000_000
"""Entries of the sample of rows that the scale of the latent is measured on, at most."""

MAX_DEPTH_SAMPLE = 20_000_000
"""Entries of the sample of rows that show how latents depend on depth, at most."""

MAX_DEPTH_CELLS = 8000
"""Cells of it, at most."""

MAX_LIBRARY_SAMPLE = 50_000
"""Cells that the regression of depth on state is fitted to, at most."""

MAX_FIT_CELLS = 400_000
"""Cells that an encoder takes its closed form from, at most: where there are more, a random choice of whole populations."""

MAX_FIT_CELLS_EACH = 20_000
"""Cells of each of them at most, where there are more."""

CELLS_PER_BLOCK = 50_000
"""Cells whose latents are looked at together, about."""


def encode_table(module: GDEModule, table: CellTable) -> Latents:
    """Latents of all cells of a table: in a file where the cells are on disk."""
    if not isinstance(table, StreamedTable):
        return Latents(*encode_cells(module, table, np.arange(table.n_cells)))
    latents = FileLatents(table.n_cells, module.observation.n_latent)
    for start, mean, sd in encode_blocks(module, table, np.arange(table.n_cells)):
        latents.write(start, mean, sd)
        table.totals(np.arange(start, start + len(mean)))  # which it keeps: their rows are at hand now
    latents.flush()
    return latents


def prepare_population_phase(
    module: GDEModule, data: PopulationDataModule, *, further: bool = False, resumed: bool = False
) -> None:
    """Scale the latent, encode all cells, hand their latents to the data module and fit what has a closed form.

    With ``further`` encoder and skeleton stay as they have been trained. With ``resumed`` all of the module does, and only what
    training learns from is computed again.
    """
    table = data.table
    if not resumed:
        _fit_scale(module, data)
        _fit_depth(module, data)
    latents = encode_table(module, table)
    data.set_latent(latents)
    used = np.zeros(table.n_cells, dtype=bool)
    used[data.train_idx] = True
    n_populations = len(table.labels)
    trains = np.zeros(n_populations, dtype=bool)
    trains[table.codes[used & (table.codes >= 0)]] = True
    # held-out populations have moments too, as targets of validation only
    held_out = np.zeros_like(used)
    held_out[data.val_idx] = True
    used |= held_out & (table.codes >= 0) & ~trains[table.codes]
    rows = np.flatnonzero(used & (table.codes >= 0))
    device = module.device
    if module.observation.is_count and not resumed:
        # cells in no population are often debris, and never generated
        own = table.sample(data.train_idx[table.codes[data.train_idx] >= 0], MAX_LIBRARY_SAMPLE, 0)
        mean, sd = latents.rows(own)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
        library = table.library(own, float(module.observation.size_factor_gain))
        module.observation.fit_library((mean + sd * noise).to(device), torch.from_numpy(library[:, None]).to(device))
    moments, extra = population_moments(latents, rows, table.codes, n_populations)
    chosen = _fitted_cells(rows[trains[table.codes[rows]]], table.codes)
    mean, sd = latents.rows(chosen)
    module.fit_populations(
        moments.to(device),
        extra.to(device),
        mean.to(device),
        sd.to(device),
        torch.from_numpy(table.codes[chosen]).to(device),
        torch.from_numpy(trains).to(device),
        set_size=data.sampler.cells_per_population,
        further=further or resumed,
    )


def population_moments(
    latents: Latents, rows: np.ndarray, codes: np.ndarray, n_populations: int
) -> tuple[PopulationMoments, torch.Tensor]:
    """Moments of populations from the cells ``rows``, whole populations at a time, and mean posterior variances ``(K, d)``."""
    d = latents.n_latent
    parts = PopulationMoments(
        torch.zeros(n_populations), torch.zeros((n_populations, d)), torch.zeros((n_populations, d, d))
    )
    extra = torch.zeros((n_populations, d))
    order = rows[np.argsort(codes[rows], kind="stable")]
    sizes = np.bincount(codes[order], minlength=n_populations)
    block = np.cumsum(sizes) // CELLS_PER_BLOCK
    start = 0
    for number in np.unique(block):
        own = np.flatnonzero(block == number)
        stop = start + int(sizes[own].sum())
        # in the order of cells: sums of float32 depend on it
        cells = np.sort(order[start:stop])
        mean, sd = latents.rows(cells)
        segment = torch.from_numpy(codes[cells] - own[0])
        moments = PopulationMoments.from_cells(mean, segment, len(own))
        where = slice(int(own[0]), int(own[-1]) + 1)
        parts.n[where], parts.mean[where], parts.cov[where] = moments.n, moments.mean, moments.cov
        extra[where] = segment_mean(sd.square(), segment, len(own))
        start = stop
    return parts, extra


def _fitted_cells(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Training cells that the encoder's closed form is of: all, or those of some populations."""
    if len(rows) <= MAX_FIT_CELLS:
        return rows
    rng = np.random.default_rng(29)
    shuffled = rng.permutation(rows)
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    chosen, total = [], 0
    for i in rng.permutation(len(groups)):
        chosen.append(groups[i][:MAX_FIT_CELLS_EACH])
        total += len(chosen[-1])
        if total >= MAX_FIT_CELLS:
            break
    return np.sort(np.concatenate(chosen))


def finish_population_phase(module: GDEModule, data: PopulationDataModule, n_sets: int = 2048) -> None:
    """Fit the skeleton to what the set encoder has become, on sets as in training."""
    module.fit_skeleton(
        {name: value.to(module.device) for name, value in batch.items()} for batch in data.training_sets(n_sets)
    )


def _fit_scale(module: GDEModule, data: PopulationDataModule) -> None:
    """Scale the axes of the latent by a sample of the training cells that are in populations."""
    from scgde.generation import make_context

    table = data.table
    rows = data.train_idx[table.codes[data.train_idx] >= 0]
    rows = table.sample(rows, min(max(MAX_SCALE_SAMPLE // table.matrix.shape[1], 100), 1000), 0)
    context = make_context(
        table.library(rows, float(module.observation.size_factor_gain)),
        table.batch[rows],
        table.categorical[rows],
        table.continuous[rows],
        module.device,
    )
    module.observation.fit_scale(encode_cells(module, table, rows)[0].to(module.device), context)


def _fit_depth(module: GDEModule, data: PopulationDataModule) -> None:
    """Make latents independent of depth, as a sample of the training cells that are in populations shows."""
    table = data.table
    if not module.observation.is_count:
        return
    rows = data.train_idx[table.codes[data.train_idx] >= 0]
    limit = min(max(MAX_DEPTH_SAMPLE // table.matrix.shape[1], 500), MAX_DEPTH_CELLS)
    module.observation.fit_depth(sp.csr_matrix(table.matrix[table.sample(rows, limit, 0)], dtype=np.float32))
