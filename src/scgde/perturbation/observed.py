"""Shifts of embeddings that were seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgde.perturbation.design import Design, Treatment

MIN_SHRUNKEN = 8
"""Treatments of a context before the distribution of their shifts says anything about one of them."""


@dataclass(frozen=True)
class Shift:
    """Shift of an embedding.

    Attributes
    ----------
    mean, variance
        ``(n_embedding,)``; the variance is that of the true shift around the mean.
    freedom
        Degrees of freedom of the variance.
    situation
        ``"seen"``, ``"context"``, ``"transfer"``, ``"features"``, ``"combination"`` or ``"mean"``.
    extrapolated
        Whether a dose is outside the range that was seen.
    ratios
        See :class:`~scgde.perturbation.regression.Prediction`.
    holds_control
        Whether the variance is that of the predicted embedding, the sampling of the control's cells with it, and not that of the shift alone.
    """

    mean: np.ndarray
    variance: np.ndarray
    freedom: float
    situation: str
    extrapolated: bool = False
    ratios: np.ndarray = field(default_factory=lambda: np.empty(0))
    holds_control: bool = False

    def total(self, control_variance: np.ndarray) -> np.ndarray:
        """Variance of the predicted embedding, with that of the control's, ``(n_embedding,)``."""
        return self.variance if self.holds_control else self.variance + control_variance


