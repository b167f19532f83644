"""What the parts of the predictor share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from scgde import GDEModel
    from scgde.perturbation.design import Design
    from scgde.perturbation.shifts import ShiftModel
    from scgde.perturbation.space import ExpressionSpace
    from scgde.perturbation.targets import TargetEffects


class PredictorBase:
    """Settings of a predictor, and what :meth:`~scgde.PerturbationPredictor.fit` made."""

    model: GDEModel
    perturbation_key: str
    context_key: str | None
    dose_key: str | None
    control: str
    sep: str | None
    features: pd.DataFrame | None
    _own_features: bool
    _design: Design | None
    _shifts: ShiftModel | None
    _space: ExpressionSpace | None
    _targets: TargetEffects
    _cells_by_row: list[np.ndarray] | None = None

    def _fitted(self) -> tuple[Design, ShiftModel]:
        if self._design is None or self._shifts is None:
            message = "The predictor is not fitted; call fit() first."
            raise RuntimeError(message)
        return self._design, self._shifts
