"""What a prediction has to beat: none of these needs a model of populations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    import pandas as pd

    from scgde.data import CellTable
    from scgde.perturbation.design import Treatment
    from scgde.perturbation.space import ExpressionSpace

MAX_POOLED = 2000
"""Cells that the pasted populations of other perturbations are thinned to."""

PASTED = "mean of training perturbations"

MIN_TARGETS = 3
"""Training targets that a mean change of target genes is made of at least."""

ALPHAS = np.logspace(-2, 6, 25)


@dataclass
class BaselineData:
    """Means of training populations, in log-normalised expression and in the cell latent.

    Attributes
    ----------
    contexts, treatments
        Of each pair, ``n`` of them.
    is_control
        ``(n,)``.
    expression, latent
        Means, ``(n, n_vars)`` and ``(n, n_latent)``.
    cells
        Training cells of each pair.
    """

    contexts: list[str]
    treatments: list[Treatment]
    is_control: np.ndarray
    expression: np.ndarray
    latent: np.ndarray
    cells: list[np.ndarray]
    table: CellTable
    space: ExpressionSpace
    features: pd.DataFrame | None

    def __post_init__(self) -> None:
        control = {c: i for i, c in enumerate(self.contexts) if self.is_control[i]}
        self.control = control
        rows = [control[c] for c in self.contexts]
        self.delta = self.expression - self.expression[rows]
        self.latent_delta = self.latent - self.latent[rows]

    def rows_of(self, treatment: Treatment, *, contexts: set[str] | None = None, but: str | None = None) -> list[int]:
        """Rows of a treatment; of all its doses if it has none."""
        return [
            i
            for i, t in enumerate(self.treatments)
            if t.parts == treatment.parts
            and (treatment.dose is None or t.dose == treatment.dose)
            and self.contexts[i] != but
            and (contexts is None or self.contexts[i] in contexts)
        ]


@dataclass(frozen=True)
class Forecast:
    """A baseline's prediction: either a change to add to log-normalised control cells, cells, or a change of latents."""

    shift: np.ndarray | None = None
    cells: np.ndarray | None = None
    latent: np.ndarray | None = None


def forecasts(
    data: BaselineData, treatment: Treatment, context: str | None, control_mean: np.ndarray, rng: np.random.Generator
) -> dict[str, Forecast]:
    """All baselines that apply, by name.

    Parameters
    ----------
    data
        Training populations.
    treatment, context
        What is predicted; a context that training did not see has no name there.
    control_mean
        Mean log-normalised expression of the control cells, ``(n_vars,)``.
    rng
        Randomness of the choice of pasted cells.

    Returns
    -------
    ``control copy``; ``mean of training perturbations``, cells of training populations pasted: of replicates of the same pair if there
    are any, else of the same perturbation in other contexts if it was seen there, else of the other perturbations of the context; ``mean shift``, the mean change of the same
    populations; ``latent shift``, the same in the latent of single cells (Lotfollahi et al. 2019, Nat Methods 16, 715-721), summed
    over the parts of a combination; ``target gene alone``, for perturbations with the name of a gene: the mean change of their own
    gene in training, and nothing else; ``nearest``, the change of the population that is nearest: by its control if contexts
    are at stake, by features or shared parts if perturbations are; ``linear``, ridge regression of the change on features, on the
    control's expression, or on indicators of parts; ``additive``, the summed changes of the parts of a combination
    (Ahlmann-Eltze, Huber and Anders 2025, Nat Methods 22, 1657-1661).
    """
    here = context if context in data.control else None
    known = {c for i, c in enumerate(data.contexts) if not data.is_control[i]}
    replicates = [] if here is None else data.rows_of(treatment, contexts={here})
    elsewhere = data.rows_of(treatment, but=context)
    result = {"control copy": Forecast(shift=np.zeros_like(control_mean))}
    if replicates:
        peers = replicates
    elif elsewhere:
        peers = elsewhere
        result["nearest"], result["linear"] = _by_control(data, elsewhere, control_mean)
    else:
        inside = {here} if here in known else None
        peers = [
            i
            for i, t in enumerate(data.treatments)
            if not data.is_control[i]
            and t.parts != treatment.parts
            and (inside is None or data.contexts[i] in inside)
            and (len(t.parts) == 1 or len(treatment.parts) > 1)
        ]
        if len(treatment.parts) == 1:
            result |= _by_features(data, peers, treatment)
        else:
            result |= _by_parts(data, peers, treatment, inside)
        result |= _target_alone(data, treatment)
    if peers:
        mean = Forecast(shift=data.delta[peers].mean(0))
        result["mean shift"] = mean
        result[PASTED] = Forecast(cells=_pasted(data, peers, rng))
        if "latent shift" not in result:
            result["latent shift"] = Forecast(latent=data.latent_delta[peers].mean(0))
        # nothing nearer or more telling is known: the mean is what these would say
        for name in ("nearest", "linear"):
            result.setdefault(name, mean)
    return result


