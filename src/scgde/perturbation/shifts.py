"""Shifts of embeddings that perturbations cause, seen or predicted. No cells here: populations only."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgde.perturbation.combinations import MIN_COMBINATIONS, InteractionModel, PartsModel, leading_axes
from scgde.perturbation.design import Treatment
from scgde.perturbation.observed import ObservedShifts, Shift
from scgde.perturbation.regression import KernelRegression, Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgde.perturbation.design import Design

logger = logging.getLogger(__name__)

CONTEXT_SLOPES = (0.0, -0.25, -0.5, -0.75, -1.0)
"""Shares of a context's own state that a shift undoes: none, where every context moves alike, to all, where all arrive at one state."""

TRANSFER_SLOPES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the shift in other contexts that a context takes over."""

MAX_ROWS = 3000
"""Populations that a regression on features is fitted to; its cost grows with their cube."""

MIN_SHARED = 8
"""Perturbations that two contexts must share before one learns from the other's shifts."""


class UnknownPerturbationError(KeyError):
    """A perturbation that was never seen, and that no features describe."""

    def __str__(self) -> str:
        return str(self.args[0])


class ShiftModel(ObservedShifts):
    """Predicts the shift of any treatment in any context from those of a design.

    Parameters
    ----------
    design
        Pairs of contexts and treatments with their embeddings.
    features
        One row for each perturbation that has any, or None.
    default_features
        Whether these are the loadings of genes, which errors say.
    """

    def __init__(self, design: Design, features: pd.DataFrame | None, *, default_features: bool = False) -> None:
        super().__init__(design)
        self.features, self.default_features = features, default_features
        self.heads: dict[tuple, KernelRegression] = {}
        self.parts_models: dict[str | None, PartsModel | None] = {}
        self.warned_of: set[str] = set()

    # -------------------------------------------------------------------- entry

    def predict(
        self, treatment: Treatment, context: str | None, z_control: np.ndarray, unknown: str = "raise"
    ) -> Shift:
        """Shift of ``treatment`` in a context whose control has the embedding ``z_control`` ``(n_embedding,)``.

        Parameters
        ----------
        treatment
            What is asked for.
        context
            Name of the context, which may be of the design; None for another.
        z_control
            Embedding of its control.
        unknown
            ``"raise"``, or ``"mean"`` for the mean shift where nothing describes a perturbation.

        Raises
        ------
        UnknownPerturbationError
            If a part was never seen and has no features.
        """
        if context is not None:
            seen = self.observed(treatment, context)
            if seen is not None:
                return self._shrunken(seen, context, z_control, self.row_of(treatment, context))
        where = [c for c in self.rows.get(treatment.parts, {}) if c != context]
        if where:
            return self._elsewhere(treatment, context, where, z_control)
        if len(treatment.parts) > 1:
            return self._combination(treatment, context, z_control, unknown)
        # a part that was seen in combinations only
        model = None if treatment.dose is not None else self._parts_model(context)
        if model is not None and treatment.parts[0] in model.names:
            result = model.predict(treatment.parts)
            return Shift(result.mean, result.variance, result.freedom, "combination")
        return self._described(treatment, context, z_control, unknown)

    # ------------------------------------------------------------- new contexts

    def _elsewhere(
        self, treatment: Treatment, context: str | None, where: Sequence[str], z_control: np.ndarray
    ) -> Shift:
        """Shift of a treatment that was seen in the contexts ``where``, for another context."""
        seen = {c: self.observed(treatment, c) for c in where}
        shifts = {c: s for c, s in seen.items() if s is not None}
        extrapolated = any(s.extrapolated for s in shifts.values())
        shared = [] if context is None else self._shared(context, tuple(sorted(shifts)))
        if len(shared) >= MIN_SHARED:
            assert context is not None
            result = self._transfer(context, shifts, shared)
            return Shift(result.mean[0], result.variance[0], result.freedom, "transfer", extrapolated, result.ratios)
        if len(shifts) == 1 and where[0] not in self.warned_of:  # once, and not for each of a thousand perturbations
            self.warned_of.add(where[0])
            logger.warning(
                f"{treatment.name(None)!r} was seen in one context only ({where[0]!r}), so that nothing tells how contexts differ: its "
                "shift there is taken over as it is. The same goes for others of which this is true."
            )
        result = self._across_contexts(shifts, z_control)
        return Shift(result.mean[0], result.variance[0], result.freedom, "context", extrapolated, result.ratios)

    def _shared(self, context: str, others: tuple[str, ...]) -> list[Treatment]:
        """Treatments that were seen in a context and in all of some others."""
        here = [self.design.treatments[i] for i in self._undosed(context)]
        return [t for t in here if all(c in self.rows[t.parts] for c in others)]

    def _transfer(self, context: str, shifts: dict[str, Shift], shared: list[Treatment]) -> Prediction:
        """From the mean shift in other contexts to the shift in one, learned from treatments that all of them share."""
        others = tuple(sorted(shifts))
        key = ("transfer", context, others)
        if key not in self.heads:
            x = np.stack([self._mean_shift(t, others) for t in shared])
            rows = [next(iter(self.rows[t.parts][context].values())) for t in shared]
            self.heads[key] = KernelRegression(
                {"shift elsewhere": x},
                self.shift[rows],
                np.arange(len(rows)),
                np.ones((len(rows), 1)),
                x,
                TRANSFER_SLOPES,
                self.variance[rows].mean(1),
            )
        x = np.mean([shifts[c].mean for c in others], axis=0)[None]
        return self.heads[key].predict({"shift elsewhere": x}, np.ones((1, 1)), x)

    def _across_contexts(self, shifts: dict[str, Shift], z_control: np.ndarray) -> Prediction:
        """From the controls of contexts to shifts in them, one treatment; what kernel serves best is asked of all treatments."""
        names = sorted(shifts)
        z = np.stack([self.design.z[self.controls[c]] for c in names]).astype(np.float64)
        width = z.shape[1]
        targets = [np.stack([shifts[c].mean for c in names])]
        variance = np.mean([[shifts[c].variance.mean() for c in names]], axis=0)
        # with one or two contexts there is nothing to choose, and no need to ask other treatments
        for by_context in self.rows.values() if len(names) > 2 else ():
            if len(targets) > 100:
                break
            if all(len(by_context.get(c, ())) == 1 for c in names):
                own = [next(iter(by_context[c].values())) for c in names]
                if not np.array_equal(self.shift[own], targets[0]):
                    targets.append(self.shift[own])
        # the treatment itself counts as the others do: one scale for all would let the strongest decide
        scales = [1.0 if i == 0 else _size(targets[0]) / max(_size(t), 1e-12) for i, t in enumerate(targets)]
        stacked = np.concatenate([t * s for t, s in zip(targets, scales, strict=True)], axis=1)
        offset = np.concatenate([z * s for s in scales], axis=1)
        head = KernelRegression(
            {"control": z},
            stacked,
            np.arange(len(names)),
            np.ones((len(names), 1)),
            offset,
            CONTEXT_SLOPES if len(names) > 2 else (0.0,),
            variance,
            width,
        )
        self.heads["context", tuple(names), len(targets)] = head
        here = np.concatenate([z_control[None] * s for s in scales], axis=1)
        result = head.predict({"control": z_control[None]}, np.ones((1, 1)), here)
        return Prediction(result.mean[:, :width], result.variance[:, :width], result.freedom, result.ratios)

    # ------------------------------------------------------- new perturbations

    def _described(self, treatment: Treatment, context: str | None, z_control: np.ndarray, unknown: str) -> Shift:
        """Shift of a perturbation that was never seen: by its features, or the mean if it has none."""
        name = treatment.parts[0]
        # features teach nothing if no perturbation that was seen has any
        taught = self.features is not None and bool(self.features.index.isin(self.singles).any())
        has_features = taught and self.features is not None and name in self.features.index
        if not has_features and unknown != "mean":
            reason = "" if self.features is None else f" (there are features for {list(self.features.index[:5])} ...)"
            if self.default_features:
                reason = ": by default they are those of genes of the data, and it is none"
            message = (
                f"Perturbation {name!r} was never seen and has no features{reason}. Give features= a row for it, or pass unknown='mean' "
                "for the mean of the perturbations that were seen."
            )
            raise UnknownPerturbationError(message)
        situation, with_dose = "features" if has_features else "mean", treatment.dose is not None
        head, contexts = self._feature_head(with_dose, has_features)
        beyond = treatment.dose is not None and treatment.dose > self.largest_dose
        if context in contexts:
            result = head.predict(*self._feature_rows([(treatment, context)], contexts, with_dose, has_features))
            return Shift(result.mean[0], result.variance[0], result.freedom, situation, beyond, result.ratios)
        # in the contexts that have seen perturbations, and from these to the one that has not
        pairs = [(treatment, c) for c in contexts]
        result = head.predict(*self._feature_rows(pairs, contexts, with_dose, has_features))
        shifts = {
            c: Shift(m, v, result.freedom, situation)
            for c, m, v in zip(contexts, result.mean, result.variance, strict=True)
        }
        across = self._across_contexts(shifts, z_control)
        variance = across.variance[0] + result.variance.mean(0)
        return Shift(across.mean[0], variance, result.freedom, situation, beyond)

    def _feature_head(self, with_dose: bool, described: bool) -> tuple[KernelRegression, list[str]]:
        """Regression of shifts on features, or their mean alone: what nothing describes is like any other."""
        pairs, rows = [], []
        for i in np.flatnonzero(~self.design.is_control):
            t = self.design.treatments[i]
            if len(t.parts) == 1 and (t.dose is not None or not with_dose):
                pairs.append((t, self.design.contexts[i]))
                rows.append(i)
        if not pairs:
            message = "No single perturbation was seen" + (" at a dose" if with_dose else "") + ", to learn from."
            raise UnknownPerturbationError(message)
        contexts = sorted({c for _, c in pairs})
        key = ("features" if described else "mean", with_dose)
        if key not in self.heads:
            inputs, basis = self._feature_rows(pairs, contexts, with_dose, described)
            if len(rows) > MAX_ROWS:
                some = np.sort(np.random.default_rng(0).choice(len(rows), MAX_ROWS, replace=False))
                logger.info(f"{MAX_ROWS} of {len(rows)} populations teach the regression on features.")
                pairs, rows = [pairs[i] for i in some], [rows[i] for i in some]
                inputs, basis = self._feature_rows(pairs, contexts, with_dose, described)
            groups = np.unique([t.parts[0] for t, _ in pairs], return_inverse=True)[1]
            variance = self.variance[rows].mean(1)
            # the mean shift may say less about a new perturbation than no shift does
            self.heads[key] = KernelRegression(
                inputs, self.shift[rows], groups, basis, sampling_variance=variance, may_vanish=True
            )
        return self.heads[key], contexts

    def _feature_rows(
        self, pairs: Sequence[tuple[Treatment, str]], contexts: list[str], with_dose: bool, described: bool
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Inputs and means of pairs of a treatment and a context: features alone, and times the state of the context."""
        basis = np.array([[float(c == name) for name in contexts] for _, c in pairs])
        if not described or self.features is None:
            return {}, basis
        raw = self.features.to_numpy()
        known = self.features.index.isin(self.singles)
        reference = raw[known] if known.sum() > 1 else raw
        spread = reference.std(0)
        x = (self.features.reindex([t.parts[0] for t, _ in pairs]).to_numpy() - reference.mean(0)) / np.where(
            spread > 0, spread, 1.0
        )
        if with_dose:
            x = np.concatenate([x, np.log1p([[float(t.dose or 0.0)] for t, _ in pairs])], axis=1)
        inputs = {"features": x}
        if len(contexts) > 1:
            z = np.stack([self.design.z[self.controls[c]] for c in contexts]).astype(np.float64)
            left, size, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
            state = (left * size)[:, : len(contexts) - 1] / max(float(size[0]), 1e-12)
            own = state[[contexts.index(c) for _, c in pairs]]
            inputs["features x control"] = np.concatenate(
                [x, (x[:, :, None] * own[:, None]).reshape(len(x), -1)], axis=1
            )
        return inputs, basis

    # ------------------------------------------------------------- combinations

    def _combination(self, treatment: Treatment, context: str | None, z_control: np.ndarray, unknown: str) -> Shift:
        """Sum of the effects of the parts, and what is learned of how combinations depart from the sum."""
        parts = [self.predict(Treatment((p,), treatment.dose), context, z_control, unknown) for p in treatment.parts]
        single = np.stack([p.mean for p in parts])
        model = None if treatment.dose is not None else self._parts_model(context)
        if model is not None and all(p in model.names for p in treatment.parts):
            total = model.predict(treatment.parts)
        else:
            # a change that all perturbations share is not counted twice
            common = np.zeros(single.shape[1]) if model is None else (len(parts) - 1) * model.common
            variance = np.sum([p.variance for p in parts], axis=0)
            total = Prediction(single.sum(0) - common, variance, min(p.freedom for p in parts), np.empty(0))
        interaction = self._interaction_model
        beyond = any(p.extrapolated for p in parts)
        if interaction is None:  # they may be as large as the lesser part
            return Shift(total.mean, total.variance + np.square(single).min(0), total.freedom, "combination", beyond)
        departure = interaction.predict(treatment.parts, single, total.mean)
        # the errors that the departures were learned from hold those of the sums
        variance = np.maximum(departure.variance[0], np.sum([p.variance for p in parts], axis=0))
        return Shift(
            total.mean + departure.mean[0], variance, departure.freedom, "combination", beyond, departure.ratios
        )

    def interaction(
        self, treatment: Treatment, context: str | None, z_control: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Departure from the plain sum of the parts' shifts (observed, of a combination that was seen), that sum, and the situation."""
        single = [self.predict(Treatment((p,), treatment.dose), context, z_control).mean for p in treatment.parts]
        total, whole = np.sum(single, axis=0), self.predict(treatment, context, z_control)
        return whole.mean - total, total, whole.situation

    def _parts_model(self, context: str | None) -> PartsModel | None:
        """Effects of parts in a context that has seen perturbations without doses."""
        if context not in self.parts_models:
            rows = self._undosed(context)
            parts = [self.design.treatments[i].parts for i in rows]
            self.parts_models[context] = PartsModel(parts, self.shift[rows], self.variance[rows]) if rows else None
        return self.parts_models[context]

    @cached_property
    def _interaction_model(self) -> InteractionModel | None:
        """Learned from all combinations, of any context, whose parts were seen alone in the same context and dose."""
        rows, names, single, expected = [], [], [], []
        for parts in self.combinations:
            for context, by_dose in self.rows[parts].items():
                model = self._parts_model(context)
                for dose, row in by_dose.items():
                    shifts = [
                        self.shift[i] for p in parts if (i := self.row_of(Treatment((p,), dose), context)) is not None
                    ]
                    if len(shifts) < len(parts):
                        continue
                    rows.append(row)
                    names.append(parts)
                    single.append(np.stack(shifts))
                    if dose is None and model is not None:
                        own = [self.design.treatments[i].parts for i in self._undosed(context)]
                        place = int(np.flatnonzero(model.combined == own.index(parts))[0])
                        expected.append(model.predicted[place])
                    else:
                        expected.append(np.sum(shifts, axis=0))
        if len(rows) < MIN_COMBINATIONS:
            return None
        alone = [i for p in self.singles for c in self.rows[p,].values() for i in c.values()]
        result = InteractionModel(
            names,
            single,
            np.stack(expected),
            self.shift[rows],
            self.variance[rows].mean(1),
            leading_axes(self.shift[alone]),
            self.features,
        )
        self.heads["combination",] = result.head
        return result

    def summary(self) -> pd.DataFrame:
        """What was chosen: for each head its best candidates with their share, and errors over those of its simplest candidate."""
        frames = []
        for key, head in self.heads.items():
            frame = head.summary()
            frame = frame[(frame["weight"] > 0.01) | (frame.index == 0)]
            frame.insert(0, "head", str(key[0]))
            frame.insert(1, "n_groups", head.n_groups)
            frames.append(frame)
        columns = ["head", "n_groups", "kernel", "noise", "slope", "mean", "error", "weight"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values - values.mean(0)).mean()))
