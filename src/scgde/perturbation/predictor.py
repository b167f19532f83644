"""Predict what a perturbation does to a population of cells."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scgde._constants import OWN_PREFIX, PREDICTED
from scgde._model_decoding import check_count
from scgde.data.populations import as_label
from scgde.inference import coordinate_names
from scgde.perturbation._cells import CellMover, SeenCells, joined, move_both
from scgde.perturbation._evaluation import EvaluationMixin
from scgde.perturbation._files import FilesMixin
from scgde.perturbation.design import MIN_CELLS, Design, Treatment, as_treatments, check_features, describe
from scgde.perturbation.features import gene_loadings
from scgde.perturbation.shifts import ShiftModel
from scgde.perturbation.targets import TargetEffects, summed_counts

if TYPE_CHECKING:
    from scgde import GDEModel
    from scgde.perturbation._cells import SourceCells
    from scgde.perturbation.observed import Shift
    from scgde.perturbation.space import ExpressionSpace

logger = logging.getLogger(__name__)


class PerturbationPredictor(EvaluationMixin, FilesMixin):
    r"""Predict populations of perturbed cells: in contexts, of perturbations and for combinations that were never seen.

    Works on a trained :class:`scgde.GDEModel` whose populations are contexts times perturbations. A perturbation is a shift from the
    embedding of a context's control to that of its perturbed cells. What is asked for decides how the shift is predicted:

    ``"seen"``
        The pair was seen: its own shift, between its doses where a dose is asked for.
    ``"context"``
        The perturbation was seen in other contexts only: a Gaussian process from the state of the control to the shift.
    ``"transfer"``
        As before, and the context has seen other perturbations (eight that the other contexts have seen too): from shifts
        elsewhere to shifts here, learned from those.
    ``"features"``
        The perturbation was never seen, and features describe it: from features (times the state of the control) to the shift.
    ``"combination"``
        A combination such as ``"A+B"`` that was never seen: the sum of the shifts of its parts, and how observed
        combinations depart from such sums.
    ``"mean"``
        Nothing is known (only with ``unknown="mean"``): the mean shift of the perturbations of the context.

    Kernels, noise and the share of the control's own state that a shift undoes are chosen by leave-one-out errors among what was
    trained on (contexts, perturbations or combinations left out whole), and :attr:`heads` says which. A mean is always a candidate.

    The predicted embedding is turned into cells by moving control cells of the context to it, and their counts with them, so that
    a gene that the perturbation does not touch keeps its counts (:meth:`predict`).

    Parameters
    ----------
    model
        Trained model.
    perturbation_key
        Column of ``obs`` that names the perturbation: a population column, or one that is constant within each population.
    control
        Label of control cells in it.
    context_key
        Column of the context (cell type, donor, cell line), likewise. Without it all cells are of one context. Populations of one
        context and perturbation are joined as replicates of it.
    features
        Description of perturbations, one row for each (gene embeddings, drug fingerprints, indicators of targets). By default,
        perturbations whose name is a gene of the data are described by how the gene goes together with others
        (:func:`scgde.perturbation.gene_loadings`).
    sep
        Joins the parts of a combination; None if labels are to be taken whole.
    dose_key
        Column of doses or times, numbers of at least zero, constant within each population.

    Raises
    ------
    TypeError, KeyError, ValueError
        If the model is not trained, a column or the control is absent, a context has no control cells, or features have two rows for
        a perturbation or missing values.

    Examples
    --------
    >>> predictor = scgde.PerturbationPredictor(
    ...     model, perturbation_key="condition", control="ctrl", context_key="cell_type"
    ... )  # doctest: +SKIP
    >>> cells = predictor.fit().predict("stim", context="CD4T")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: GDEModel,
        perturbation_key: str,
        control: str,
        context_key: str | None = None,
        features: pd.DataFrame | None = None,
        sep: str | None = "+",
        dose_key: str | None = None,
    ) -> None:
        from scgde.model import GDEModel

        if not isinstance(model, GDEModel):
            message = f"model is a {type(model).__name__} and must be a trained GDEModel."
            raise TypeError(message)
        model._require_trained()
        self.model = model
        self.perturbation_key, self.context_key, self.dose_key = perturbation_key, context_key, dose_key
        self.control, self.sep = as_label(control), sep
        self.features = check_features(features, sep)
        self._own_features = features is not None
        self._design: Design | None = None
        self._shifts: ShiftModel | None = None
        self._space: ExpressionSpace | None = None
        self._targets = TargetEffects({}, {}, {})

    # ---------------------------------------------------------------------- fit

    def fit(self) -> Self:
        """Learn shifts from the populations that the model was trained on (those of its test part have no part in it).

        Returns
        -------
        The predictor itself.

        Raises
        ------
        ValueError
            If the model has no AnnData, the control has no cells, or a context has none.
        """
        if self.model.adata is None:
            message = "The model was loaded without its AnnData, which fit() needs; load it with adata=, or load a saved predictor."
            raise ValueError(message)
        used = self._used_cells()
        population = self.model._population_table(indices=used.tolist())
        self._check_constant(population.obs)
        table = describe(
            population.obs,
            self.perturbation_key,
            self.context_key,
            self.dose_key,
            self.sep,
            self.control,
            "populations",
        )
        table["n_cells"] = population.obs[f"{OWN_PREFIX}n_cells"].to_numpy()
        known = table["treatment"].notna() & table["context"].notna()
        few = known & (table["n_cells"] < MIN_CELLS)
        if few.any():
            names = list(population.obs_names[few][:5])
            logger.warning(f"{few.sum()} populations have fewer than {MIN_CELLS} cells and are left out: {names}.")
        use = (known & ~few).to_numpy()
        if not use.any():
            message = f"No population has {MIN_CELLS} cells with a {self.perturbation_key!r} and a context."
            raise ValueError(message)
        variance = np.square(population.layers["standard_error"][use].astype(np.float64))
        self._cells_by_row = None
        self._design = Design.from_populations(
            table[use].reset_index(drop=True), population.X[use].astype(np.float64), variance, self.control
        )
        if self._design.is_control.all():
            message = f"All populations are {self.control!r}: there is no perturbation to learn."
            raise ValueError(message)
        if not self._own_features:
            self.features = None
            genes = set(self._gene_targets())
            if any(part in genes for t in self._design.treatments for part in t.parts):
                self.features = gene_loadings(self.model, self._gene_targets())
        default = not self._own_features and self.features is not None
        self._shifts = ShiftModel(self._design, self.features, default_features=default)
        self._space = self._fit_space()
        self._targets = self._fit_targets()
        return self

    def _check_constant(self, populations: pd.DataFrame) -> None:
        """Raise where a column varies within populations, which therefore have no value of it."""
        assert self.model.adata is not None
        for name in ("perturbation_key", "context_key", "dose_key"):
            key = getattr(self, name)
            if key is not None and key in self.model.adata.obs and key not in populations:
                message = (
                    f"{name}={key!r} varies within populations of the model, which have to be of one value each: set the model up with "
                    f"a population_key that holds it, such as {[*self.model._population_keys(), key]}."
                )
                raise ValueError(message)

    def _fit_targets(self) -> TargetEffects:
        """Changes of target genes in training cells."""
        design, _ = self._fitted()
        if not self.model.module.observation.is_count:
            return TargetEffects({}, {}, {})
        columns = {name: i for i, name in enumerate(self._gene_targets())}
        table = self.model._table()
        used, codes = self._training_rows()
        totals = summed_counts(table, used, codes, len(design.contexts))
        return TargetEffects.fit(design, totals, totals.sum(1), columns)

    def _gene_targets(self) -> list[str]:
        """Genes of the data, each of which might be asked for as a perturbation."""
        return [str(name) for name in self.model._variables()] if self.model.module.observation.is_count else []

    @property
    def heads(self) -> pd.DataFrame:
        """What was chosen so far, one row for each candidate with weight.

        ``head`` is the situation, ``n_groups`` the number of groups that were left out in turn; then ``kernel``, ``noise``, ``slope``, ``mean``
        (whether there is a mean shift), ``error`` (squared leave-one-out error over that of the mean shift, or of the sum of the parts for
        combinations) and ``weight``. A head is fitted when something asks for it.
        """
        return self._fitted()[1].summary()

    @property
    def contexts(self) -> list[str]:
        """Contexts that have controls."""
        return self._fitted()[0].context_names

    @property
    def perturbations(self) -> list[str]:
        """Perturbations and combinations that were seen."""
        shifts = self._fitted()[1]
        return [*shifts.singles, *(shifts.label_of(parts, self.sep) for parts in shifts.combinations)]

    # ------------------------------------------------------------------ predict

    def predict_embedding(
        self,
        perturbation: Any,
        context: Any = None,
        adata: AnnData | None = None,
        *,
        dose: Any = None,
        unknown: Literal["raise", "mean"] = "raise",
    ) -> pd.DataFrame:
        """Predicted embeddings of perturbed populations.

        Parameters
        ----------
        perturbation, context, adata, dose, unknown
            See :meth:`predict`.

        Returns
        -------
        DataFrame with one row for each perturbation and the columns of the embedding. ``attrs`` holds, in the same order,
        ``standard_error`` (of each coordinate: what the head does not know, and the sampling of control cells; for the true
        embedding, so that one embedded from few cells spreads more), ``replicate_error`` (standard deviation of a single replicate
        around that, such as a guide; zero where populations have none), ``freedom`` (degrees of freedom of the standard errors),
        ``situation`` and ``extrapolated``.
        """
        controls = self._controls(context, adata, cells=False)
        treatments, shifts = self._predicted(perturbation, dose, controls, unknown)
        names = pd.Index([t.name(self.sep) for t in treatments], name="perturbation", dtype=object)
        z = np.stack([controls.z + s.mean for s in shifts])
        frame = pd.DataFrame(z, index=names, columns=coordinate_names(z.shape[1]))
        error = np.sqrt(np.stack([s.total(controls.variance) for s in shifts]))
        between = [self._fitted()[1].between(t, controls.context)[0] for t in treatments]
        frame.attrs = {
            "standard_error": error.tolist(),
            "replicate_error": np.sqrt(np.stack(between)).tolist(),
            "freedom": [s.freedom for s in shifts],
            "situation": [s.situation for s in shifts],
            "extrapolated": [s.extrapolated for s in shifts],
        }
        return frame

    def predict(
        self,
        perturbation: Any,
        context: Any = None,
        adata: AnnData | None = None,
        n_cells: int | None = 500,
        *,
        dose: Any = None,
        method: Literal["transport", "sample"] = "transport",
        unknown: Literal["raise", "mean"] = "raise",
        start: Literal["auto", "control"] = "auto",
        batch: Any = None,
        seed: int | None = None,
    ) -> AnnData:
        """Predict perturbed cells.

        Parameters
        ----------
        perturbation
            Label, or several; parts of a combination are joined by ``sep``, in any order.
        context
            Context to predict in. Needed where there are several, and free to choose with ``adata``.
        adata
            Control cells of your own, of a context that the model need not know. Of an AnnData that has the column of perturbations,
            the control cells are taken; of one that has the column of contexts and a ``context``, those of the context.
        n_cells
            Cells for each perturbation, from control cells in random order, again and again where there are fewer; None for each once.
        dose
            Dose, or one for each perturbation (or several for one). Between doses that were seen a shift is interpolated, from none
            at dose 0; beyond the last it is held, with a warning, ``obs["gde_extrapolated"]`` and a wider error.
        method
            ``"transport"``: control cells are moved by the flow, and their counts with them: molecules of genes that fall are
            thinned, those that rise come in, other genes stay. ``"sample"``: cells are generated from the predicted embedding;
            needs no control cells.
        unknown
            What to do about a perturbation that nothing describes: ``"raise"``, or take the mean shift of the others (``"mean"``).
        start
            Cells that transport starts from. ``"auto"``: control cells; for a pair that was seen in several replicates three quarters of
            them, but each at most once, are cells of that pair that trained the model, moved from the embedding of their replicate: they say
            what another replicate is like better than control cells can (with ``n_cells`` a number and without ``adata``). ``"control"``: control cells always.
        batch
            Batch to decode under; each source cell's own by default.
        seed
            Seed of the draws; ``scvi.settings.seed`` by default, else fresh.

        Returns
        -------
        AnnData of integer counts (floats for continuous rows), ``n_cells`` for each perturbation, in order. ``obs`` has the columns of
        perturbation, context and dose, those of the model's population key, batch and covariates, and with ``method="transport"``
        ``gde_source_cell`` (the cell that was moved) and ``gde_start`` (``"control"`` or ``"perturbed"``: which cells it is of); ``gde_method``, ``gde_situation`` and ``gde_extrapolated``.

        Raises
        ------
        KeyError
            If the context or batch is unknown, or a perturbation (or a part of a combination) was never seen and has no features: the
            error names it.
        ValueError
            If an argument is out of range, or there are no control cells.
        """
        if n_cells is not None:
            check_count("n_cells", n_cells, "the number of cells for each perturbation")
        if method not in ("transport", "sample"):
            message = f"method={method!r} must be 'transport' or 'sample'."
            raise ValueError(message)
        if start not in ("auto", "control"):
            message = f"start={start!r} must be 'auto' or 'control'."
            raise ValueError(message)
        controls = self._controls(context, adata, cells=method == "transport" or n_cells is None)
        treatments, shifts = self._predicted(perturbation, dose, controls, unknown)
        mover = CellMover(self.model, controls, batch=batch, seed=seed)
        blocks = []
        for treatment, shift in zip(treatments, shifts, strict=True):
            target = controls.z + shift.mean
            effects = self._targets.log_ratios(treatment, controls.context)
            many = start == "auto" and method == "transport" and n_cells is not None
            seen = self._seen_cells(treatment, mover, shift) if many else []
            if method == "sample":
                cells = mover.generate(target, n_cells)
            elif seen and n_cells is not None:
                own = SeenCells(self.model, seen, batch=batch, seed=int(mover.rng.integers(2**31)))
                cells = move_both(mover, own, target, n_cells, effects)
            else:
                cells = mover.move(target, mover.choose(n_cells), effects)
            self._name(cells, treatment, shift, controls, method)
            blocks.append(cells)
        return joined(blocks)

    def _predicted(
        self, perturbation: Any, dose: Any, controls: SourceCells, unknown: str
    ) -> tuple[list[Treatment], list[Shift]]:
        if unknown not in ("raise", "mean"):
            message = f"unknown={unknown!r} must be 'raise' or 'mean'."
            raise ValueError(message)
        _, shifts = self._fitted()
        if dose is not None and self.dose_key is None:
            message = f"dose={dose!r}: the predictor was made without dose_key."
            raise ValueError(message)
        treatments = as_treatments(perturbation, self.sep, dose, shifts.singles, self.control)
        if any(t.parts == (self.control,) for t in treatments):
            message = f"{self.control!r} is the control; its cells are given, not predicted."
            raise ValueError(message)
        results = [shifts.predict(t, controls.context, controls.z, unknown) for t in treatments]
        beyond = [t.name(self.sep) for t, s in zip(treatments, results, strict=True) if s.extrapolated]
        if beyond:
            logger.warning(
                f"Doses outside the range that was seen, of {sorted(set(beyond))[:5]}: predictions are extrapolated."
            )
        return treatments, results

    def _name(self, cells: AnnData, treatment: Treatment, shift: Shift, controls: SourceCells, method: str) -> None:
        """Write what the cells are a prediction of."""
        label = treatment.name(self.sep)
        obs = cells.obs
        keys = self.model._population_keys()
        if self.context_key is not None and controls.context is not None:
            obs[self.context_key] = pd.Categorical([controls.context] * len(obs))
        obs[self.perturbation_key] = pd.Categorical([label] * len(obs))
        if self.perturbation_key not in keys:
            amount = None if treatment.dose is None else f"{treatment.dose:g}"
            parts = [p for p in (controls.context if self.context_key else None, label, amount) if p]
            obs[keys[-1]] = pd.Categorical(["|".join(parts)] * len(obs))
        if self.perturbation_key in keys:
            batch = self.model.registry_["setup_args"]["batch_key"]
            for key in set(keys) - {self.perturbation_key, self.context_key, self.dose_key, batch}:
                obs[key] = pd.Categorical([PREDICTED] * len(obs))
        if self.dose_key is not None:
            obs[self.dose_key] = np.nan if treatment.dose is None else treatment.dose
        obs[f"{OWN_PREFIX}method"] = pd.Categorical([method] * len(obs))
        obs[f"{OWN_PREFIX}situation"] = pd.Categorical([shift.situation] * len(obs))
        obs[f"{OWN_PREFIX}extrapolated"] = shift.extrapolated
