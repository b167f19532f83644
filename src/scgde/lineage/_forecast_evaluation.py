"""Comparison of forecast with real later cells, beside every baseline and the ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from scgde.lineage._forecast_cells import cells_by_lineage, training_cells
from scgde.perturbation.metrics import energy_distance
from scgde.perturbation.space import ExpressionSpace

if TYPE_CHECKING:
    from anndata import AnnData

    from scgde.data import CellTable
    from scgde.lineage.forecast import Forecaster

N_NEAREST = 5
"""Training lineages whose later cells are pasted."""

MAX_POOLED = 500
"""Later cells of training lineages that are compared with, at most."""

CEILING = "ceiling (second half)"

_CELLS_PER_BLOCK = 4096


def evaluate_forecasts(
    forecaster: Forecaster,
    adata: AnnData,
    time: Any,
    from_time: Any,
    n_cells: int,
    *,
    per_lineage: bool,
    seed: int | None,
) -> pd.DataFrame:
    """See :meth:`Forecaster.evaluate`."""
    scale, model = forecaster.times, forecaster.model
    target = scale.position(time)
    data, rows, _ = forecaster._sources(time, None, adata, from_time)
    table = model._table(adata)
    groups = cells_by_lineage(forecaster, adata)
    rows = np.array([i for i in rows if len(groups.get((data.lineage[i], target), ())) > 1], dtype=np.int64)
    if not len(rows):
        message = f"No lineage of adata has earlier cells and two cells at {scale.labels[target]!r} to compare with."
        raise ValueError(message)
    trained = forecaster._fitted()
    known = sorted(set(data.lineage[rows]) & set(trained.lineage[trained.time == target]))
    if known:
        message = (
            f"Cells at {scale.labels[target]!r} of the lineages {known[:5]} trained the model; hold whole lineages out, or at least "
            "all of their later cells."
        )
        raise ValueError(message)
    space, teachers = Teachers.fit(forecaster, target, sorted(set(data.time[rows].tolist())))
    rng = np.random.default_rng(seed)
    names = data.lineage[rows].tolist()
    # what is forecast is forecast from earlier cells alone
    earlier = adata[np.sort(np.concatenate([groups[data.lineage[i], data.time[i]] for i in rows]))].copy()
    methods: tuple[Literal["auto", "sample", "transport"], ...] = ("auto", "sample", "transport")
    forecasts = {}
    for method in methods:
        own = int(rng.integers(2**31))
        cells = forecaster.predict(time, names, earlier, n_cells, from_time=from_time, method=method, seed=own)
        forecasts["scgde" if method == "auto" else f"scgde, {method}"] = cells.X
    scored = []
    for k, i in enumerate(rows):
        real = space.normalise(table.rows(groups[data.lineage[i], target]))
        source = space.normalise(table.rows(groups[data.lineage[i], data.time[i]]))
        part = slice(k * n_cells, (k + 1) * n_cells)
        predicted = {name: space.normalise(x[part]) for name, x in forecasts.items()}
        predicted["earlier cells"] = source
        step = int(data.time[i])
        predicted["mean shift"] = source + teachers.shift[step]
        low = {name: (space.project(x), x.mean(0)) for name, x in predicted.items()}
        low["all later cells"] = teachers.pooled
        low["nearest lineages"] = teachers.nearest(step, space.project(source).mean(0))
        order = rng.permutation(len(real))
        r, mean = space.project(real), real.mean(0)
        if len(real) > 3:
            half = order[::2]
            low[CEILING] = r[half], real[half].mean(0)
        for name, (cells, centre) in low.items():
            whole = name != CEILING
            other = r if whole else r[order[1::2]]
            about = mean if whole else real[order[1::2]].mean(0)
            e = energy_distance(cells, other) if min(len(cells), len(other)) > 1 else np.nan
            error = float(np.square(centre - about).mean())
            scored.append(
                {"method": name, "lineage": data.lineage[i], "e_distance": e, "mse": error, "n_real": len(real)}
            )
    frame = pd.DataFrame(scored)
    if per_lineage:
        return frame
    result = frame.groupby("method", sort=False)[["e_distance", "mse"]].mean()
    # over lineages that have two earlier cells, whose distance is known, too
    both = frame.pivot_table(index="lineage", columns="method", values="e_distance").dropna(subset=["earlier cells"])
    result.insert(1, "e_ratio", both.mean() / both["earlier cells"].mean())
    return result


class Teachers:
    """What training lineages say without a model.

    Attributes
    ----------
    shift
        Mean change of log-normalised expression to the later time, by place of the earlier one, ``(n_vars,)`` each.
    pooled
        Later cells of all lineages, and their mean expression.
    """

    def __init__(self, space: ExpressionSpace) -> None:
        self.space = space
        self.shift: dict[int, np.ndarray] = {}
        self._trees: dict[int, tuple[cKDTree, list[str]]] = {}
        self._cells: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.pooled = (np.empty((0, 0)), np.empty(0))

    @classmethod
    def fit(cls, forecaster: Forecaster, target: int, starts: list[int]) -> tuple[ExpressionSpace, Teachers]:
        """From the cells that trained the model."""
        model = forecaster.model
        used = np.sort(np.concatenate([model.train_indices_, model.validation_indices_])).astype(np.int64)
        table, groups = model._table(), training_cells(forecaster)
        space = ExpressionSpace.fit(table, used, is_count=model.module.observation.is_count)
        own = cls(space)
        later = {name: rows for (name, time), rows in groups.items() if time == target}
        own._cells = _summaries(space, table, later)
        rng = np.random.default_rng(0)
        pool = np.concatenate(list(later.values()))
        pool = np.sort(pool[rng.permutation(len(pool))[:MAX_POOLED]])
        values = space.normalise(table.rows(pool))
        own.pooled = space.project(values), values.mean(0)
        for start in starts:
            earlier = {n: rows for (n, time), rows in groups.items() if time == start}
            found = _summaries(space, table, earlier)
            both = [name for name in found if name in own._cells]
            if not both:  # no lineage was seen at both times: lineages of each
                before = np.mean([m for _, m in found.values()], axis=0) if found else own.pooled[1]
                own.shift[start] = own.pooled[1] - before
                continue
            own.shift[start] = np.mean([own._cells[n][1] - found[n][1] for n in both], axis=0)
            own._trees[start] = cKDTree(np.stack([found[n][0].mean(0) for n in both])), both
        return space, own

    def nearest(self, start: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Later cells of the lineages whose earlier cells have the nearest mean components, ``(r,)``."""
        if start not in self._trees:
            return self.pooled
        tree, names = self._trees[start]
        chosen = np.atleast_1d(tree.query(mean, min(N_NEAREST, len(names)))[1])
        found = [self._cells[names[i]] for i in chosen]
        cells = np.concatenate([c for c, _ in found])
        return cells, np.average([m for _, m in found], axis=0, weights=[len(c) for c, _ in found])


def _summaries(
    space: ExpressionSpace, table: CellTable, groups: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Components of the cells and mean expression of each group; some groups at a time."""
    result: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    names = list(groups)
    sizes = np.array([len(groups[n]) for n in names])
    block = np.cumsum(sizes) // _CELLS_PER_BLOCK
    for number in np.unique(block):
        chosen = [n for n, b in zip(names, block, strict=True) if b == number]
        values = space.normalise(table.rows(np.concatenate([groups[n] for n in chosen])))
        first = 0
        for n in chosen:
            own = values[first : first + len(groups[n])]
            result[n] = space.project(own), own.mean(0)
            first += len(groups[n])
    return result
