"""Control cells that predictions start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scgde.data.populations import as_label
from scgde.perturbation._cells import ControlCells
from scgde.perturbation.design import ONE_CONTEXT, Design, describe

if TYPE_CHECKING:
    from scgde import GDEModel
    from scgde.perturbation.shifts import ShiftModel


class ControlsMixin:
    """Control cells of contexts: the model's own, or a user's."""

    model: GDEModel
    perturbation_key: str
    context_key: str | None
    control: str
    sep: str | None

    if TYPE_CHECKING:

        def _fitted(self) -> tuple[Design, ShiftModel]: ...

    def _controls(self, context: Any, adata: AnnData | None, *, cells: bool = True) -> ControlCells:
        """Control cells to start from: the model's own of a context, or a user's."""
        design, shifts = self._fitted()
        name = None if context is None else as_label(context)
        if name is None and self.context_key is None:
            name = ONE_CONTEXT
        if adata is None:
            if name is None:
                message = f"context is needed, as there are several: {design.context_names[:8]}."
                raise ValueError(message)
            if name not in shifts.controls:
                message = (
                    f"context={name!r} has no control cells in the model; there are {design.context_names[:8]}. For a new context "
                    "pass its control cells as adata=."
                )
                raise KeyError(message)
            row = shifts.controls[name]
            z, variance = design.z[row], design.variance[row]
            if not cells:
                return ControlCells(name, z, variance, None, np.empty(0, dtype=np.int64))
            if self.model.adata is None:
                message = (
                    "The model was loaded without its AnnData: pass control cells as adata=, or use method='sample'."
                )
                raise ValueError(message)
            rows = self._control_rows(self.model.adata, name)
            return ControlCells(name, z, variance, self.model.adata, rows)
        adata = self._with_population_columns(adata)
        rows = self._control_rows(adata, name)
        z, variance = self.model._embed_cells(adata, rows)
        return ControlCells(name, z, variance, adata, rows)

    def _with_population_columns(self, adata: AnnData) -> AnnData:
        """The AnnData, or one of the same arrays whose ``obs`` has the model's population columns too: control cells need none."""
        missing = [key for key in self.model._population_keys() if key not in adata.obs]
        if not missing:
            return adata
        obs = adata.obs.assign(**dict.fromkeys(missing, self.control))
        return AnnData(X=adata.X, obs=obs, var=adata.var, obsm=dict(adata.obsm), layers=dict(adata.layers))

    def _control_rows(self, adata: AnnData, context: str | None) -> np.ndarray:
        """Rows of the control cells of a context in an AnnData."""
        keep = np.ones(adata.n_obs, dtype=bool)
        table = describe(
            adata.obs,
            self.perturbation_key if self.perturbation_key in adata.obs else None,
            self.context_key if self.context_key in adata.obs else None,
            None,
            self.sep,
            self.control,
        )
        if self.perturbation_key in adata.obs:
            keep &= np.array([t is not None and t.parts == (self.control,) for t in table["treatment"]])
        if context is not None and self.context_key is not None and self.context_key in adata.obs:
            keep &= (table["context"] == context).to_numpy()
        rows = np.flatnonzero(keep)
        if len(rows) == 0:
            message = f"adata has no cells with {self.perturbation_key}={self.control!r}" + (
                "." if context is None or self.context_key is None else f" and {self.context_key}={context!r}."
            )
            raise ValueError(message)
        return rows

    def _only_context(self) -> str | None:
        names = self._fitted()[0].context_names
        return names[0] if len(names) == 1 else None
