"""Kernel regression of few vectors on few inputs, averaged over kernels by exact leave-one-out errors."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

NOISE = (0.03, 0.1, 0.3, 1.0)
"""Variance that inputs do not explain over the variance that they do, of the candidates."""

LENGTHS = (0.7, 1.5, 3.0)
"""Length scales of the radial kernels, in units of the root mean square distance of inputs from their mean."""

FLAT = 1e4
"""Prior variance of a mean, in units of the variance between rows: large enough to leave a mean as the rows have it."""


class Candidate(NamedTuple):
    """A kernel (``"none"`` for a mean alone), its noise, the share of the offset that is taken over, and whether there are means."""

    kernel: str
    noise: float
    slope: float
    mean: bool = True


class Prediction(NamedTuple):
    """Predicted targets.

    Attributes
    ----------
    mean, variance
        Of each target, ``(rows, m)``.
    freedom
        Degrees of freedom of the variances.
    ratios
        Squared errors of predicting each group from the others over the variance that was foreseen, ``(groups,)``.
    """

    mean: np.ndarray
    variance: np.ndarray
    freedom: float
    ratios: np.ndarray


@dataclass
class KernelRegression:
    r"""Gaussian process regression with a choice of kernels that few rows cannot make for certain.

    Targets :math:`y_i` are modelled as :math:`h_i \mu + b\, o_i + f(x_i) + \epsilon_i`: means that are estimated (``basis``), a
    share ``b`` of a given offset, a Gaussian process in the inputs and independent noise, of which the sampling variance is known.
    For every candidate the errors of predicting each group of rows from all others are exact and cost one inverse:
    :math:`(C^{-1})_{BB}^{-1} (C^{-1} y)_B` (Rasmussen and Williams 2006, section 5.4.2, for blocks). This is the nested
    cross-validation of the choice: the rows that a prediction is asked for have no part in it.

    Candidates are averaged with weights :math:`(E_c / E_{\min})^{-g k / 2}`, with their summed squared errors ``E``, the number of
    groups ``g`` and the effective number ``k`` of independent coordinates: what a Gaussian likelihood with one scale would give.
    A mean alone is one of them, so that what inputs do not help with is not made worse by them; with ``may_vanish`` so is no mean at all.

    Parameters
    ----------
    inputs
        Names of inputs, each ``(n, p)``; kernels are linear and radial in each. A row of NaN is one that nothing describes: it is
        independent of all others but for the mean.
    targets
        ``(n, m)``; ``m`` may be several outputs side by side.
    groups
        Rows of one group are left out together, ``(n,)``.
    basis
        Regressors of means, ``(n, q)``.
    offset
        ``(n, m)``, or None.
    slopes
        Shares of the offset to choose from.
    sampling_variance
        Mean variance of a coordinate of each target that sampling of cells explains, ``(n,)``.
    width
        Coordinates of one output; ``m`` by default.
    may_vanish
        Whether means may also be zero.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray
    groups: np.ndarray
    basis: np.ndarray
    offset: np.ndarray | None = None
    slopes: Sequence[float] = (0.0,)
    sampling_variance: np.ndarray | None = None
    width: int | None = None
    may_vanish: bool = False
    candidates: list[Candidate] = field(default_factory=list, init=False)
    errors: np.ndarray = field(default_factory=lambda: np.empty(0), init=False)
    weights: np.ndarray = field(default_factory=lambda: np.empty(0), init=False)
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0), init=False)
    """Errors of predicting each row from other groups than its own, by the averaged candidates, ``(n, m)``."""

    def __post_init__(self) -> None:
        self.targets = np.asarray(self.targets, dtype=np.float64)
        n, m = self.targets.shape
        self._width = m if self.width is None else self.width
        self._offset = np.zeros_like(self.targets) if self.offset is None else np.asarray(self.offset, dtype=np.float64)
        self._kernels = [Kernel.fit(name, x) for name, x in self.inputs.items() if n > 2]
        codes = np.unique(self.groups, return_inverse=True)[1]
        self.n_groups = int(codes.max(initial=-1)) + 1
        self._blocks = [np.flatnonzero(codes == g) for g in range(self.n_groups)]
        variance = np.zeros(n) if self.sampling_variance is None else np.asarray(self.sampling_variance)
        freedom = n - np.linalg.matrix_rank(self.basis)
        spread = np.square(self.targets - self._fitted_basis(self.targets)).mean() * n / max(freedom, 1)
        if freedom < 1:  # nothing tells how much rows differ: as much as they are large
            spread = np.square(self.targets).mean()
        self._known = variance / max(spread - variance.mean(), 0.1 * spread, 1e-12)
        self._choose()

    # ------------------------------------------------------------------- choice

    def _fitted_basis(self, y: np.ndarray) -> np.ndarray:
        if not self.basis.shape[1]:
            return np.zeros_like(y)
        return self.basis @ np.linalg.lstsq(self.basis, y, rcond=None)[0]

    def _options(self) -> list[tuple[str, float]]:
        names = [f"{kernel.name} {form}" for kernel in self._kernels for form in kernel.forms]
        return [("none", 1.0), *((name, noise) for name in names for noise in NOISE)]

    def _gram(self, name: str, rows: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Covariances of the rows (or of new ``rows``) with the rows that were fitted, without means and noise."""
        which, form = name.rsplit(" ", 1)
        kernel = next(k for k in self._kernels if k.name == which)
        return kernel(form, None if rows is None else rows[which])

    def _choose(self) -> None:
        residuals, ratios = [], []
        self._precisions: dict[tuple[str, float, bool], np.ndarray] = {}
        means = (True, False) if self.may_vanish else (True,)
        for (name, noise), mean in itertools.product(self._options(), means):
            precision = self._precision(name, noise, mean)
            for slope in self.slopes:
                self.candidates.append(Candidate(name, noise, slope, mean))
                residual, ratio = self._left_out(precision, self.targets - slope * self._offset)
                residuals.append(residual)
                ratios.append(ratio)
        weight = 1 / (1 + self._known)
        self.errors = np.array([float((np.square(r) * weight[:, None]).sum()) for r in residuals])
        # squared errors over the variance that each candidate foresaw, by coordinate: the scale of its variances
        self._scales = [
            (np.square(r) / v[:, None]).reshape(-1, self._width).mean(0) for r, v in zip(residuals, ratios, strict=True)
        ]
        if self.n_groups < 2:  # nothing was left out: the error may be as large as the effect
            self._scales = [np.square(self.targets).reshape(-1, self._width).mean(0) for _ in self.candidates]
        if self.n_groups < 3 or self.errors.min() <= 0:  # nothing to choose by
            self.weights = np.array([float(c.kernel == "none") for c in self.candidates])
            self.weights *= np.array([float(c.slope == max(self.slopes) and c.mean) for c in self.candidates])
        else:
            power = self.n_groups * effective_width(residuals[int(self.errors.argmin())].reshape(-1, self._width)) / 2
            self.weights = (self.errors / self.errors.min()) ** -power
        self.weights /= self.weights.sum()
        self.left_out = error = np.einsum("c,cij->ij", self.weights, np.stack(residuals))
        repeats = self.targets.shape[1] // self._width
        foreseen = sum(
            w * v * s.sum() * repeats for w, v, s in zip(self.weights, ratios, self._scales, strict=True) if w > 0
        )
        squared = np.square(error).sum(1)
        self.ratios = np.array([squared[b].sum() / max(float(foreseen[b].sum()), 1e-300) for b in self._blocks])
        if self.n_groups < 3:
            self.ratios = np.empty(0)

    def _precision(self, name: str, noise: float, mean: bool = True) -> np.ndarray:
        """Inverse covariance of the rows; kept for what takes part in predictions only, since there may be many rows."""
        if (name, noise, mean) not in self._precisions:
            gram = 0.0 if name == "none" else self._gram(name)
            flat = FLAT * mean * self.basis @ self.basis.T
            precision = np.linalg.inv(gram + flat + np.diag(noise + self._known))
            if not len(self.weights):
                return precision
            self._precisions[name, noise, mean] = precision
        return self._precisions[name, noise, mean]

    def _left_out(self, precision: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Errors ``(n, m)`` of predicting each group from the others, and their variances but for scale, ``(n,)``."""
        projected = precision @ y
        if self.n_groups == len(y):
            diagonal = np.diag(precision)
            return projected / diagonal[:, None], 1 / diagonal
        residual, ratio = np.empty_like(y), np.empty(len(y))
        for block in self._blocks:
            inverse = np.linalg.inv(precision[np.ix_(block, block)])
            residual[block], ratio[block] = inverse @ projected[block], np.diag(inverse)
        return residual, ratio

    # --------------------------------------------------------------- prediction

    def predict(self, rows: dict[str, np.ndarray], basis: np.ndarray, offset: np.ndarray | None = None) -> Prediction:
        """Predict targets of new rows, each input ``(rows, p)``, ``basis`` ``(rows, q)`` and ``offset`` ``(rows, m)``.

        Variances are those of the true target: the sampling of cells is not in them.
        """
        count = len(basis)
        offset = np.zeros((count, self.targets.shape[1])) if offset is None else np.asarray(offset)
        used = [i for i, w in enumerate(self.weights) if w > max(1e-3, 0.01 * self.weights.max())]
        shares = self.weights[used] / self.weights[used].sum()
        means, variances = [], []
        repeats = self.targets.shape[1] // self._width
        for i in used:
            name, noise, slope, has_mean = self.candidates[i]
            precision = self._precision(name, noise, has_mean)
            cross = FLAT * has_mean * basis @ self.basis.T
            if name != "none":
                cross = cross + self._gram(name, rows)
            means.append(cross @ (precision @ (self.targets - slope * self._offset)) + slope * offset)
            own = self._prior(name, rows, count) + FLAT * has_mean * np.square(basis).sum(1)
            ratio = np.maximum(own - np.einsum("ij,jk,ik->i", cross, precision, cross), 0) + noise
            variances.append(ratio[:, None] * np.tile(self._scales[i], repeats))
        mean = np.einsum("c,cij->ij", shares, np.stack(means))
        between = np.einsum("c,cij->ij", shares, np.square(np.stack(means) - mean))
        variance = np.einsum("c,cij->ij", shares, np.stack(variances)) + between
        return Prediction(mean, variance, max(self.n_groups - 1.0, 1.0), self.ratios)

    def _prior(self, name: str, rows: dict[str, np.ndarray], count: int) -> np.ndarray:
        if name == "none":
            return np.zeros(count)
        which, form = name.rsplit(" ", 1)
        kernel = next(k for k in self._kernels if k.name == which)
        return kernel.own(form, rows[which])

    def summary(self) -> pd.DataFrame:
        """Candidates with their squared errors over those of the mean alone, and their weights, largest first."""
        alone = self.errors[
            [c.kernel == "none" and c.slope == min(self.slopes, key=abs) and c.mean for c in self.candidates]
        ]
        frame = pd.DataFrame(self.candidates)
        frame["error"] = self.errors / max(float(alone[0]), 1e-300)
        frame["weight"] = self.weights
        return frame.sort_values("weight", ascending=False, kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class Kernel:
    """Linear and radial kernels of one input, in units in which rows have a mean variance of one."""

    name: str
    x: np.ndarray
    centre: np.ndarray
    scale: float

    @classmethod
    def fit(cls, name: str, x: np.ndarray) -> Kernel:
        x = np.asarray(x, dtype=np.float64)
        known = x[np.isfinite(x).all(1)]
        centre = known.mean(0) if len(known) else np.zeros(x.shape[1])
        scale = float(np.square(known - centre).sum(1).mean()) if len(known) else 1.0
        return cls(name, x, centre, scale if scale > 1e-12 else 1.0)

    @property
    def forms(self) -> list[str]:
        """Names of the kernels."""
        return ["linear", *(f"radial-{length}" for length in LENGTHS)]

    def __call__(self, form: str, a: np.ndarray | None = None) -> np.ndarray:
        """Covariances of rows ``a``, or of the rows that were fitted, with the rows that were fitted."""
        own, b = a is None, self.x
        a = b if a is None else a
        unknown_a, unknown_b = (~np.isfinite(v).all(1) for v in (a, b))
        a, b = (np.where(u[:, None], 0.0, v - self.centre) for u, v in ((unknown_a, a), (unknown_b, b)))
        if form == "linear":
            gram = a @ b.T / self.scale
        else:
            # rows are 2 * scale apart in the mean square
            squared = np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0)
            gram = np.exp(-squared / (2 * self.scale * float(form.split("-")[1]) ** 2))
        gram[unknown_a] = 0.0
        gram[:, unknown_b] = 0.0
        if own:
            gram[unknown_b, unknown_b] = 1.0
        return gram

    def own(self, form: str, a: np.ndarray) -> np.ndarray:
        """Variances of rows ``a``."""
        variance = np.square(a - self.centre).sum(1) / self.scale if form == "linear" else np.ones(len(a))
        return np.where(np.isfinite(a).all(1), variance, 1.0)


def effective_width(residuals: np.ndarray) -> float:
    """Number of coordinates that vary independently: the participation ratio of the covariance's eigenvalues."""
    gram = residuals @ residuals.T if len(residuals) < residuals.shape[1] else residuals.T @ residuals
    trace = float(np.trace(gram))
    return trace**2 / max(float(np.square(gram).sum()), 1e-300)
