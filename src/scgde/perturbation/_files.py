"""Files of :class:`scgde.PerturbationPredictor`, and its results in the forms of other packages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgde._constants import OWN_PREFIX
from scgde.data.populations import as_label
from scgde.inference import coordinate_names
from scgde.perturbation._sources import SourcesMixin
from scgde.perturbation.design import Design, Treatment
from scgde.perturbation.shifts import ShiftModel
from scgde.perturbation.space import ExpressionSpace
from scgde.perturbation.targets import TargetEffects
from scgde.serialization import read_model, write_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgde import GDEModel

NAME = "PerturbationPredictor"

MAX_TOTAL = 1_000_000
"""Largest total count of a cell that the Virtual Cell Challenge accepts."""


class FilesMixin(SourcesMixin):
    """Saving, loading and writers."""

    def save(self, path: str, overwrite: bool = False) -> None:
        """Save the predictor to a folder; the model is saved by itself (:meth:`scgde.GDEModel.save`).

        Parameters
        ----------
        path
            Folder to write to.
        overwrite
            Whether an existing folder may be written to.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is false.
        RuntimeError
            If the predictor is not fitted.
        """
        design, _ = self._fitted()
        if os.path.exists(path) and not overwrite:
            message = f"{path!r} exists; pass overwrite=True or another folder."
            raise ValueError(message)
        assert self._space is not None
        os.makedirs(path, exist_ok=True)
        content = {
            "kind": NAME,
            "perturbation_key": self.perturbation_key,
            "context_key": self.context_key,
            "dose_key": self.dose_key,
            "control": self.control,
            "sep": self.sep,
            "own_features": self._own_features,
            "design": design.to_dict(),
            "features": self.features,
            "space": self._space.to_dict(),
            "targets": self._targets.to_dict(),
            "populations": list(self.model.populations_["labels"]),
            "embeddings": np.asarray(self.model.populations_["z"]),
        }
        write_model(os.path.join(path, "model.pt"), {}, self.model._variables(), content)

    @classmethod
    def load(cls, path: str, model: GDEModel) -> Self:
        """Load a saved predictor; nothing in the file is run.

        Parameters
        ----------
        path
            Folder that :meth:`save` wrote.
        model
            The model that it was fitted on, loaded.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If the file is damaged, is of something else, or was fitted on another model.
        """
        _, names, content = read_model(path)
        if content.get("kind") != NAME:
            message = f"{path!r} holds no {NAME}; models are loaded with GDEModel.load."
            raise ValueError(message)
        from scgde.model import GDEModel as Model

        if not isinstance(model, Model):
            message = f"model is a {type(model).__name__} and must be the GDEModel that the predictor was fitted on."
            raise TypeError(message)
        own = model.populations_
        same = list(own["labels"]) == list(content["populations"]) and names == [str(v) for v in model._variables()]
        if not same or not np.allclose(np.asarray(own["z"]), content["embeddings"], atol=1e-4):
            message = f"{path!r} was fitted on another model: populations, genes or embeddings differ. Fit it again."
            raise ValueError(message)
        keys = ("perturbation_key", "control", "context_key", "sep", "dose_key")
        predictor = cls(model, **{key: content[key] for key in keys})  # type: ignore[call-arg]
        predictor.features = content["features"]
        predictor._space = ExpressionSpace.from_dict(content["space"])
        predictor._targets = TargetEffects.from_dict(content["targets"])
        predictor._design = design = Design.from_dict(content["design"])
        predictor._own_features = bool(content["own_features"])
        default = not predictor._own_features and predictor.features is not None
        predictor._shifts = ShiftModel(design, predictor.features, default_features=default)
        return predictor

    # ------------------------------------------------------------ other packages

    def get_perturbation_adata(self, context: Any = None) -> AnnData:
        """Perturbations as observations, in the form of pertpy's perturbation spaces.

        Parameters
        ----------
        context
            Context to take; by default shifts are averaged over the contexts that have seen a perturbation.

        Returns
        -------
        AnnData with one row for each perturbation and combination (at each dose, ``NAME@DOSE``), the control among them: ``X`` and ``obsm["X_gde"]`` hold the shift of
        the embedding from control (zero for the control itself), so that distances are between effects;
        ``layers["standard_error"]`` its standard error; ``obs`` the perturbation, ``n_cells``, ``n_contexts`` and the shift's
        length ``effect``. The sum of two rows is the additive prediction of the combination.

        Raises
        ------
        KeyError
            If the context is unknown.
        """
        design, shifts = self._fitted()
        name = None if context is None else self._controls(context, None, cells=False).context
        names, values, errors, cells, contexts = [], [], [], [], []
        names_of: dict[tuple[str, ...], str] = {}
        rows_of: dict[str, list[int]] = {}
        for i, treatment in enumerate(design.treatments):
            if name is None or design.contexts[i] == name:
                amount = "" if treatment.dose is None else f"@{treatment.dose:g}"
                label = names_of.setdefault(treatment.parts, treatment.name(self.sep))
                rows_of.setdefault(f"{label}{amount}", []).append(i)
        for label, rows in sorted(rows_of.items(), key=lambda item: (item[0] != self.control, item[0])):
            names.append(label)
            is_control = label == self.control
            values.append(np.zeros(design.z.shape[1]) if is_control else shifts.shift[rows].mean(0))
            errors.append(
                np.sqrt(design.variance[rows].sum(0) if is_control else shifts.variance[rows].sum(0)) / len(rows)
            )
            cells.append(int(design.n_cells[rows].sum()))
            contexts.append(len({design.contexts[i] for i in rows}))
        x = np.stack(values).astype(np.float32)
        obs = pd.DataFrame(index=pd.Index(names, dtype=str))
        obs[self.perturbation_key] = pd.Categorical(names)
        obs["n_cells"], obs["n_contexts"], obs["effect"] = cells, contexts, np.linalg.norm(x, axis=1)
        space = AnnData(X=x, obs=obs, var=pd.DataFrame(index=coordinate_names(x.shape[1])))
        space.obsm["X_gde"] = x.copy()
        space.layers["standard_error"] = np.stack(errors).astype(np.float32)
        return space

    def get_interactions(self, combinations: Sequence[Any] | None = None, context: Any = None) -> pd.DataFrame:
        """How far combinations depart from the sum of the shifts of their parts, observed or predicted.

        Parameters
        ----------
        combinations
            Labels; by default the combinations that were seen and whose parts are known.
        context
            Context; needed where there are several.

        Returns
        -------
        DataFrame, largest departure first: ``perturbation``, ``strength`` (length of the departure in the embedding), ``relative`` (over the
        length of the sum), ``situation`` (``"seen"``: observed; else predicted).

        Raises
        ------
        KeyError
            If a part is unknown.
        ValueError
            If a label is no combination.
        """
        _, shifts = self._fitted()
        controls = self._controls(context, None, cells=False)
        if combinations is None:
            known = set(shifts.singles)
            combinations = [shifts.label_of(c, self.sep) for c in shifts.combinations if set(c) <= known]
        rows = []
        for label in combinations:
            treatment = Treatment.parse(label, self.sep, control=self.control)
            if len(treatment.parts) < 2:
                message = f"{label!r} is no combination: its parts must be joined by {self.sep!r}."
                raise ValueError(message)
            departure, total, situation = shifts.interaction(treatment, controls.context, controls.z)
            strength, length = float(np.linalg.norm(departure)), float(np.linalg.norm(total))
            rows.append((treatment.name(self.sep), strength, strength / max(length, 1e-12), situation))
        frame = pd.DataFrame(rows, columns=["perturbation", "strength", "relative", "situation"])
        return frame.sort_values("strength", ascending=False, kind="stable").reset_index(drop=True)

    def write_cell_eval(
        self,
        path: str,
        perturbations: Sequence[Any],
        context: Any = None,
        *,
        adata: AnnData | None = None,
        n_cells: int = 400,
        target_key: str = "target_gene",
        control_label: str = "non-targeting",
        unknown: str = "raise",
        seed: int | None = None,
    ) -> AnnData:
        """Write predictions as the Virtual Cell Challenge and cell-eval read them.

        Integer counts (CSR, float32) of the model's genes with control cells included, perturbations in ``obs[target_key]`` under the
        control's name there. Control cells are the real ones, as both ask for; predicted cells start from control cells always, so that no measured
        perturbed cell is handed in.

        Parameters
        ----------
        path
            File to write, ``.h5ad``.
        perturbations, context, adata, n_cells, unknown, seed
            See :meth:`predict`.
        target_key, control_label
            Column and label of the control that the reader expects; the defaults are those of the challenge.

        Returns
        -------
        What was written.

        Raises
        ------
        TypeError
            If rows are no counts.
        ValueError
            If a perturbation is named as the control will be, or there are no control cells.
        """
        if not self.model.module.observation.is_count:
            message = (
                "cell-eval reads counts, and this model is of continuous rows; write the AnnData of predict() itself."
            )
            raise TypeError(message)
        labels = [as_label(p) for p in ([perturbations] if isinstance(perturbations, str) else perturbations)]
        if control_label in labels:
            message = f"perturbations has {control_label!r}, which is to name the control; pass another control_label."
            raise ValueError(message)
        cells = self.predict(  # type: ignore[attr-defined]
            labels, context, adata=adata, n_cells=n_cells, unknown=unknown, start="control", seed=seed
        )
        controls = self._controls(context, adata)
        table = self.model._table(controls.adata)
        control = AnnData(X=sp.csr_matrix(table.rows(controls.rows)), var=cells.var[[]].copy())
        control.obs[target_key] = control_label
        control.obs_names = [f"{OWN_PREFIX}control_{i}" for i in range(control.n_obs)]
        predicted = AnnData(X=sp.csr_matrix(cells.X), var=cells.var[[]].copy())
        predicted.obs_names = cells.obs_names
        predicted.obs[target_key] = cells.obs[self.perturbation_key].astype(str).to_numpy()
        joined = ad.concat([predicted, control])
        joined.obs[target_key] = joined.obs[target_key].astype("category")
        joined.X = sp.csr_matrix(joined.X, dtype=np.float32)
        largest = float(np.asarray(joined.X.sum(1)).max(initial=0.0))
        if largest > MAX_TOTAL:
            message = f"A cell has {largest:.0f} counts; the challenge accepts at most {MAX_TOTAL}."
            raise ValueError(message)
        joined.write_h5ad(path)
        return joined