class ObservedShifts:
    """Shifts of the treatments of a design, in the contexts that they were seen in.

    Parameters
    ----------
    design
        Pairs of contexts and treatments with their embeddings.

    Attributes
    ----------
    shift, variance
        Difference of each pair's embedding from that of its control, and its squared standard error, ``(n, n_embedding)``.
    rows
        Row of the design by parts, context and dose.
    controls
        Row of the control of each context.
    """

    def __init__(self, design: Design) -> None:
        self.design = design
        self.controls = {c: design.control_row(c) for c in design.context_names}
        rows = np.array([self.controls[c] for c in design.contexts])
        self.shift = (design.z - design.z[rows]).astype(np.float64)
        self.variance = (design.variance + design.variance[rows]).astype(np.float64)
        # embeddings of few cells may have no standard error; they weigh as the least certain ones do
        worst = np.nanmax(self.variance, initial=0.0)
        self.variance = np.where(np.isfinite(self.variance), self.variance, worst)
        self.control_variance = np.where(np.isfinite(design.variance), design.variance, worst)
        self.rows: dict[tuple[str, ...], dict[str, dict[float | None, int]]] = {}
        for i in np.flatnonzero(~design.is_control):
            t = design.treatments[i]
            self.rows.setdefault(t.parts, {}).setdefault(design.contexts[i], {})[t.dose] = int(i)

    @property
    def singles(self) -> list[str]:
        """Perturbations that were seen alone, sorted."""
        return sorted(parts[0] for parts in self.rows if len(parts) == 1)

    @property
    def largest_dose(self) -> float:
        """Largest dose of a single perturbation; infinite if there are none."""
        return max((t.dose for t in self.design.treatments if t.dose is not None and len(t.parts) == 1), default=np.inf)

    def label_of(self, parts: tuple[str, ...], sep: str | None) -> str:
        """A combination as it was first written."""
        return next(t for t in self.design.treatments if t.parts == parts).name(sep)

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        """Combinations that were seen, sorted."""
        return sorted(parts for parts in self.rows if len(parts) > 1)

    def observed(self, treatment: Treatment, context: str) -> Shift | None:
        """Shift of a treatment that was seen in a context, its dose between those seen; None if it was not seen."""
        by_dose = self.rows.get(treatment.parts, {}).get(context)
        if by_dose is None:
            return None
        if treatment.dose is None and len(by_dose) > 1:
            message = f"{'+'.join(treatment.parts)!r} was seen at doses {sorted(d for d in by_dose if d is not None)}; pass dose=."
            raise ValueError(message)
        row = self.row_of(treatment, context)
        if row is not None:
            return Shift(self.shift[row], self.variance[row], max(self.design.n_cells[row] - 1.0, 1.0), "seen")
        doses = sorted(d for d in by_dose if d is not None)
        if not doses:
            message = f"{'+'.join(treatment.parts)!r} was seen without doses; leave dose= out."
            raise ValueError(message)
        assert treatment.dose is not None
        return self._between_doses(treatment.dose, doses, [by_dose[d] for d in doses])

    def row_of(self, treatment: Treatment, context: str | None) -> int | None:
        """Row of the design of a treatment at its dose; without a dose, its only row; None if it was not seen."""
        by_dose = {} if context is None else self.rows.get(treatment.parts, {}).get(context, {})
        if treatment.dose is None:
            return next(iter(by_dose.values())) if len(by_dose) == 1 else by_dose.get(None)
        # a dose that went through single precision is the same dose
        same = (row for d, row in by_dose.items() if d is not None and np.isclose(d, treatment.dose, rtol=1e-6, atol=0))
        return next(same, None)

    def between(self, treatment: Treatment, context: str | None) -> tuple[np.ndarray, float]:
        """Variance of a new replicate's embedding around that of its treatment, ``(n_embedding,)``, and its degrees of freedom."""
        row = self.row_of(treatment, context)
        if row is not None:
            return self.design.between[row], float(self.design.between_freedom[row])
        others = ~self.design.is_control
        return self.design.between[others].mean(0), float(np.median(self.design.between_freedom[others]))

    def _shrunken(self, seen: Shift, context: str, z_control: np.ndarray, row: int | None) -> Shift:
        """Posterior mean of a shift that was seen, its prior being the shifts of all treatments of the context.

        A shift from few cells holds noise along many coordinates that treatments hardly differ in (empirical Bayes; Efron and Morris 1973,
        J Am Stat Assoc 68, 117-130). Added to the control that it was measured from, what is not shrunken of it cancels that
        control's error.
        """
        if seen.extrapolated:
            return seen
        rows = [i for d in self.rows.values() for i in d.get(context, {}).values()]
        mean, between, share = seen.mean, np.zeros_like(seen.mean), np.ones_like(seen.mean)
        if len(rows) >= MIN_SHRUNKEN:
            mean = self.shift[rows].mean(0)
            between = np.maximum(self.shift[rows].var(0, ddof=1) - self.variance[rows].mean(0), 0)
            share = between / np.maximum(between + seen.variance, 1e-300)
        estimate = mean + share * (seen.mean - mean)
        control = self.controls[context]
        if row is None or not np.array_equal(z_control, self.design.z[control]):
            return replace(seen, mean=estimate, variance=share * seen.variance)
        error = self.control_variance[control]
        variance = np.square(share) * self.control_variance[row] + np.square(1 - share) * (error + between)
        return replace(seen, mean=estimate, variance=variance, holds_control=True)

    def _between_doses(self, dose: float, doses: list[float], rows: list[int]) -> Shift:
        """Linear in log(1 + dose) between neighbours, from no shift at no dose; the last shift beyond the last dose."""
        grid = np.log1p([0.0, *doses])
        values = np.concatenate([np.zeros((1, self.shift.shape[1])), self.shift[rows]])
        variances = np.concatenate([np.zeros((1, self.shift.shape[1])), self.variance[rows]])
        at = float(np.log1p(dose))
        if at >= grid[-1]:
            # nothing says whether the effect goes on growing: its last step might be made once more for every step of dose
            step = values[-1] - values[-2]
            beyond = (at - grid[-1]) / max(grid[-1] - grid[-2], 1e-12)
            return Shift(values[-1], variances[-1] + np.square(beyond * step), 3.0, "seen", extrapolated=True)
        k = int(np.searchsorted(grid, at, side="right"))
        w = (at - grid[k - 1]) / (grid[k] - grid[k - 1])
        bend = np.square((values[k] - values[k - 1]) * w * (1 - w))
        variance = np.square(1 - w) * variances[k - 1] + np.square(w) * variances[k] + bend
        return Shift((1 - w) * values[k - 1] + w * values[k], variance, 3.0, "seen")

    def _mean_shift(self, treatment: Treatment, contexts: Iterable[str]) -> np.ndarray:
        return np.mean([self.shift[next(iter(self.rows[treatment.parts][c].values()))] for c in contexts], axis=0)

    def _undosed(self, context: str | None) -> list[int]:
        """Rows of the treatments of a context that have no dose."""
        return [
            int(i)
            for i in np.flatnonzero(~self.design.is_control)
            if self.design.contexts[i] == context and self.design.treatments[i].dose is None
        ]
