"""Populations of a trained model as contexts times perturbations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde.data.populations import as_label, column_labels
from scgde.perturbation.replicates import replicate_variance

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_CELLS = 5
"""Fewest cells of a population that teaches anything, or that a prediction is compared with."""

ONE_CONTEXT = "all"
"""Name of the only context where no ``context_key`` is given."""


@dataclass(frozen=True)
class Treatment:
    """A perturbation, or a combination of several, at a dose.

    Attributes
    ----------
    parts
        Names of the perturbations, sorted.
    dose
        None where there is none.
    label
        As it was written; of no meaning in comparisons.
    """

    parts: tuple[str, ...]
    dose: float | None = None
    label: str = field(default="", compare=False)

    @classmethod
    def parse(cls, label: object, sep: str | None, dose: float | None = None, control: str | None = None) -> Treatment:
        """Split a label such as ``"A+B"``; the order of parts has no meaning.

        The control among other parts (``"A+ctrl"``) and a part that is named twice (two guides of one gene) add nothing.
        """
        name = as_label(label)
        parts = {part.strip() for part in name.split(sep)} if sep and name != control else {name}
        if not all(parts):
            message = (
                f"perturbation {name!r} has an empty part between separators {sep!r}; correct it, or pass sep=None."
            )
            raise ValueError(message)
        if len(parts) > 1:
            parts.discard(str(control))
        return cls(tuple(sorted(parts)), dose, name)

    def name(self, sep: str | None) -> str:
        """Label as it was written, or made of the parts."""
        return self.label or (sep or "+").join(self.parts)


@dataclass(frozen=True)
class Design:
    """One row for each pair of a context and a treatment that has cells.

    Attributes
    ----------
    contexts, treatments
        Of each row, ``n`` of them.
    z, variance
        Embedding of the pair and the squared standard error of its coordinates, each ``(n, n_embedding)``.
    n_cells
        ``(n,)``.
    control
        Name of the control.
    between, between_freedom
        Variance of each coordinate between replicates of the pair, ``(n, n_embedding)``, zero without replicates; and the degrees of
        freedom that it is known with, ``(n,)``.
    """

    contexts: list[str]
    treatments: list[Treatment]
    z: np.ndarray
    variance: np.ndarray
    n_cells: np.ndarray
    control: str
    between: np.ndarray
    between_freedom: np.ndarray

    @property
    def is_control(self) -> np.ndarray:
        """Which rows are controls, ``(n,)``."""
        return np.array([t.parts == (self.control,) for t in self.treatments])

    @property
    def context_names(self) -> list[str]:
        """Contexts that have controls, sorted."""
        return sorted({c for c, yes in zip(self.contexts, self.is_control, strict=True) if yes})

    def control_row(self, context: str) -> int:
        """Row of a context's control."""
        return int(next(i for i in np.flatnonzero(self.is_control) if self.contexts[i] == context))

    @classmethod
    def from_populations(cls, table: pd.DataFrame, z: np.ndarray, variance: np.ndarray, control: str) -> Design:
        """Join populations that are replicates of one pair of context and treatment.

        Parameters
        ----------
        table
            Columns ``context``, ``treatment`` and ``n_cells``, one row for each population.
        z, variance
            Embeddings and squared standard errors of the populations.

        Raises
        ------
        ValueError
            If the control has no cells, or a context has no control.
        """
        keys = [(c, t) for c, t in zip(table["context"], table["treatment"], strict=True)]
        pairs = list(dict.fromkeys(keys))
        position = {pair: i for i, pair in enumerate(pairs)}
        codes = np.array([position[key] for key in keys])
        n = table["n_cells"].to_numpy(dtype=np.float64)
        is_control = np.array([t.parts == (control,) for _, t in pairs])
        between, freedom = replicate_variance(z, variance, codes, is_control)
        errors = variance + between[codes]
        weight = 1 / np.maximum(errors.mean(1), 1e-12)
        total = np.bincount(codes, weight)
        joined, joined_errors = (np.zeros((len(pairs), z.shape[1])) for _ in range(2))
        np.add.at(joined, codes, z * weight[:, None])
        np.add.at(joined_errors, codes, errors * np.square(weight)[:, None])
        design = cls(
            [c for c, _ in pairs],
            [t for _, t in pairs],
            joined / total[:, None],
            joined_errors / np.square(total)[:, None],
            np.bincount(codes, n).astype(np.int64),
            control,
            between,
            freedom,
        )
        if not design.is_control.any():
            known = sorted({t.name(None) for t in design.treatments})
            message = f"control={control!r} is not among the perturbations, of which there are {known[:8]}."
            raise ValueError(message)
        without = sorted(set(design.contexts) - set(design.context_names))
        if without:
            message = (
                f"{len(without)} contexts have no {control!r} cells: {without[:8]}. A shift is measured from the control of the "
                "same context: add their controls, or leave these contexts out of the model."
            )
            raise ValueError(message)
        return design

    def to_dict(self) -> dict[str, Any]:
        """Plain arrays by name."""
        return {
            "contexts": list(self.contexts),
            "parts": [list(t.parts) for t in self.treatments],
            "labels": [t.label for t in self.treatments],
            "dose": np.array([np.nan if t.dose is None else t.dose for t in self.treatments]),
            "z": self.z,
            "variance": self.variance,
            "n_cells": self.n_cells,
            "between": self.between,
            "between_freedom": self.between_freedom,
            "control": self.control,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Design:
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ValueError
            If it was written by another version.
        """
        if "between" not in content:
            message = "The predictor was saved by another version of scgde; fit it again on the same model."
            raise ValueError(message)
        dose = np.asarray(content["dose"], dtype=np.float64)
        treatments = [
            Treatment(tuple(p), None if np.isnan(d) else float(d), label)
            for p, d, label in zip(content["parts"], dose, content["labels"], strict=True)
        ]
        arrays = {
            name: np.asarray(content[name]) for name in ("z", "variance", "n_cells", "between", "between_freedom")
        }
        return cls(list(content["contexts"]), treatments, **arrays, control=content["control"])


def describe(
    obs: pd.DataFrame,
    perturbation_key: str | None,
    context_key: str | None,
    dose_key: str | None,
    sep: str | None,
    control: str,
    argument: str = "adata",
) -> pd.DataFrame:
    """Columns ``context`` and ``treatment`` of cells or populations; None where a label is missing or a key is None.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If a dose is not a number.
    """
    for name, key in (("perturbation_key", perturbation_key), ("context_key", context_key), ("dose_key", dose_key)):
        if key is not None and key not in obs:
            message = f"{name}={key!r} is not a column of {argument}; there are {[str(c) for c in obs.columns]}."
            raise KeyError(message)
    nothing = pd.Series(None, index=obs.index, dtype=object)
    names = nothing if perturbation_key is None else column_labels(obs[perturbation_key])
    context = pd.Series(ONE_CONTEXT, index=obs.index) if context_key is None else column_labels(obs[context_key])
    dose = np.full(len(obs), np.nan)
    if dose_key is not None:
        dose = numbers(obs[dose_key], dose_key)
    known: dict[tuple[str, float | None], Treatment] = {}
    treatments: list[Treatment | None] = []
    for label, number in zip(names, dose, strict=True):
        if not isinstance(label, str):
            treatments.append(None)
            continue
        amount = None if label == control or np.isnan(number) else float(number)
        if (label, amount) not in known:
            known[label, amount] = Treatment.parse(label, sep, amount, control)
        treatments.append(known[label, amount])
    frame = pd.DataFrame({"context": np.asarray(context, dtype=object)}, index=range(len(obs)))
    frame["treatment"] = pd.Series(treatments, dtype=object)
    return frame


def numbers(column: pd.Series, key: str) -> np.ndarray:
    """Doses as numbers, missing ones NaN."""
    try:
        dose = pd.to_numeric(column.astype(object)).to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        message = f"obs[{key!r}] holds doses that are not numbers; convert them (without units)."
        raise ValueError(message) from error
    if np.isinf(dose).any() or (dose < 0).any():
        message = f"obs[{key!r}] holds negative or infinite doses."
        raise ValueError(message)
    return dose


def check_features(features: pd.DataFrame | None, sep: str | None) -> pd.DataFrame | None:
    """Features as float64 with string labels.

    Raises
    ------
    TypeError
        If they are no DataFrame.
    ValueError
        If a perturbation has two rows, or values are missing, infinite or not numbers.
    """
    if features is None:
        return None
    if not isinstance(features, pd.DataFrame):
        message = f"features is a {type(features).__name__}; it must be a DataFrame, one row for each perturbation."
        raise TypeError(message)
    frame = features.copy()
    frame.index = pd.Index([as_label(label) for label in frame.index], dtype=object)
    if not frame.index.is_unique:
        twice = list(frame.index[frame.index.duplicated()].unique()[:8])
        message = f"features has several rows for {twice}; keep one row for each perturbation."
        raise ValueError(message)
    if sep and any(sep in label for label in frame.index):
        message = f"features has rows of combinations (labels with {sep!r}); give rows for their parts."
        raise ValueError(message)
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        message = "features holds values that are not numbers; encode categories as indicator columns."
        raise ValueError(message) from error
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        message = f"features has NaN or infinite values for {list(frame.index[bad][:8])}; impute or drop these rows."
        raise ValueError(message)
    if frame.shape[1] == 0:
        message = "features has no columns."
        raise ValueError(message)
    return pd.DataFrame(values, index=frame.index, columns=[str(c) for c in frame.columns])


def as_treatments(
    labels: Any, sep: str | None, doses: Any, known: Sequence[str], control: str | None = None
) -> list[Treatment]:
    """Treatments that a user asks for by labels and doses."""
    names = [labels] if isinstance(labels, str) or np.isscalar(labels) else [] if labels is None else list(labels)
    if not names:
        message = "perturbation is empty; give at least one label."
        raise ValueError(message)
    amounts = [doses] * len(names) if doses is None or isinstance(doses, str) or np.ndim(doses) == 0 else list(doses)
    if len(names) == 1 and len(amounts) > 1:
        names = names * len(amounts)
    if len(amounts) != len(names):
        message = f"dose has {len(amounts)} entries for {len(names)} perturbations."
        raise ValueError(message)
    whole = set(known)
    treatments = []
    for name, amount in zip(names, amounts, strict=True):
        label = as_label(name)
        is_number = isinstance(amount, int | float | np.number | np.ndarray) and not isinstance(amount, bool)
        if amount is not None and not (is_number and np.isfinite(amount) and amount >= 0):
            message = f"dose={amount!r} must be a finite number of at least zero."
            raise ValueError(message)
        value = None if amount is None else float(amount)
        # a name that holds the separator may be a perturbation's own
        treatments.append(Treatment.parse(label, None if label in whole else sep, value, control))
    return treatments
