"""Comparison of forecast with real later cells, beside every baseline and the ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from scgde._constants import OWN_PREFIX
from scgde._identity import trained_cells
from scgde.lineage._forecast_cells import cells_by_lineage, training_cells
from scgde.perturbation.metrics import energy_distance
from scgde.perturbation.space import ExpressionSpace

if TYPE_CHECKING:
    from anndata import AnnData

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
    batch: Any,
    per_lineage: bool,
    seed: int | None,
) -> pd.DataFrame:
    """See :meth:`Forecaster.evaluate`."""
    scale, model = forecaster.times, forecaster.model
    target = scale.position(time)
    data, rows, _ = forecaster._sources(time, None, adata, from_time)
    table = model._table(adata)
    groups = cells_by_lineage(forecaster, adata, table)
    rows = np.array([i for i in rows if len(groups.get((data.lineage[i], target), ())) > 1], dtype=np.int64)
    if not len(rows):
        message = f"No lineage of adata has earlier cells and two cells at {scale.labels[target]!r} to compare with."
        raise ValueError(message)
    trained = forecaster._fitted()
    last = pd.Series(trained.time).groupby(trained.lineage).max().reindex(data.lineage[rows]).fillna(-1).to_numpy()
    known = sorted(data.lineage[rows[last > data.time[rows]]])
    if known:
        message = (
            f"Cells of the lineages {known[:5]} at times after the one that is forecast from trained the model; hold whole lineages out, or "
            "at least all of their later cells."
        )
        raise ValueError(message)
    teachers = Teachers(forecaster, target, sorted(set(data.time[rows].tolist())))
    space, rng = teachers.space, np.random.default_rng(seed)
    names = data.lineage[rows].tolist()
    # what is forecast is forecast from earlier cells alone
    earlier = adata[np.sort(np.concatenate([groups[data.lineage[i], int(data.time[i])] for i in rows]))].copy()
    methods: tuple[Literal["auto", "sample", "transport"], ...] = ("auto", "sample", "transport")
    forecasts: dict[str, Any] = {}
    default = None
    for method in methods:
        if method == default:  # with few lineages the default is to generate
            continue
        own = int(rng.integers(2**31))
        cells = forecaster.predict(
            time, names, earlier, n_cells, from_time=from_time, method=method, batch=batch, seed=own
        )
        forecasts["scgde" if method == "auto" else f"scgde, {method}"] = cells.X
        default = default or str(cells.obs[f"{OWN_PREFIX}method"].iloc[0])
    scored = []
    for k, i in enumerate(rows):
        real = space.normalise(table.rows(groups[data.lineage[i], target]))
        source = space.normalise(table.rows(groups[data.lineage[i], int(data.time[i])]))
        part = slice(k * n_cells, (k + 1) * n_cells)
        predicted = {name: space.normalise(x[part]) for name, x in forecasts.items()}
        predicted["earlier cells"] = source
        step = int(data.time[i])
        predicted["mean shift"] = source + teachers.shift[step]
        low = {name: (space.project(x), x.mean(0)) for name, x in predicted.items()}
        low["all later cells"] = teachers.pooled
        low["nearest lineages"] = teachers.nearest(step, space.project(source).mean(0))
        r, mean = space.project(real), real.mean(0)
        for name, (cells, centre) in low.items():
            e = energy_distance(cells, r) if len(cells) > 1 else np.nan
            row = {"method": name, "lineage": data.lineage[i], "e_distance": e}
            scored.append(row | {"mse": float(np.square(centre - mean).mean()), "n_real": len(real)})
        order = rng.permutation(len(r))
        e = energy_distance(r[order[::2]], r[order[1::2]]) if len(r) > 3 else np.nan
        row = {"method": CEILING, "lineage": data.lineage[i], "e_distance": e}
        scored.append(row | {"mse": np.nan, "n_real": len(real)})
    frame = pd.DataFrame(scored)
    return frame if per_lineage else means_over_lineages(frame)


def means_over_lineages(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of each method over the lineages of which every distance is known (over all, if there are none)."""
    wide = frame.pivot_table(index="lineage", columns="method", values="e_distance", dropna=False)
    common = wide.index[wide.notna().all(axis=1)]
    own = frame[frame["lineage"].isin(common)] if len(common) else frame
    result = own.groupby("method", sort=False)[["e_distance", "mse"]].mean()
    result.insert(1, "e_ratio", result["e_distance"] / result.loc["earlier cells", "e_distance"])
    result["n"] = own["lineage"].nunique()
    return result


class Teachers:
    """What training lineages say without a model.

    Attributes
    ----------
    space
        Principal components of expression of training cells.
    shift
        Mean change of log-normalised expression to the later time, by place of the earlier one, ``(n_vars,)`` each.
    pooled
        Later cells of all lineages, and their mean expression.
    """

    def __init__(self, forecaster: Forecaster, target: int, starts: list[int]) -> None:
        model = forecaster.model
        assert model.adata is not None
        self.table = model._table()
        self.space = ExpressionSpace.fit(self.table, trained_cells(model), is_count=model.module.observation.is_count)
        groups = training_cells(forecaster, self.table)
        self.later = {name: rows for (name, time), rows in groups.items() if time == target}
        rng = np.random.default_rng(0)
        pool = np.concatenate(list(self.later.values()))
        values = self.space.normalise(self.table.rows(np.sort(pool[rng.permutation(len(pool))[:MAX_POOLED]])))
        self.pooled = self.space.project(values), values.mean(0)
        self.shift: dict[int, np.ndarray] = {}
        self._trees: dict[int, tuple[cKDTree, list[str]]] = {}
        for start in starts:
            earlier = {name: rows for (name, time), rows in groups.items() if time == start}
            both = [name for name in earlier if name in self.later]
            if both:
                before, components = self._means({name: earlier[name] for name in both})
                self.shift[start] = self._means({name: self.later[name] for name in both})[0] - before
                self._trees[start] = cKDTree(components), both
            else:  # no lineage was seen at both times: lineages of each
                self.shift[start] = self.pooled[1] - (self._means(earlier)[0] if earlier else self.pooled[1])

    def nearest(self, start: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Later cells of the lineages whose earlier cells have the nearest mean components, ``(r,)``, and their mean expression."""
        if start not in self._trees:
            return self.pooled
        tree, names = self._trees[start]
        chosen = np.atleast_1d(tree.query(mean, min(N_NEAREST, len(names)))[1])
        values = self.space.normalise(self.table.rows(np.concatenate([self.later[names[i]] for i in chosen])))
        return self.space.project(values), values.mean(0)

    def _means(self, groups: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean over groups of their mean expression, ``(n_vars,)``, and mean components of each; some groups at a time."""
        sizes = np.array([len(rows) for rows in groups.values()])
        block = np.cumsum(sizes) // _CELLS_PER_BLOCK
        total, components = np.zeros(self.table.matrix.shape[1]), []
        rows = list(groups.values())
        for number in np.unique(block):
            own = [rows[i] for i in np.flatnonzero(block == number)]
            values = self.space.normalise(self.table.rows(np.concatenate(own)))
            codes = np.repeat(np.arange(len(own)), [len(r) for r in own])
            means = np.zeros((len(own), values.shape[1]))
            np.add.at(means, codes, values)
            means /= np.bincount(codes)[:, None]
            total += means.sum(0)
            components.append(self.space.project(means))
        return total / len(groups), np.concatenate(components)
