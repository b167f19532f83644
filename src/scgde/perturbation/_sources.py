"""Cells that predictions start from: controls of contexts, and what was seen of a perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scgde._identity import trained_cells
from scgde.data.populations import as_label
from scgde.data.streaming import as_cells
from scgde.perturbation._base import PredictorBase
from scgde.perturbation._cells import MIN_REPLICATES, SourceCells
from scgde.perturbation.design import MIN_CELLS, ONE_CONTEXT, describe

if TYPE_CHECKING:
    from scgde.perturbation._cells import CellMover
    from scgde.perturbation.design import Treatment
    from scgde.perturbation.observed import Shift

MIN_CONTROLS = 2
"""Control cells that a spread can be told from."""


class NoSourceCellsError(ValueError):
    """An AnnData without control cells of a context."""


class SourcesMixin(PredictorBase):
    """Control cells of contexts, the model's own or a user's, and perturbed cells that trained."""

    def _controls(self, context: Any, adata: AnnData | None, *, cells: bool = True) -> SourceCells:
        """Control cells to start from: the model's own of a context, or a user's."""
        design, shifts = self._fitted()
        adata = as_cells(adata)
        name = None if context is None else as_label(context)
        if name is None and self.context_key is None:
            name = ONE_CONTEXT
        if adata is not None:
            rows = self._control_rows(adata, name)
            if len(rows) < MIN_CONTROLS:
                message = f"adata has {len(rows)} cells with {self.perturbation_key}={self.control!r}" + (
                    "" if name is None or self.context_key is None else f" and {self.context_key}={name!r}"
                )
                raise NoSourceCellsError(f"{message}; at least {MIN_CONTROLS} are needed.")
            adata = self._with_population_columns(adata, name)
            z, variance = self.model._embed_rows(self.model._table(adata), rows)
            return SourceCells(name, z, variance, adata, rows)
        name = self._only_context() if name is None else name
        if name is None:
            message = f"context is needed, as there are several: {design.context_names[:8]}."
            raise ValueError(message)
        if name not in shifts.controls:
            message = (
                f"context={name!r} has no control cells in the model; there are {design.context_names[:8]}. For a new context pass "
                "its control cells as adata=."
            )
            raise KeyError(message)
        row = shifts.controls[name]
        z, variance = design.z[row], shifts.control_variance[row]
        if not cells:
            return SourceCells(name, z, variance, None, np.empty(0, dtype=np.int64))
        if self.model.adata is None:
            message = "The model was loaded without its AnnData: pass control cells as adata=, or use method='sample' with n_cells."
            raise ValueError(message)
        used = np.zeros(self.model.adata.n_obs, dtype=bool)
        used[self._used_cells()] = True
        rows = self._control_rows(self.model.adata, name)
        return SourceCells(name, z, variance, self.model.adata, rows[used[rows]], is_own=True)

    def _used_cells(self) -> np.ndarray:
        """See :func:`scgde._identity.trained_cells`."""
        return trained_cells(self.model)

    def _with_population_columns(self, adata: AnnData, context: str | None) -> AnnData:
        """The AnnData, or one of the same arrays whose ``obs`` has the model's population columns too: cells to predict from or to need none."""
        missing = [key for key in self.model._population_keys() if key not in adata.obs]
        if not missing:
            return adata
        values = {k: context if k == self.context_key and context is not None else self.control for k in missing}
        return AnnData(
            X=adata.X, obs=adata.obs.assign(**values), var=adata.var, obsm=dict(adata.obsm), layers=dict(adata.layers)
        )

    def _control_rows(self, adata: AnnData, context: str | None) -> np.ndarray:
        """Rows of the control cells of a context in an AnnData; by the columns that it has."""
        keep = np.ones(adata.n_obs, dtype=bool)
        has_context = self.context_key is not None and self.context_key in adata.obs
        table = describe(
            adata.obs,
            self.perturbation_key if self.perturbation_key in adata.obs else None,
            self.context_key if has_context else None,
            None,
            self.sep,
            self.control,
        )
        if self.perturbation_key in adata.obs:
            keep &= np.array([t is not None and t.parts == (self.control,) for t in table["treatment"]], dtype=bool)
        if has_context and context is not None:
            keep &= (table["context"] == context).to_numpy()
        elif has_context and table.loc[keep, "context"].nunique() > 1:
            several = sorted(table.loc[keep, "context"].dropna().unique())
            message = f"context is needed: the control cells of adata are of several, {several[:8]}."
            raise ValueError(message)
        return np.flatnonzero(keep)

    def _only_context(self) -> str | None:
        names = self._fitted()[0].context_names
        return names[0] if len(names) == 1 else None

    def _training_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Cells that trained, and the row of the design that each is of."""
        design, table = self._fitted()[0], self.model._table()
        used = self._used_cells()
        pairs = describe(
            table.obs, self.perturbation_key, self.context_key, self.dose_key, self.sep, self.control
        ).iloc[used]
        position = {pair: i for i, pair in enumerate(zip(design.contexts, design.treatments, strict=True))}
        codes = np.array([position.get(p, -1) for p in zip(pairs["context"], pairs["treatment"], strict=True)])
        # cells of no population, and of one too small to teach anything, have no part in the design
        population = table.codes[used]
        sizes = np.bincount(population[population >= 0], minlength=len(table.labels))
        codes[(population < 0) | (sizes[population] < MIN_CELLS)] = -1
        return used[codes >= 0], codes[codes >= 0]

    def _seen_cells(self, treatment: Treatment, mover: CellMover, shift: Shift) -> list[SourceCells]:
        """Replicates, if there are several, of a treatment that was seen at this dose in the context of the model's own controls; else none.

        Cells of the only population of a pair are no prediction of anything: they would be handed back.
        """
        controls = mover.source
        design, shifts = self._fitted()
        row = shifts.row_of(treatment, controls.context)
        if row is None or not controls.is_own or controls.adata is None or shift.situation != "seen":
            return []
        if self._cells_by_row is None:
            used, codes = self._training_rows()
            order = np.argsort(codes, kind="stable")
            self._cells_by_row = np.split(used[order], np.cumsum(np.bincount(codes, minlength=len(design.z)))[:-1])
        cells = self._cells_by_row[row]
        table = mover.table
        replicates = []
        for code in np.unique(table.codes[cells]):
            rows = cells[table.codes[cells] == code]
            z, variance = self.model._embed_rows(table, rows)
            replicates.append(SourceCells(controls.context, z, variance, controls.adata, rows, table))
        return replicates if len(replicates) >= MIN_REPLICATES else []
