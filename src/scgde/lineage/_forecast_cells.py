"""Later cells of forecast embeddings: taken from training lineages, generated, or moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde._constants import OWN_PREFIX
from scgde.data.populations import population_labels
from scgde.inference import coordinate_names
from scgde.perturbation._cells import CellMover, SourceCells, joined

if TYPE_CHECKING:
    from anndata import AnnData

    from scgde.lineage._steps import LineagePopulations
    from scgde.lineage.forecast import Forecaster

N_DRAWS = 25
"""Later populations that the cells of one forecast are drawn from, at most."""

MAX_DRAWN = 4000
"""Populations that are generated at a time."""


def cells_by_lineage(forecaster: Forecaster, adata: AnnData) -> dict[tuple[str, int], np.ndarray]:
    """Rows of the cells of each lineage and place of its time."""
    lineage = population_labels(adata.obs, forecaster.lineage_keys).to_numpy()
    time = forecaster.times.positions(adata.obs[forecaster.time_key])
    known = np.flatnonzero(pd.notna(lineage) & (time >= 0))
    groups = pd.Series(known).groupby([lineage[known].astype(str), time[known]]).indices
    return {key: known[rows] for key, rows in groups.items()}


def training_cells(forecaster: Forecaster) -> dict[tuple[str, int], np.ndarray]:
    """The same of the cells that trained the model."""
    model = forecaster.model
    assert model.adata is not None
    is_used = np.zeros(model.adata.n_obs, dtype=bool)
    is_used[np.concatenate([model.train_indices_, model.validation_indices_])] = True
    groups = {key: rows[is_used[rows]] for key, rows in cells_by_lineage(forecaster, model.adata).items()}
    return {key: rows for key, rows in groups.items() if len(rows)}


def matched_cells(
    forecaster: Forecaster,
    data: LineagePopulations,
    rows: np.ndarray,
    z: np.ndarray,
    target: int,
    n_cells: int,
    seed: int | None,
) -> AnnData:
    """Later cells of the training lineages that are forecast the most alike, of each lineage as many."""
    model = forecaster.model
    rng = model._randomness(seed)[0]
    trained, groups = forecaster._fitted(), training_cells(forecaster)
    chosen = np.empty((len(rows), n_cells), dtype=np.int64)
    for start in np.unique(data.time[rows]):
        here = np.flatnonzero(data.time[rows] == start)
        donors = forecaster._head(int(target - start)).donors(z[here])
        for k, own in zip(here, donors, strict=True):
            # a lineage that trained is no forecast of itself
            names = [n for n in trained.lineage[own] if n != data.lineage[rows[k]]]
            times = [
                int(t)
                for n, t in zip(trained.lineage[own], trained.time[own], strict=True)
                if n != data.lineage[rows[k]]
            ]
            cells = [groups[key] for key in zip(names, times, strict=True)]
            weight = np.concatenate([np.full(len(c), 1 / len(c)) for c in cells])
            pool = np.concatenate(cells)
            chosen[k] = rng.choice(pool, n_cells, replace=n_cells > len(pool), p=weight / weight.sum())
    unique, place = np.unique(chosen.ravel(), return_inverse=True)
    source = SourceCells(None, z[0], np.zeros_like(z[0]), model.adata, unique)
    return CellMover(model, source, seed=seed, start="later").keep(place)


def generated_cells(
    forecaster: Forecaster,
    data: LineagePopulations,
    rows: np.ndarray,
    z: np.ndarray,
    target: int,
    n_cells: int,
    batch: Any,
    seed: int | None,
) -> AnnData:
    """Cells of populations drawn from what may become of each lineage, so many of each."""
    rng = forecaster.model._randomness(seed)[0]
    n_draws = min(N_DRAWS, n_cells)
    per_draw = -(-n_cells // n_draws)
    # a random n_cells of them
    keep = np.sort(np.stack([rng.permutation(n_draws * per_draw)[:n_cells] for _ in rows]), axis=1)
    drawn = np.empty((len(rows), n_draws, z.shape[1]))
    for start in np.unique(data.time[rows]):
        here = data.time[rows] == start
        drawn[here] = forecaster._head(int(target - start)).draw(z[here], n_draws, rng)
    blocks, size = [], max(MAX_DRAWN // n_draws, 1)
    for first in range(0, len(rows), size):
        part = drawn[first : first + size].reshape(-1, z.shape[1])
        frame = pd.DataFrame(part.astype(np.float32), columns=coordinate_names(z.shape[1]))
        frame.index = frame.index.astype(str)
        cells = forecaster.model.sample(frame, per_draw, batch=batch, seed=int(rng.integers(2**31)))
        chosen = keep[first : first + size] + n_draws * per_draw * np.arange(min(size, len(rows) - first))[:, None]
        blocks.append(cells[chosen.ravel()].copy())
    cells = joined(blocks)
    del cells.obs[f"{OWN_PREFIX}population"]
    return cells


def moved_cells(
    forecaster: Forecaster,
    data: LineagePopulations,
    rows: np.ndarray,
    z: np.ndarray,
    adata: AnnData | None,
    n_cells: int,
    batch: Any,
    seed: int | None,
) -> AnnData:
    """Earlier cells, moved to the forecast embeddings."""
    model = forecaster.model
    adata = model.adata if adata is None else adata
    assert adata is not None
    groups = cells_by_lineage(forecaster, adata)
    table, rng = model._table(adata), model._randomness(seed)[0]
    blocks = []
    for i, target in zip(rows, z, strict=True):
        cells = groups[data.lineage[i], int(data.time[i])]
        source = SourceCells(data.lineage[i], data.z[i], data.variance[i], adata, cells, table)
        mover = CellMover(model, source, batch=batch, seed=int(rng.integers(2**31)), start="earlier")
        blocks.append(mover.move(target, mover.choose(n_cells)))
    return joined(blocks)
