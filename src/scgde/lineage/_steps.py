"""Populations of lineages at times, and what is learned of steps from one time to a later one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from scgde._constants import OWN_PREFIX
from scgde.perturbation.regression import KernelRegression, Prediction

if TYPE_CHECKING:
    from anndata import AnnData

SLOPES = (0.0, -0.5, -1.0)
"""Shares of an earlier population's own state that a step undoes, to choose from: where all arrive at one state it is all of it."""

MIN_DONORS = 100
"""Lineages at a time that it takes to tell from them what a forecast leaves open; with fewer the mean alone is generated."""

N_DONORS = 30
"""Pairs with the nearest forecasts, whose errors are what a forecast leaves open."""

MIN_PAIRS = 3
"""Pairs that a forecast can be learned from at all."""


@dataclass(frozen=True)
class LineagePopulations:
    """Populations of lineages at times, those of one lineage and time joined.

    Attributes
    ----------
    lineage
        Names, ``n`` of them.
    time
        Place of the time in the scale, ``(n,)``.
    z, variance
        Embeddings and squared standard errors, ``(n, n_embedding)``.
    n_cells
        ``(n,)``.
    """

    lineage: np.ndarray
    time: np.ndarray
    z: np.ndarray
    variance: np.ndarray
    n_cells: np.ndarray

    @classmethod
    def join(cls, lineage: np.ndarray, time: np.ndarray, population: AnnData) -> LineagePopulations:
        """Join populations that are of one lineage and time, weighted by their numbers of cells; those without are left out."""
        known = np.flatnonzero(pd.notna(lineage) & (time >= 0))
        keys = pd.DataFrame({"lineage": lineage[known].astype(str), "time": time[known]})
        codes = keys.groupby(["lineage", "time"]).ngroup().to_numpy()
        groups = keys.drop_duplicates().sort_values(["lineage", "time"])
        n = population.obs[f"{OWN_PREFIX}n_cells"].to_numpy()[known].astype(np.float64)
        total = np.bincount(codes, n, minlength=len(groups))
        share = (n / total[codes])[:, None]
        z, variance = (np.zeros((len(groups), population.n_vars)) for _ in range(2))
        np.add.at(z, codes, share * population.X[known])
        own = np.square(population.layers["standard_error"][known].astype(np.float64))
        # one cell has no standard error: cells of others spread as much
        single = ~np.isfinite(own).all(1)
        if single.any() and not single.all():
            own[single] = (n[~single, None] * own[~single]).mean(0) / n[single, None]
        np.add.at(variance, codes, np.square(share) * np.where(np.isfinite(own), own, 0.0))
        return cls(groups["lineage"].to_numpy(dtype=str), groups["time"].to_numpy(dtype=np.int64), z, variance, total)

    def rows(self, time: int) -> pd.Series:
        """Row of each lineage at a time, by lineage."""
        at = np.flatnonzero(self.time == time)
        return pd.Series(at, index=self.lineage[at])


class StepHead:
    """Regression of the shift over a step on the earlier state.

    Parameters
    ----------
    data
        Populations.
    early, later
        Rows of the earlier and the later population of each pair.
    """

    def __init__(self, data: LineagePopulations, early: np.ndarray, later: np.ndarray) -> None:
        z = data.z[early]
        self.times = sorted(set(data.time[early].tolist()))
        self.later, self.rows, self.later_time = data.z[later], later, data.time[later]
        self.place = pd.Series(np.arange(len(early)), index=early)
        self.centre, self.scale = z.mean(0), max(float(np.sqrt(z.var(0).sum())), 1e-12)
        self.regression = KernelRegression(
            self._inputs(z, data.time[early]),
            data.z[later] - z,
            np.unique(data.lineage[early], return_inverse=True)[1],
            np.ones((len(early), 1)),
            z - self.centre,
            SLOPES if len(early) > 2 * MIN_PAIRS else (0.0,),
            (data.variance[early] + data.variance[later]).mean(1),
        )

    def _inputs(self, z: np.ndarray, time: np.ndarray) -> dict[str, np.ndarray]:
        """What a shift may depend on: the state, the time, and both."""
        inputs = {"state": z}
        if len(self.times) > 1:
            inputs["time"] = (time[:, None] == np.array(self.times)).astype(float)
            inputs["state and time"] = np.concatenate([(z - self.centre) / self.scale, inputs["time"]], axis=1)
        return inputs

    def predict(self, z: np.ndarray, time: int) -> Prediction:
        """Shift of populations with the embeddings ``z`` ``(n, n_embedding)`` at one time."""
        inputs = self._inputs(z, np.full(len(z), time))
        return self.regression.predict(inputs, np.ones((len(z), 1)), z - self.centre)

    def has_donors(self, target: int) -> bool:
        """Whether enough lineages were seen to arrive at a time for telling from them what is left open."""
        return int((self.later_time == target).sum()) >= MIN_DONORS

    def left_out(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs that have the earlier populations ``rows``, -1 for none; and the forecasts ``(n, n_embedding)`` of these from other lineages."""
        pairs = self.place.reindex(rows).fillna(-1).to_numpy().astype(np.int64)
        return pairs, (self.later - self.regression.left_out)[pairs]

    def draw(
        self, forecast: np.ndarray, target: int, pairs: np.ndarray, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """What may become of populations whose mean forecast is known, ``(n, count, n_embedding)``.

        A clone becomes neutrophils or monocytes, and not the mean of both. The errors that forecasts of other lineages made, left out of the
        regression, say so: those of the lineages whose forecasts are the nearest are added (predictive mean matching; Little 1988, J Bus Econ
        Stat 6, 287-296). With few lineages it is the mean ``count`` times.
        """
        if not self.has_donors(target):
            return np.repeat(forecast[:, None], count, axis=1)
        nearest = self.nearest(forecast, target, pairs)
        chosen = np.take_along_axis(nearest, rng.integers(N_DONORS, size=(len(forecast), count)), axis=1)
        return forecast[:, None] + self.regression.left_out[chosen]

    def nearest(self, forecast: np.ndarray, target: int, pairs: np.ndarray) -> np.ndarray:
        """Pairs that arrive at the time and whose forecasts are the nearest, ``(n, N_DONORS)``; without the own one, ``pairs`` ``(n,)``."""
        at = np.flatnonzero(self.later_time == target)
        tree = cKDTree((self.later - self.regression.left_out)[at])
        found = at[tree.query(forecast, N_DONORS + 1)[1]]
        # the own pair goes last, and the last one goes
        order = np.argsort(found == pairs[:, None], axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1)[:, :N_DONORS]