def _pasted(data: BaselineData, peers: list[int], rng: np.random.Generator) -> np.ndarray:
    share = max(MAX_POOLED // len(peers), 1)
    rows = [c if len(c) <= share else rng.choice(c, share, replace=False) for c in (data.cells[i] for i in peers)]
    return data.space.normalise(data.table.rows(np.concatenate(rows)))


def _by_control(data: BaselineData, rows: list[int], control_mean: np.ndarray) -> tuple[Forecast, Forecast]:
    """The nearest context's change, and ridge regression of the change on the control's expression."""
    own = data.expression[[data.control[data.contexts[i]] for i in rows]]
    nearest = rows[int(np.square(own - control_mean).sum(1).argmin())]
    return Forecast(shift=data.delta[nearest]), Forecast(shift=_ridge(own, data.delta[rows], control_mean[None]))


def _by_features(data: BaselineData, peers: list[int], treatment: Treatment) -> dict[str, Forecast]:
    """The nearest perturbation by features, and ridge regression on features."""
    if data.features is None or treatment.parts[0] not in data.features.index:
        return {}
    rows = [
        i for i in peers if len(data.treatments[i].parts) == 1 and data.treatments[i].parts[0] in data.features.index
    ]
    if not rows:
        return {}
    x = data.features.loc[[data.treatments[i].parts[0] for i in rows]].to_numpy()
    asked = data.features.loc[[treatment.parts[0]]].to_numpy()
    nearest = rows[int(np.square(x - asked).sum(1).argmin())]
    return {
        "nearest": Forecast(shift=data.delta[nearest]),
        "linear": Forecast(shift=_ridge(x, data.delta[rows], asked)),
    }


def _by_parts(data: BaselineData, peers: list[int], treatment: Treatment, inside: set | None) -> dict[str, Forecast]:
    """Sums over parts, the observed treatment that shares most of them, and ridge regression on indicators."""
    result = {}
    shifts: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    for part in treatment.parts:
        rows = data.rows_of(type(treatment)((part,), treatment.dose), contexts=inside) or data.rows_of(
            type(treatment)((part,), treatment.dose)
        )
        if not rows:
            shifts = []
            break
        shifts.append(data.delta[rows].mean(0))
        latents.append(data.latent_delta[rows].mean(0))
    if shifts:
        result["additive"] = Forecast(shift=np.sum(shifts, axis=0))
        result["latent shift"] = Forecast(latent=np.sum(latents, axis=0))
    if not peers:
        return result
    names = sorted({p for i in peers for p in data.treatments[i].parts} | set(treatment.parts))
    x = np.array([[float(n in data.treatments[i].parts) for n in names] for i in peers])
    asked = np.array([[float(n in treatment.parts) for n in names]])
    likeness = (x @ asked[0]) / np.maximum(np.maximum(x, asked).sum(1), 1)
    result["nearest"] = Forecast(shift=data.delta[peers[int(likeness.argmax())]])
    result["linear"] = Forecast(shift=_ridge(x, data.delta[peers], asked))
    return result


def _target_alone(data: BaselineData, treatment: Treatment) -> dict[str, Forecast]:
    """The mean change of target genes, put on the asked target genes."""
    column = {name: i for i, name in enumerate(data.table.var_names.astype(str))}
    known = [
        data.delta[i, column[t.parts[0]]]
        for i, t in enumerate(data.treatments)
        if len(t.parts) == 1 and t.parts[0] in column and not data.is_control[i]
    ]
    genes = [column[part] for part in treatment.parts if part in column]
    if len(known) < MIN_TARGETS:
        return {}
    shift = np.zeros(data.delta.shape[1])
    shift[genes] = np.mean(known)
    return {"target gene alone": Forecast(shift=shift)}


def _ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Ridge regression with a penalty chosen by leave-one-out errors; the mean of few rows."""
    if len(x) < 4:
        return y.mean(0)
    return np.asarray(make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(x, y).predict(asked)[0])
