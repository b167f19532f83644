"""Forecast what becomes of a population: later cells from earlier ones."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd

from scgde._identity import trained_cells
from scgde._model_decoding import check_count
from scgde.data.populations import as_keys, as_label, population_labels
from scgde.data.streaming import as_cells, in_memory
from scgde.inference import coordinate_names
from scgde.lineage._forecast_cells import Forecast, generated_cells, matched_cells, moved_cells, name_cells
from scgde.lineage._forecast_evaluation import evaluate_forecasts
from scgde.lineage._steps import MIN_DONORS, MIN_PAIRS, LineagePopulations, StepHead
from scgde.lineage.times import TimeScale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgde import GDEModel

logger = logging.getLogger(__name__)


MAX_PAIRS = 2000
"""Pairs of an earlier and a later population that a forecast is learned from, at most; its cost grows with their cube."""


class Forecaster:
    r"""Forecast populations of later cells from earlier ones, of lineages that are followed over time: clones, cell types, donors.

    A step of time is treated as a perturbation is in :class:`~scgde.PerturbationPredictor`: the shift from the embedding of a lineage's earlier
    population to that of its later one is regressed on the earlier embedding, by a Gaussian process whose kernel, noise and the share of
    the own state that a step undoes are chosen by leaving lineages out. A mean shift is among the candidates. Steps over as
    many time points are pooled, so that step 2 to 3 teaches step 3 to 4 as far as that helps. Cells are then made of the forecast embedding.

    The forecast is the mean over what may become of a lineage: where early cells leave two fates open, forecast cells are of both.

    Parameters
    ----------
    model
        Trained model.
    time_key
        Column of ``obs`` with the time: numbers, numbers as strings, or ordered categories; a population column, or constant within each
        population.
    lineage_key
        Column(s) that say which populations belong together over time, likewise. Populations of one lineage and time are joined.

    Raises
    ------
    KeyError, ValueError, RuntimeError
        If a column is absent or varies within populations, times have no order, or the model is not trained.

    Examples
    --------
    >>> forecaster = scgde.lineage.Forecaster(model, "day", "clone").fit()  # doctest: +SKIP
    >>> cells = forecaster.predict(6, adata=early_cells)  # doctest: +SKIP
    """

    def __init__(self, model: GDEModel, time_key: str, lineage_key: str | Sequence[str]) -> None:
        model._require_trained()
        self.model, self.time_key, self.lineage_keys = model, time_key, as_keys(lineage_key)
        if time_key in self.lineage_keys:
            message = f"time_key={time_key!r} is a part of lineage_key: a lineage has several times."
            raise ValueError(message)
        if model.adata is None:
            message = "The model was loaded without its AnnData, which forecasts are learned from; load it with adata=."
            raise ValueError(message)
        for name, key in [("time_key", time_key), *(("lineage_key", k) for k in self.lineage_keys)]:
            if key not in model.adata.obs:
                message = (
                    f"{name}={key!r} is not a column of obs; there are {[str(c) for c in model.adata.obs.columns]}."
                )
                raise KeyError(message)
        # of the cells that trained, in a population: nothing is known of other times
        known = trained_cells(model)
        known = known[model._table().codes[known] >= 0]
        self.times = TimeScale.from_column(model.adata.obs[time_key].iloc[known], time_key)
        self._populations: LineagePopulations | None = None
        self._heads: dict[int, StepHead] = {}
        self._state = ""
        self._warned: set[tuple[int, int]] = set()

    # ---------------------------------------------------------------------- fit

    def fit(self) -> Self:
        """Collect the lineages that the model was trained on (those of its test part have no part in it).

        Raises
        ------
        ValueError
            If no lineage has cells at two times.
        """
        self._populations = self._describe(None, trained_cells(self.model))
        self._heads, self._state = {}, state_of(self.model)
        times = pd.Series(self._populations.time).groupby(self._populations.lineage).nunique()
        if not (times > 1).any():
            message = (
                f"No {' x '.join(self.lineage_keys)} has cells at two times (the model has {len(times)} of them, and the times "
                f"{self.times.labels}): there is no later population to learn from."
            )
            raise ValueError(message)
        return self

    @property
    def lineages(self) -> pd.DataFrame:
        """Cells of each lineage of the model at each time, lineages x times."""
        data = self._fitted()
        table = pd.Series(data.n_cells.astype(int), index=[data.lineage, data.time]).unstack(fill_value=0)
        return table.rename(columns=dict(enumerate(self.times.labels))).rename_axis(index="lineage", columns="time")

    def _fitted(self) -> LineagePopulations:
        if self._populations is None:
            message = "The forecaster is not fitted; call fit() first."
            raise RuntimeError(message)
        if self._state != state_of(self.model):
            message = "The model was trained further after fit(), and its embeddings have moved; call fit() again."
            raise RuntimeError(message)
        return self._populations

    def _describe(self, adata: AnnData | None, indices: np.ndarray | None = None) -> LineagePopulations:
        """Populations of lineages in an AnnData."""
        model = self.model
        table = model._population_table(adata, None if indices is None else indices.tolist())
        cells = (model.adata if adata is None else adata).obs  # type: ignore[union-attr]
        for key in (self.time_key, *self.lineage_keys):
            if key not in cells:
                message = f"{key!r} is not a column of adata.obs, which has {[str(c) for c in cells.columns]}."
                raise KeyError(message)
            if key not in table.obs:
                message = (
                    f"{key!r} varies within populations, which have to be of one lineage and time each: set the model up with a "
                    f"population_key that holds it, such as {[*self.lineage_keys, self.time_key]}."
                )
                raise ValueError(message)
        lineage = population_labels(table.obs, self.lineage_keys).to_numpy()
        return LineagePopulations.join(lineage, self.times.positions(table.obs[self.time_key]), table)

    # ------------------------------------------------------------------- heads

    def _pairs(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of earlier and later populations of one lineage that are some time points apart."""
        data = self._fitted()
        place = pd.Series(np.arange(len(data.time)), index=pd.MultiIndex.from_arrays([data.lineage, data.time]))
        later = place.reindex(pd.MultiIndex.from_arrays([data.lineage, data.time + steps])).to_numpy()
        early = np.flatnonzero(np.isfinite(later))
        return early, later[early].astype(np.int64)

    def _is_learned(self, start: int, target: int) -> bool:
        return len(self._pairs(target - start)[0]) >= MIN_PAIRS

    def _head(self, steps: int) -> StepHead:
        """What was learned of steps over some time points."""
        if steps not in self._heads:
            data = self._fitted()
            early, later = self._pairs(steps)
            if len(early) < MIN_PAIRS:
                message = (
                    f"{len(early)} lineages of the model have populations {steps} time point(s) apart (of {self.times.labels}); at least "
                    f"{MIN_PAIRS} are needed to learn a forecast from."
                )
                raise ValueError(message)
            if len(early) > MAX_PAIRS:
                logger.info(f"{MAX_PAIRS} of {len(early)} pairs of populations teach the forecast.")
                some = np.sort(np.random.default_rng(0).choice(len(early), MAX_PAIRS, replace=False))
                early, later = early[some], later[some]
            self._heads[steps] = StepHead(data, early, later)
        return self._heads[steps]

    @property
    def heads(self) -> pd.DataFrame:
        """What was chosen so far: for each number of ``steps`` the candidates with weight; see :attr:`scgde.PerturbationPredictor.heads`."""
        frames = []
        for steps, head in self._heads.items():
            frame = head.regression.summary()
            frame = frame[(frame["weight"] > 0.01) | (frame.index == 0)]
            frame.insert(0, "steps", steps)
            frame.insert(1, "n_lineages", head.regression.n_groups)
            frames.append(frame)
        columns = ["steps", "n_lineages", "kernel", "noise", "slope", "mean", "error", "weight"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    # ----------------------------------------------------------------- forecast

    def predict_embedding(
        self,
        time: Any,
        lineages: Sequence[Any] | None = None,
        adata: AnnData | None = None,
        *,
        from_time: Any = None,
    ) -> pd.DataFrame:
        """Forecast embeddings of lineages at a later time.

        Parameters
        ----------
        time, lineages, adata, from_time
            See :meth:`predict`.

        Returns
        -------
        DataFrame, lineages x coordinates. ``attrs`` holds ``standard_error`` (of each coordinate, for the true later embedding: what
        the early state leaves open) and ``from_time`` in the same order.
        """
        found = self._forecast(time, lineages, adata, from_time)
        names = pd.Index(found.data.lineage[found.rows], name="lineage")
        frame = pd.DataFrame(found.z, index=names, columns=coordinate_names(found.z.shape[1]))
        frame.attrs = {
            "standard_error": np.sqrt(found.variance).tolist(),
            "from_time": [self.times.labels[t] for t in found.data.time[found.rows]],
        }
        return frame

    def predict(
        self,
        time: Any,
        lineages: Sequence[Any] | None = None,
        adata: AnnData | None = None,
        n_cells: int = 100,
        *,
        from_time: Any = None,
        method: Literal["auto", "match", "sample", "transport"] = "auto",
        batch: Any = None,
        seed: int | None = None,
    ) -> AnnData:
        """Forecast cells of lineages at a later time.

        Parameters
        ----------
        time
            Time to forecast, one that the model has cells of.
        lineages
            Lineages to forecast, a list of labels (tuples for several columns) or one; by default all that have cells at an earlier time. Those that
            trained are forecast from the others, their own future left out.
        adata
            Cells of lineages that the model need not know, with the model's population columns; the model's own by default.
        n_cells
            Cells for each lineage.
        from_time
            Time of the cells to start from; by default the last time before ``time`` at which a lineage has cells.
        method
            ``"match"``: later cells, as observed, of the 30 training lineages that are forecast the most alike; needs 100 training lineages.
            ``"sample"``: cells are generated from the forecast embedding, at depths of the nearest training population. ``"transport"``:
            the lineage's earlier cells are moved, and their counts with them, again and again where there are fewer than ``n_cells``.
            ``"auto"``: matched where that can be done and no batch is asked for, else generated.
        batch
            Batch to decode under, where cells are generated or moved.
        seed
            Seed of the draws; ``scvi.settings.seed`` by default, else fresh.

        Returns
        -------
        AnnData of integer counts (floats for continuous rows), ``n_cells`` for each lineage in order, with the columns of lineage and time,
        ``gde_from_time``, ``gde_method`` and, but for generated cells, ``gde_source_cell`` (the cell that was taken or moved).

        Raises
        ------
        KeyError
            If a time or lineage is unknown, or a lineage has no cells at an earlier time.
        ValueError
            If too few lineages of the model have populations so many time points apart, or an argument is out of range.
        """
        check_count("n_cells", n_cells, "the number of cells for each lineage")
        if method not in ("auto", "match", "sample", "transport"):
            message = f"method={method!r} must be 'auto', 'match', 'sample' or 'transport'."
            raise ValueError(message)
        if method == "match" and batch is not None:
            message = f"batch={batch!r}: matched cells are as they were observed; use method='sample' to decode under a batch."
            raise ValueError(message)
        adata = as_cells(adata)
        forecast = self._forecast(time, lineages, adata, from_time)
        starts = np.unique(forecast.data.time[forecast.rows])
        enough = all(self._head(int(forecast.target - t)).has_donors(forecast.target) for t in starts)
        if method == "auto":
            method = "match" if enough and batch is None else "sample"
        elif method == "match" and not enough:
            message = f"method='match' needs {MIN_DONORS} lineages that were seen at both times; use method='sample'."
            raise ValueError(message)
        if method == "match":
            cells = matched_cells(self, forecast, n_cells, seed)
        elif method == "sample":
            cells = generated_cells(self, forecast, n_cells, batch, seed)
        else:
            cells = moved_cells(self, forecast, adata, n_cells, batch, seed)
        name_cells(self, cells, forecast, adata, n_cells, method)
        return cells

    def evaluate(
        self,
        adata: AnnData,
        time: Any,
        *,
        from_time: Any = None,
        n_cells: int = 100,
        batch: Any = None,
        per_lineage: bool = False,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Score forecasts of lineages that had no part in training, with baselines and ceiling.

        Parameters
        ----------
        adata
            Earlier and later cells of the lineages. Those with two later cells or more, and earlier ones, are forecast.
        time, from_time
            See :meth:`predict`.
        n_cells
            Cells that are forecast for each lineage.
        batch
            Batch to decode under; needed where cells are of a batch that the model does not know. Cells are then generated.
        per_lineage
            Return one row for each method and lineage in place of means over lineages.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame, methods x metrics, means over the same ``n`` lineages (where a distance needs two cells or four, over those that have them). The methods
        are ``scgde`` (with ``method="auto"``), ``scgde, sample`` where that is another one, and ``scgde, transport`` (see :meth:`predict`), ``earlier cells`` (nothing
        changes), ``mean shift`` (earlier cells, and the mean change of log-normalised expression in training lineages), ``all later cells`` (of
        training lineages), ``nearest lineages`` (later cells of the five training lineages whose earlier cells are the nearest in the mean) and the
        ceiling (half of the real later cells for the other half). ``e_distance`` is the unbiased E-distance to the real later cells in 50 principal
        components of log-normalised expression of training cells, ``e_ratio`` its mean over that of the earlier cells, ``mse`` the squared
        error of the mean over genes (the sampling of few real cells is in it, for all methods alike; the ceiling, of half the cells, has none).

        Raises
        ------
        ValueError
            If cells of a lineage at a later time than that of the start trained the model, or no lineage has cells at both times.
        KeyError
            If a column or time is absent.
        """
        # baselines are made of all cells
        return evaluate_forecasts(
            self, in_memory(adata), time, from_time, n_cells, batch=batch, per_lineage=per_lineage, seed=seed
        )

    def _sources(
        self, time: Any, lineages: Sequence[Any] | None, adata: AnnData | None, from_time: Any
    ) -> tuple[LineagePopulations, np.ndarray, int]:
        """Populations to start from, their rows, and the place of the time to forecast."""
        own = self._fitted()
        target = self.times.position(time)
        data = own if adata is None else self._describe(adata)
        start = None if from_time is None else self.times.position(from_time, "from_time")
        if start is not None and start >= target:
            message = f"from_time={from_time!r} is not before time={time!r}."
            raise ValueError(message)
        usable = np.flatnonzero(data.time < target if start is None else data.time == start)
        latest = pd.Series(usable, index=data.lineage[usable])  # sorted by time within a lineage
        latest = latest[~latest.index.duplicated(keep="last")]
        if lineages is None:
            learned = {int(t): self._is_learned(int(t), target) for t in np.unique(data.time[latest])}
            chosen = latest[[learned[int(t)] for t in data.time[latest]]]
            if 0 < len(chosen) < len(latest):
                logger.warning(
                    f"{len(latest) - len(chosen)} lineages are left out: fewer than {MIN_PAIRS} lineages of the model have populations as far "
                    "apart as theirs are from the time that is asked for. Name lineages and from_time to start from another time."
                )
            chosen = chosen if len(chosen) else latest
        else:
            asked = [
                as_label(v)
                for v in (lineages if isinstance(lineages, list | np.ndarray | pd.Index | pd.Series) else [lineages])
            ]
            if not asked:
                message = "lineages is empty; leave it out for all."
                raise ValueError(message)
            absent = [name for name in asked if name not in latest.index]
            if absent:
                when = f"before {self.times.labels[target]}" if start is None else f"at {self.times.labels[start]}"
                message = f"No cells {when} of the lineages {absent[:5]}; there are {list(latest.index[:5])} ..."
                raise KeyError(message)
            chosen = latest.loc[asked]
        if not len(chosen):
            message = f"No lineage has cells before time={time!r}."
            raise KeyError(message)
        return data, chosen.to_numpy(dtype=np.int64), target

    def _forecast(self, time: Any, lineages: Sequence[Any] | None, adata: AnnData | None, from_time: Any) -> Forecast:
        """Forecast embeddings; those of lineages that trained are of the others."""
        data, rows, target = self._sources(time, lineages, adata, from_time)
        z, variance = (np.empty((len(rows), data.z.shape[1])) for _ in range(2))
        pairs = np.full(len(rows), -1)
        for start in np.unique(data.time[rows]):
            here = np.flatnonzero(data.time[rows] == start)
            head = self._head(int(target - start))
            if not ((head.later_time == target).any() or (int(start), target) in self._warned):
                self._warned.add((int(start), target))
                logger.warning(
                    f"No lineage of the model was seen at both {self.times.labels[start]!r} and {self.times.labels[target]!r}: the forecast "
                    "is that of other steps over as many time points."
                )
            result = head.predict(data.z[rows[here]], int(start))
            z[here], variance[here] = data.z[rows[here]] + result.mean, result.variance
            if adata is None:
                pairs[here], left_out = head.left_out(rows[here])
                own = pairs[here] >= 0
                z[here[own]] = left_out[own]
        return Forecast(data, rows, target, z, variance, pairs)


def state_of(model: GDEModel) -> str:
    """Digest of what a model has learned."""
    digest = hashlib.sha256()
    for value in model.module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
