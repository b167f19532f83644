"""Comparison of predictions with real cells, beside every baseline and the ceiling."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from scgde.data.streaming import as_cells
from scgde.generation import RowContexts, expected_library, generate_rows
from scgde.inference import encode_cells
from scgde.perturbation import metrics
from scgde.perturbation._cells import SEEN_SHARE, CellMover, SeenCells, move_both
from scgde.perturbation._sources import NoSourceCellsError, SourcesMixin
from scgde.perturbation.baselines import BaselineData, forecasts
from scgde.perturbation.calibration import joined_freedom, region_level
from scgde.perturbation.design import MIN_CELLS, Treatment, describe
from scgde.perturbation.space import ExpressionSpace

if TYPE_CHECKING:
    from anndata import AnnData

    from scgde.perturbation._cells import SourceCells
    from scgde.perturbation.observed import Shift

logger = logging.getLogger(__name__)

METHOD = "scgde"
CEILING = "ceiling (second draw)"
MAX_CONTROLS = 3000
"""Control cells of a context that take part, drawn at random."""

MAX_ENTRIES = 20_000_000
"""Entries of the predicted cells of one method in memory."""

N_TOP = 100
"""Genes with the largest real change that metrics with the suffix ``_top`` look at."""


class EvaluationMixin(SourcesMixin):
    """Everything that needs real perturbed cells."""

    def evaluate(
        self,
        adata_truth: AnnData,
        adata_control: AnnData | None = None,
        *,
        unknown: str = "raise",
        per_population: bool = False,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Score predictions of real perturbed cells that had no part in training, with baselines and ceiling.

        Parameters
        ----------
        adata_truth
            Perturbed cells with the columns of perturbation, context and dose. Every pair of context and perturbation with at
            least five cells is predicted. Control cells in it are those of contexts that the model does not know.
        adata_control
            Control cells to start from, in place of the model's own, for the contexts that it has.
        unknown
            See :meth:`predict`.
        per_population
            Return one row for each method and pair in place of means over pairs.
        seed
            Seed of the draws.

        Returns
        -------
        DataFrame, methods x metrics, means over pairs (with ``per_population`` also ``context``, ``perturbation``, ``n_real``,
        ``situation``). The methods are ``scgde``, the baselines (see :func:`scgde.perturbation.baselines.forecasts`) and the ceiling: one
        half of the real cells as the prediction of the other. Changes are of the mean of log-normalised expression
        (10,000 counts), from control to perturbed cells; columns that end in ``_top`` look at the 100 genes with the largest real
        change only.

        ``e_distance``, ``mmd``, ``wasserstein``
            Unbiased E-distance, unbiased squared MMD and W2 between cells, in 50 principal components of the 2,000 most variable
            genes, both of training cells; ``e_distance_top`` in the expression of the top genes.
        ``e_ratio``, ``e_ratio_top``
            E-distance over that of the copied control cells: below one is better than predicting no change. NaN where the latter is not
            above zero; the mean over pairs is the ratio of the means.
        ``pearson_delta``, ``r2_pearson``, ``r2``, ``mse_delta``
            Correlation of predicted and real change over genes, its square, 1 - SSE/SST, and mean squared error.
        ``discrimination``
            Perturbation discrimination score among the n real changes of the same context (NaN if there is one); (n + 1) / 2n by
            chance.
        ``de_overlap``, ``de_direction``
            Overlap of differential genes, and agreement in sign.
        ``in_region``, ``region_level``
            For ``scgde``: whether the embedding of the real cells lies in the 90 % region of the predicted one, and the
            level of the smallest region that holds it (uniform between 0 and 1 if standard errors are right).

        Raises
        ------
        ValueError
            If there are no perturbed cells, or cells of them trained the model.
        KeyError
            If a context has no control cells.
        """
        shifts = self._fitted()[1]
        adata_truth, adata_control = as_cells(adata_truth), as_cells(adata_control)
        groups = self._truth_groups(adata_truth)
        adata_truth = self._with_population_columns(adata_truth, None)
        truth = self.model._table(adata_truth)
        trained = set(self.model.populations_["labels"])
        self._refuse_training_cells(adata_truth, groups)
        data = self._baseline_data()
        rng = np.random.default_rng(seed)
        assert self._space is not None
        rows, changes = [], []
        last: tuple[str | None, CellMover, np.ndarray] | None = None
        # context by context, so that the control cells of one are in memory
        for (context, treatment), cells in sorted(groups.items(), key=lambda item: str(item[0][0])):
            if last is None or last[0] != context:
                controls = self._evaluation_controls(context, adata_truth, adata_control)
                if len(controls.rows) > MAX_CONTROLS:
                    some = np.sort(rng.choice(controls.rows, MAX_CONTROLS, replace=False))
                    controls = replace(controls, rows=some)
                mover = CellMover(self.model, controls, seed=seed)
                last = context, mover, self._space.normalise(mover.x)
            _, mover, control = last
            real = self._space.normalise(truth.rows(cells))
            shift = shifts.predict(treatment, context, mover.source.z, unknown)
            predicted = self._predicted_cells(mover, control, treatment, context, shift, data, rng)
            scored = self._score(predicted, control, real, rng)
            for method, (scores, change) in scored.items():
                row = {
                    "method": method,
                    "context": context,
                    "perturbation": treatment.name(self.sep),
                    "dose": treatment.dose,
                    "n_real": len(real),
                    "situation": shift.situation,
                    **scores,
                }
                if method == METHOD:
                    z, variance = self.model._embed_rows(truth, cells)
                    labels = {truth.labels[code] if code >= 0 else "" for code in truth.codes[cells]}
                    between, freedom = shifts.between(treatment, context)
                    # further cells of replicates that trained are no new replicates
                    between = np.zeros_like(between) if labels <= trained else between / len(labels)
                    own = shift.total(mover.source.variance)
                    freedom = joined_freedom([own, between], [shift.freedom, freedom])
                    level = region_level(
                        z - mover.source.z - shift.mean, own + between, variance, freedom, shift.ratios
                    )
                    row |= {"in_region": float(level <= 0.9), "region_level": level}
                rows.append(row)
                changes.append((method, context, treatment, change, real.mean(0) - control.mean(0)))
        frame = pd.DataFrame(rows)
        frame["discrimination"] = self._discrimination(frame, changes)
        if self.dose_key is None:
            frame = frame.drop(columns="dose")
        if per_population:
            return frame
        numeric = frame.drop(columns=["context", "perturbation", "dose", "n_real", "situation"], errors="ignore")
        table = numeric.groupby("method", sort=False).mean()
        for name in ("e_distance", "e_distance_top"):  # of the means: a ratio to next to nothing would drown the others
            table[name.replace("distance", "ratio")] = table[name] / table.loc["control copy", name]
        return table

    # -------------------------------------------------------------------- parts

    def _predicted_cells(
        self,
        mover: CellMover,
        control: np.ndarray,
        treatment: Treatment,
        context: str | None,
        shift: Shift,
        data: BaselineData,
        rng: np.random.Generator,
    ) -> dict[str, tuple[np.ndarray, int]]:
        """Log-normalised predicted cells of every method, and how many of them come before one starts from the same cell as another."""
        assert self._space is not None
        n_control = len(control)
        rounds = n_rounds(*control.shape)
        chosen = np.tile(np.arange(n_control), rounds)
        predicted = {METHOD: self._own_cells(mover, control, treatment, shift, rng)}
        for name, forecast in forecasts(data, treatment, context, control.mean(0), rng).items():
            if forecast.cells is not None:
                predicted[name] = forecast.cells, len(forecast.cells)
            elif forecast.shift is not None:
                predicted[name] = control + forecast.shift, n_control
            else:
                assert forecast.latent is not None
                predicted[name] = self._space.normalise(shifted_cells(mover, forecast.latent, chosen)), n_control
        return predicted

    def _own_cells(
        self,
        mover: CellMover,
        control: np.ndarray,
        treatment: Treatment,
        shift: Shift,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, int]:
        """Log-normalised cells as :meth:`PerturbationPredictor.predict` makes them, in rounds."""
        assert self._space is not None
        target, effects = mover.source.z + shift.mean, self._targets.log_ratios(treatment, mover.source.context)
        replicates = self._seen_cells(treatment, mover, shift)
        if not replicates:
            count = len(control)
            chosen = np.tile(np.arange(count), n_rounds(*control.shape))
            return self._space.normalise(mover.move(target, chosen, effects).X), count
        seen = SeenCells(self.model, replicates, seed=int(rng.integers(2**31)))
        # a round in which no cell comes twice
        count = int(min(len(seen.position) / SEEN_SHARE, len(control) / (1 - SEEN_SHARE)))
        rounds = n_rounds(count, control.shape[1])
        cells = [self._space.normalise(move_both(mover, seen, target, count, effects).X) for _ in range(rounds)]
        return np.concatenate(cells), count

    def _score(
        self,
        predicted: dict[str, tuple[np.ndarray, int]],
        control: np.ndarray,
        real: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, tuple[dict[str, float], np.ndarray]]:
        """Metrics and changes of the mean by method, the ceiling last."""
        scores = {}
        for name, (cells, first_round) in predicted.items():
            scores[name] = _scores(cells, control, real, self._space, first_round)
        order = rng.permutation(len(real))
        first, second = real[order[::2]], real[order[1::2]]
        if min(len(first), len(second)) > 1:
            scores[CEILING] = _scores(first, control, second, self._space, len(first))
        return scores

    def _truth_groups(self, adata: AnnData) -> dict[tuple[str | None, Treatment], np.ndarray]:
        """Cells of each pair of context and treatment to predict."""
        table = describe(
            adata.obs, self.perturbation_key, self.context_key, self.dose_key, self.sep, self.control, "adata_truth"
        )
        groups: dict[tuple[str | None, Treatment], list[int]] = {}
        pairs = zip(table["context"], table["treatment"], strict=True)
        for i, (context, treatment) in enumerate(pairs):
            if treatment is not None and isinstance(context, str) and treatment.parts != (self.control,):
                groups.setdefault((context, treatment), []).append(i)
        large = {key: np.array(rows) for key, rows in groups.items() if len(rows) >= MIN_CELLS}
        if len(large) < len(groups):
            small = [f"{c}|{t.name(self.sep)}" for (c, t), rows in groups.items() if len(rows) < MIN_CELLS]
            logger.warning(f"{len(small)} pairs have fewer than {MIN_CELLS} cells and are not scored: {small[:5]}.")
        if not large:
            message = (
                f"adata_truth has no pair of context and perturbation with five cells other than {self.control!r}."
            )
            raise ValueError(message)
        return large

    def _refuse_training_cells(self, adata: AnnData, groups: dict) -> None:
        """Raise if perturbed cells of ``adata`` trained the model: the same name and the same row."""
        own = self.model.adata
        rows = np.concatenate(list(groups.values()))
        if own is None:
            design = self._fitted()[0]
            seen = set(zip(design.contexts, design.treatments, strict=True))
            known = [f"{c}|{t.name(self.sep)}" for c, t in groups if (c, t) in seen]
            if known:
                message = f"adata_truth has populations that trained the model: {known[:5]}. Leave them out."
                raise ValueError(message)
            return
        used = self._used_cells()
        position = pd.Series(used, index=own.obs_names[used].astype(str))
        position = position[~position.index.duplicated()]
        names = adata.obs_names[rows].astype(str)
        # concatenation adds a suffix to names
        bare = pd.Index([re.sub(r"-[^-]*$", "", name) for name in names])
        names = names.where(names.isin(position.index), bare)
        shared = np.flatnonzero(names.isin(position.index))
        if not len(shared):
            return
        mine, theirs = self.model._table(), self.model._table(adata)
        same = 0
        for block in np.array_split(shared, max(len(shared) // 1000, 1)):
            left = mine.rows(position.loc[names[block]].to_numpy())
            same += int((left == theirs.rows(rows[block])).all(1).sum())
        if same:
            message = (
                f"{same} perturbed cells of adata_truth trained the model (same name, same counts). Scores would be of memory: "
                "hold them out before the model is trained."
            )
            raise ValueError(message)

    def _evaluation_controls(
        self, context: str | None, adata_truth: AnnData, adata_control: AnnData | None
    ) -> SourceCells:
        if adata_control is not None:
            try:
                return self._controls(context, adata_control)
            except NoSourceCellsError:
                pass
        if context in self._fitted()[1].controls and self.model.adata is not None:
            return self._controls(context, None)
        try:
            return self._controls(context, adata_truth)
        except NoSourceCellsError as error:
            message = f"Context {context!r} of adata_truth has no {self.control!r} cells; pass them as adata_control=."
            raise KeyError(message) from error

    def _fit_space(self) -> ExpressionSpace:
        rows = np.asarray(self.model.train_indices_)
        return ExpressionSpace.fit(self.model._table(), rows, is_count=self.model.module.observation.is_count)

    def _baseline_data(self) -> BaselineData:
        """Means of the training populations, from the model's AnnData."""
        if self.model.adata is None:
            message = "The model was loaded without its AnnData, from which baselines are made; load it with adata=."
            raise ValueError(message)
        assert self._space is not None
        design = self._fitted()[0]
        table = self.model._table()
        used, codes = self._training_rows()
        u = encode_cells(self.model.module, table, used)[0].numpy()
        n = len(design.contexts)
        cells = [used[codes == i] for i in range(n)]
        latent = np.stack([u[codes == i].mean(0) for i in range(n)])
        expression = np.stack([_mean_rows(table, rows, self._space) for rows in cells])
        return BaselineData(
            design.contexts,
            design.treatments,
            design.is_control,
            expression,
            latent,
            cells,
            table,
            self._space,
            self.features,
        )

    @staticmethod
    def _discrimination(frame: pd.DataFrame, changes: list) -> np.ndarray:
        """Discrimination scores in the order of ``frame``; among pairs of one context."""
        scores = np.full(len(frame), np.nan)
        for _, rows in frame.groupby(["method", "context"], sort=False, dropna=False).indices.items():
            if len(rows) > 1:
                predicted, real = (np.stack([changes[i][k] for i in rows]) for k in (3, 4))
                scores[rows] = metrics.discrimination_score(predicted, real)
        return scores


def n_rounds(n_control: int, n_genes: int) -> int:
    """How often each control cell is moved, so that the mean of few is not that of a single draw."""
    return int(np.clip(min(5000, MAX_ENTRIES // n_genes) // max(n_control, 1), 1, 10))


def shifted_cells(mover: CellMover, shift: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Counts of the control cells ``chosen`` whose latents are moved by a constant and decoded anew."""
    module = mover.model.module
    u = mover.latents(chosen)
    moved = (u + shift).astype(np.float32)
    context = RowContexts(*(values[chosen] for values in mover.after))
    if module.observation.is_count:
        growth = expected_library(module, moved) / np.maximum(expected_library(module, u), 1e-6)
        context = context._replace(library=context.library * growth)
    return generate_rows(module, moved, context, mover.generator)


def _mean_rows(table: Any, rows: np.ndarray, space: ExpressionSpace) -> np.ndarray:
    total = np.zeros(table.matrix.shape[1])
    for block in np.array_split(rows, max(len(rows) // 2000, 1)):
        total += space.normalise(table.rows(block)).sum(0)
    return total / max(len(rows), 1)


def _scores(
    cells: np.ndarray, control: np.ndarray, real: np.ndarray, space: Any, first_round: int
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of predicted cells, and the predicted change of the mean.

    Changes of the mean are of all cells; what compares samples looks at the first round, in which no control cell comes twice.
    """
    truth, change = real.mean(0) - control.mean(0), cells.mean(0) - control.mean(0)
    cells = cells[:first_round]
    top = np.argsort(-np.abs(truth), kind="stable")[:N_TOP]
    x, y, c = (space.project(v) for v in (cells, real, control))
    # one width of the kernel for all methods
    gamma = 1 / max(float(np.median(cdist(c[:: -(-len(c) // 500)], y[:: -(-len(y) // 500)], "sqeuclidean"))), 1e-12)
    scores = {
        "e_distance": metrics.energy_distance(x, y),
        "mmd": metrics.mmd(x, y, gamma=gamma),
        "wasserstein": metrics.wasserstein(x, y),
        "e_distance_top": metrics.energy_distance(cells[:, top], real[:, top]),
    }
    for name, copied in (("", (c, y)), ("_top", (control[:, top], real[:, top]))):
        base = metrics.energy_distance(*copied)
        scores[f"e_ratio{name}"] = scores[f"e_distance{name}"] / base if base > 0 else float("nan")
    for suffix, genes in (("", slice(None)), ("_top", top)):
        correlation = metrics.pearson_delta(change[genes], truth[genes])
        scores[f"pearson_delta{suffix}"] = correlation
        scores[f"r2_pearson{suffix}"] = correlation**2
        scores[f"r2{suffix}"] = metrics.r2_delta(change[genes], truth[genes])
        scores[f"mse_delta{suffix}"] = metrics.mse_delta(change[genes], truth[genes])
    scores["de_overlap"], scores["de_direction"] = metrics.differential_overlap(cells, real, control)
    return scores, change
