"""Combinations of perturbations: effects of parts, and what comes on top of their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgde.perturbation.regression import FLAT, KernelRegression, Prediction, effective_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

INTERACTION_SLOPES = (0.0, -0.1, -0.2, -0.35, -0.5)
"""Shares of the sum of the effects of parts that a combination lacks."""

PART_NOISE = (0.0, 0.03, 0.1, 0.3, 1.0)
"""Variance of treatments around the sum of their parts over the variance of effects of parts, of the candidates."""

N_COMPONENTS = 8
"""Principal components of shifts or features whose products describe a pair."""

MIN_COMBINATIONS = 3
"""Combinations that must have been seen before anything is learned from them."""


class PartsModel:
    r"""Shift of a treatment as the sum of effects of its parts, estimated from all treatments of one context.

    :math:`y_t = b\, m + \sum_{p \in t} e_p + \epsilon_t`, with independent normal effects ``e``, and noise that has the known variance of
    sampling cells and a share ``noise`` of the effects' variance. With ``b = 1`` all perturbed cells share a change ``m`` (of having been
    transfected, say), which a sum of shifts would count once for each part. Which noise and whether there is an ``m`` is decided by the
    leave-one-out errors of observed combinations; without any, effects are summed, less what sampling explains of them.

    Parameters
    ----------
    parts
        Parts of each treatment.
    shifts, variance
        ``(n, n_embedding)``.
    """

    def __init__(self, parts: Sequence[tuple[str, ...]], shifts: np.ndarray, variance: np.ndarray) -> None:
        self.names = {p: i for i, p in enumerate(sorted({q for t in parts for q in t}))}
        self.x = self._indicators(parts)
        self.shifts = shifts
        known = variance.mean(1)
        scale = max(float(np.square(shifts).mean() - known.mean()), 0.1 * float(np.square(shifts).mean()), 1e-12)
        self.combined = np.flatnonzero(self.x.sum(1) > 1)
        gram = self.x @ self.x.T
        options = [(noise, common) for noise in PART_NOISE for common in (0.0, 1.0)]
        if len(self.combined) < MIN_COMBINATIONS:
            options = [(0.0, 0.0)]
        self.options, self.precisions, left_out, ratios = options, [], [], []
        for noise, common in options:
            cov = gram + FLAT * common + np.diag(noise + known / scale + 1e-6)
            precision = np.linalg.inv(cov)
            self.precisions.append(precision)
            diagonal = np.diag(precision)[self.combined]
            left_out.append((precision @ shifts)[self.combined] / diagonal[:, None])
            ratios.append(1 / diagonal)
        errors = np.array([float(np.square(r).sum()) for r in left_out])
        self.weights = np.ones(len(options))
        if len(options) > 1 and errors.min() > 0:
            power = len(self.combined) * effective_width(left_out[int(errors.argmin())]) / 2
            self.weights = (errors / errors.min()) ** -power
        self.weights /= self.weights.sum()
        #: predictions of the observed combinations, each without its own cells, ``(combinations, n_embedding)``
        self.predicted = shifts[self.combined] - np.einsum("c,cij->ij", self.weights, np.stack(left_out))
        # squared errors over what each candidate foresaw, by coordinate
        self.scales = [
            (np.square(r) / v[:, None]).mean(0) if len(v) >= MIN_COMBINATIONS else np.full(shifts.shape[1], scale)
            for r, v in zip(left_out, ratios, strict=True)
        ]

    def _indicators(self, parts: Sequence[tuple[str, ...]]) -> np.ndarray:
        x = np.zeros((len(parts), len(self.names)))
        for i, treatment in enumerate(parts):
            for p in treatment:
                x[i, self.names[p]] = 1.0
        return x

    def predict(self, parts: tuple[str, ...]) -> Prediction:
        """Shift of one combination of known parts."""
        x = self._indicators([parts])[0]
        means, variances = [], []
        for (noise, common), precision, scale in zip(self.options, self.precisions, self.scales, strict=True):
            cross = self.x @ x + FLAT * common
            means.append(cross @ precision @ self.shifts)
            ratio = max(float(x @ x + FLAT * common - cross @ precision @ cross), 0.0) + noise
            variances.append(ratio * scale)
        mean = self.weights @ np.stack(means)
        between = self.weights @ np.square(np.stack(means) - mean)
        variance = self.weights @ np.stack(variances) + between
        return Prediction(mean, variance, max(len(self.combined) - 1.0, 1.0), np.empty(0))

    @property
    def common(self) -> np.ndarray:
        """The change that all treatments share, ``(n_embedding,)``."""
        parts = [
            common * FLAT * (precision.sum(0) @ self.shifts)
            for (_, common), precision in zip(self.options, self.precisions, strict=True)
        ]
        return self.weights @ np.stack(parts)


class InteractionModel:
    """Departures of observed combinations from the sum of their parts, and those of others that are like them.

    Parameters
    ----------
    names
        Parts of observed combinations, whose parts were all seen alone in the same context.
    single
        Their shifts, ``(parts, n_embedding)`` each.
    expected
        Shift of each combination that its parts foresee, ``(n, n_embedding)``.
    observed
        Its shift, of the same shape.
    variance
        Mean variance of a coordinate of the difference that sampling of cells explains, ``(n,)``.
    axes
        Leading axes of shifts of singles, ``(n_embedding, k)``, and their unit.
    features
        Features of perturbations, or None.
    """

    def __init__(
        self,
        names: list[tuple[str, ...]],
        single: list[np.ndarray],
        expected: np.ndarray,
        observed: np.ndarray,
        variance: np.ndarray,
        axes: tuple[np.ndarray, float],
        features: pd.DataFrame | None,
    ) -> None:
        self.axes = axes
        has_features = features is not None and all(p in features.index for n in names for p in n)
        self.features = features if has_features else None
        self.head = KernelRegression(
            self._rows(names, single),
            observed - expected,
            np.unique(["+".join(n) for n in names], return_inverse=True)[1],
            np.zeros((len(names), 0)),
            expected,
            INTERACTION_SLOPES,
            variance,
        )

    def predict(self, parts: tuple[str, ...], single: np.ndarray, expected: np.ndarray) -> Prediction:
        """Departure of one combination, with the shifts of its parts ``(parts, n_embedding)`` and what they foresee."""
        if self.features is not None and not all(p in self.features.index for p in parts):
            rows = self._rows([parts], [single], unknown=True)
        else:
            rows = self._rows([parts], [single])
        return self.head.predict(rows, np.zeros((1, 0)), expected[None])

    def _rows(
        self, names: list[tuple[str, ...]], single: list[np.ndarray], *, unknown: bool = False
    ) -> dict[str, np.ndarray]:
        """Inputs that do not depend on the order of parts: sums and products of what describes the parts."""
        axes, unit = self.axes
        inputs = {"shifts": np.stack([_symmetric(s @ axes / unit) for s in single])}
        if self.features is not None:
            values = self.features.to_numpy()
            _, size, loadings = np.linalg.svd(values - values.mean(0), full_matrices=False)
            loadings, spread = loadings[:N_COMPONENTS].T, max(float(size[0]) / np.sqrt(len(values)), 1e-12)
            rows = [(self.features.reindex(list(n)).to_numpy() - values.mean(0)) @ loadings / spread for n in names]
            inputs["features"] = np.stack([_symmetric(r) for r in rows])
            if unknown:
                inputs["features"][:] = np.nan
        return inputs


def _symmetric(scores: np.ndarray) -> np.ndarray:
    """Sum over parts, and sum over pairs of parts of the symmetrised products of their scores ``(parts, k)``."""
    total = scores.sum(0)
    products = (np.outer(total, total) - scores.T @ scores) / 2
    i, j = np.triu_indices(len(total))
    return np.concatenate([total, products[i, j] * np.where(i == j, 1.0, np.sqrt(2.0))])


def leading_axes(shifts: np.ndarray) -> tuple[np.ndarray, float]:
    """Leading axes of shifts ``(n, n_embedding)``, ``(n_embedding, k)``, not centred, and a unit."""
    _, size, axes = np.linalg.svd(shifts, full_matrices=False)
    return axes[:N_COMPONENTS].T, max(float(size[0]) / np.sqrt(max(len(shifts), 1)), 1e-12)
