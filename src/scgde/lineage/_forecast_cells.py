"""Later cells of forecast embeddings: taken from training lineages, generated, or moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde._constants import LABEL_SEPARATOR, OWN_PREFIX, PREDICTED
from scgde._identity import trained_cells
from scgde.data.populations import column_labels, population_labels
from scgde.generation import RowContexts
from scgde.inference import coordinate_names
from scgde.perturbation._cells import CellMover, SourceCells, derived_cells, joined

if TYPE_CHECKING:
    from anndata import AnnData

    from scgde.data import CellTable
    from scgde.lineage._steps import LineagePopulations
    from scgde.lineage.forecast import Forecaster

N_DRAWS = 25
"""Later populations that the cells of one forecast are drawn from, at most."""

MAX_DRAWN = 4000
"""Populations that are generated at a time."""


@dataclass(frozen=True)
class Forecast:
    """Forecast embeddings of lineages at a time.

    Attributes
    ----------
    data, rows
        Populations, and those of them to start from.
    target
        Place of the time.
    z, variance
        ``(rows, n_embedding)``.
    pairs
        Pair of the step's regression that each is, -1 for those that did not train.
    """

    data: LineagePopulations
    rows: np.ndarray
    target: int
    z: np.ndarray
    variance: np.ndarray
    pairs: np.ndarray


def cells_by_lineage(forecaster: Forecaster, adata: AnnData, table: CellTable) -> dict[tuple[str, int], np.ndarray]:
    """Rows of the cells of each lineage and place of its time; of cells in a population only."""
    lineage = population_labels(adata.obs, forecaster.lineage_keys).to_numpy()
    time = forecaster.times.positions(adata.obs[forecaster.time_key])
    known = np.flatnonzero(pd.notna(lineage) & (time >= 0) & (table.codes >= 0))
    groups = pd.Series(known).groupby([lineage[known].astype(str), time[known]]).indices
    return {key: known[rows] for key, rows in groups.items()}


def training_cells(forecaster: Forecaster, table: CellTable) -> dict[tuple[str, int], np.ndarray]:
    """The same of the cells that trained the model."""
    model = forecaster.model
    assert model.adata is not None
    is_used = np.zeros(model.adata.n_obs, dtype=bool)
    is_used[trained_cells(model)] = True
    groups = {key: rows[is_used[rows]] for key, rows in cells_by_lineage(forecaster, model.adata, table).items()}
    return {key: rows for key, rows in groups.items() if len(rows)}


def matched_cells(forecaster: Forecaster, forecast: Forecast, n_cells: int, seed: int | None) -> AnnData:
    """Later cells of the training lineages that are forecast the most alike, of each lineage as many, as they were observed."""
    model, data, rows = forecaster.model, forecast.data, forecast.rows
    assert model.adata is not None
    rng, table = model._randomness(seed)[0], model._table()
    trained, groups = forecaster._fitted(), training_cells(forecaster, table)
    chosen = np.empty((len(rows), n_cells), dtype=np.int64)
    for start in np.unique(data.time[rows]):
        here = np.flatnonzero(data.time[rows] == start)
        head = forecaster._head(int(forecast.target - start))
        for k, pairs in zip(here, head.nearest(forecast.z[here], forecast.target, forecast.pairs[here]), strict=True):
            # a lineage of the same name is the same lineage, whose future is not known
            names = [name for name in trained.lineage[head.rows[pairs]] if name != data.lineage[rows[k]]]
            chosen[k] = even_draw([groups[name, forecast.target] for name in names], n_cells, rng)
    flat = chosen.ravel()
    gain = float(model.module.observation.size_factor_gain)
    unique, place = np.unique(flat, return_inverse=True)
    context = RowContexts(
        table.library(unique, gain)[place], table.batch[flat], table.categorical[flat], table.continuous[flat]
    )
    return derived_cells(model, table.matrix[flat], table.obs.iloc[flat], context, "later")


def even_draw(groups: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` members of groups, as many of each group as can be, none of a group twice before all of it came once."""
    order = np.concatenate([rng.permutation(len(groups)) for _ in range(-(-count // len(groups)))])[:count]
    result = np.empty(count, dtype=np.int64)
    for g, number in enumerate(np.bincount(order, minlength=len(groups))):
        if number:
            rounds = -(-number // len(groups[g]))
            result[order == g] = np.concatenate([rng.permutation(groups[g]) for _ in range(rounds)])[:number]
    return result


def generated_cells(forecaster: Forecaster, forecast: Forecast, n_cells: int, batch: Any, seed: int | None) -> AnnData:
    """Cells of populations drawn from what may become of each lineage, so many of each."""
    data, rows, z = forecast.data, forecast.rows, forecast.z
    rng = forecaster.model._randomness(seed)[0]
    n_draws = min(N_DRAWS, n_cells)
    per_draw = -(-n_cells // n_draws)
    # a random n_cells of them
    keep = np.sort(np.stack([rng.permutation(n_draws * per_draw)[:n_cells] for _ in rows]), axis=1)
    drawn = np.empty((len(rows), n_draws, z.shape[1]))
    for start in np.unique(data.time[rows]):
        here = data.time[rows] == start
        head = forecaster._head(int(forecast.target - start))
        drawn[here] = head.draw(z[here], forecast.target, forecast.pairs[here], n_draws, rng)
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
    forecaster: Forecaster, forecast: Forecast, adata: AnnData | None, n_cells: int, batch: Any, seed: int | None
) -> AnnData:
    """Earlier cells, moved to the forecast embeddings."""
    model, data = forecaster.model, forecast.data
    own = adata is None
    adata = model.adata if adata is None else adata
    assert adata is not None
    table, rng = model._table(adata), model._randomness(seed)[0]
    groups = training_cells(forecaster, table) if own else cells_by_lineage(forecaster, adata, table)
    blocks = []
    for i, target in zip(forecast.rows, forecast.z, strict=True):
        cells = groups[data.lineage[i], int(data.time[i])]
        source = SourceCells(data.lineage[i], data.z[i], data.variance[i], adata, cells, table)
        mover = CellMover(model, source, batch=batch, seed=int(rng.integers(2**31)), start="earlier")
        blocks.append(mover.move(target, mover.choose(n_cells)))
    return joined(blocks)


def name_cells(
    forecaster: Forecaster, cells: AnnData, forecast: Forecast, adata: AnnData | None, n_cells: int, method: str
) -> None:
    """Write what the cells are a forecast of, in every column that says what population a cell is of."""
    source = forecaster.model.adata if adata is None else adata
    assert source is not None
    obs, own_times = cells.obs, source.obs[forecaster.time_key]
    lineage = np.repeat(forecast.data.lineage[forecast.rows], n_cells)
    labels = np.array(forecaster.times.labels, dtype=object)
    target = str(labels[forecast.target])
    known = (
        pd.DataFrame({key: column_labels(source.obs[key]) for key in forecaster.lineage_keys})
        .dropna()
        .drop_duplicates()
    )
    known.index = pd.Index([LABEL_SEPARATOR.join(row) for row in known.to_numpy()])
    keys = forecaster.model._population_keys()
    for key in keys:
        obs[key] = pd.Categorical([PREDICTED] * len(obs))
    if not {forecaster.time_key, *forecaster.lineage_keys} <= set(keys):
        obs[keys[-1]] = pd.Categorical([LABEL_SEPARATOR.join((name, target)) for name in lineage])
    for key in forecaster.lineage_keys:
        obs[key] = pd.Categorical(known.loc[lineage, key].to_numpy())
    is_number = pd.api.types.is_numeric_dtype(own_times)
    obs[forecaster.time_key] = (
        forecaster.times.values[forecast.target] if is_number else pd.Categorical([target] * len(obs))
    )
    start = np.repeat(forecast.data.time[forecast.rows], n_cells)
    obs[f"{OWN_PREFIX}from_time"] = pd.Categorical(labels[start])
    obs[f"{OWN_PREFIX}method"] = pd.Categorical([method] * len(obs))
