"""What becomes of clones: classes or compositions of late cells from early embeddings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from scgde.data.populations import as_label, column_labels
from scgde.lineage.information import MIN_CLONES, training_clones

if TYPE_CHECKING:
    from collections.abc import Sequence

PENALTIES = np.logspace(-3, 2, 8)
"""Inverse ridge penalties to choose from."""

POWERS = (0.0, 0.5, 1.0)
"""Powers of the number of cells that embeddings are scaled by, to choose from where numbers are given."""

N_FOLDS = 5


@dataclass(frozen=True)
class Fate:
    """Predicted fates of clones that were left out.

    Attributes
    ----------
    probabilities
        Clones x classes; rows add up to one.
    truth
        Late composition of the same clones, likewise.
    auroc
        Area under the curve of each class against the others, by the class with the largest share (clones without one are left out); NaN for
        classes that no clone, or every one, is of.
    log_loss, baseline
        Mean cross-entropy in bits of the late composition under the prediction, and under the mean composition of training clones.
    penalty, power
        Inverse penalty and power of the number of cells that were chosen by cross-validation among training clones.
    """

    probabilities: pd.DataFrame
    truth: pd.DataFrame
    auroc: pd.Series
    log_loss: float
    baseline: float
    penalty: float
    power: float = 0.0

    @property
    def mean_auroc(self) -> float:
        """Mean over classes."""
        return float(self.auroc.mean())


def posterior_embedding(embedding: pd.DataFrame, standard_error: pd.DataFrame) -> pd.DataFrame:
    r"""Embeddings of small populations drawn towards those of all, by how little their cells tell.

    Posterior means :math:`m + B (B + S_i)^{-1} (z_i - m)`, with the sampling covariance ``S`` (diagonal) of each population and the covariance ``B``
    between true embeddings, which is that of the observed ones less the mean of ``S`` (Efron and Morris 1973, J Am Stat Assoc 68, 117-130).

    Parameters
    ----------
    embedding, standard_error
        From :meth:`GDEModel.get_population_embedding` and :meth:`GDEModel.get_population_standard_error`, populations x coordinates.
        Populations without a standard error (one cell) take the largest.

    Returns
    -------
    DataFrame of the same form.

    Raises
    ------
    ValueError
        If rows or columns differ, or no population has a standard error.
    """
    if not (embedding.index.equals(standard_error.index) and embedding.shape == standard_error.shape):
        message = "embedding and standard_error must have the same populations and coordinates, in the same order."
        raise ValueError(message)
    z, s = embedding.to_numpy(dtype=np.float64), np.square(standard_error.to_numpy(dtype=np.float64))
    if len(z) < 2 or not np.isfinite(s).any(axis=0).all():
        message = (
            f"{len(z)} populations, {int(np.isfinite(s).all(1).sum())} of them with standard errors: nothing tells how much of their differences is "
            "the sampling of cells. Populations of one cell have none."
        )
        raise ValueError(message)
    s = np.where(np.isfinite(s), s, np.nanmax(s, axis=0))
    mean = z.mean(0)
    size, axes = np.linalg.eigh(np.cov(z, rowvar=False).reshape(z.shape[1], -1) - np.diag(s.mean(0)))
    between = (axes * np.maximum(size, 0.0)) @ axes.T
    result = np.stack(
        [
            mean + between @ np.linalg.lstsq(between + np.diag(v), r - mean, rcond=None)[0]
            for r, v in zip(z, s, strict=True)
        ]
    )
    return pd.DataFrame(result, index=embedding.index, columns=embedding.columns)


def late_composition(
    obs: pd.DataFrame, clone_key: str, state_key: str, time_key: str | None = None, time: object = None
) -> pd.DataFrame:
    """Counts of cells of each clone in each state, such as :func:`predict_fate` takes of late cells.

    Parameters
    ----------
    obs
        Annotation of cells.
    clone_key, state_key
        Columns of it. Cells without a clone or a state are left out.
    time_key
        Column of times.
    time
        Time of the cells to count; a number matches however it is written, as a string too. By default all cells are counted.

    Returns
    -------
    Clones x states. Clones and states without a cell are absent.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If ``time`` is given without its column, or no cell is left.
    """
    for name, key in (("clone_key", clone_key), ("state_key", state_key), ("time_key", time_key)):
        if key not in obs and not (name == "time_key" and key is None):
            message = f"{name}={key!r} is not a column of obs; there are {[str(c) for c in obs.columns]}."
            raise KeyError(message)
    used = np.ones(len(obs), dtype=bool)
    if time is not None:
        if time_key is None:
            message = f"time={time!r} needs time_key=, the column of obs that times are in."
            raise ValueError(message)
        times = column_labels(obs[time_key])
        used = _is_time(times, as_label(time))
        if not used.any():
            message = f"No cell is of {time_key}={time!r}; there are {sorted(times.dropna().unique())}."
            raise ValueError(message)
    pairs = pd.DataFrame({"clone": column_labels(obs[clone_key]), "state": column_labels(obs[state_key])})
    pairs = pairs[used].dropna()
    if not len(pairs):
        message = f"None of {int(used.sum())} cells has both a clone ({clone_key!r}) and a state ({state_key!r})."
        raise ValueError(message)
    return pd.crosstab(pairs["clone"], pairs["state"])


def _is_time(times: pd.Series, time: str) -> np.ndarray:
    """Rows of a time among labels: those of the same label or, if there is none, of the same number."""
    same = (times == time).to_numpy()
    number = pd.to_numeric(time, errors="coerce")
    if not same.any() and np.isfinite(number):
        values = pd.to_numeric(times, errors="coerce").to_numpy(dtype=np.float64)
        same = np.isclose(values, number, rtol=1e-6, atol=0)
    return same


def predict_fate(
    early: pd.DataFrame,
    late: pd.Series | pd.DataFrame,
    *,
    n_cells: pd.Series | None = None,
    training: Sequence[str] | None = None,
    seed: int = 0,
) -> Fate:
    """Fates of left-out clones from their early embeddings, by ridge-penalised multinomial regression.

    Parameters
    ----------
    early
        Embeddings, clones x coordinates (see :func:`posterior_embedding` for clones of few cells).
    late
        Class of each clone, or composition of its late cells (clones x classes, not negative; counts will do, see
        :func:`late_composition`). Clones in one of them only have no part.
    training
        Clones to learn from; by default every second one. The penalty is chosen among them by cross-validation over clones.
    seed
        Seed of the split and the folds.

    Raises
    ------
    ValueError
        If there are too few clones, one class only, several rows for a clone, or a composition is negative or empty.
    """
    if not (early.index.is_unique and late.index.is_unique):
        message = "early or late has several rows for a clone; give one embedding and one fate for each."
        raise ValueError(message)
    composition = _composition(late)
    clones = early.index.intersection(composition.index)
    rng = np.random.default_rng(seed)
    own = training_clones(clones, training, rng)
    if own.sum() < MIN_CLONES or (~own).sum() < 1:
        message = (
            f"{own.sum()} clones to learn from and {(~own).sum()} to predict; at least {MIN_CLONES} and 1 are needed."
        )
        raise ValueError(message)
    y = composition.loc[clones].to_numpy()
    classes = y[own].sum(0) > 0
    if classes.sum() < 2:
        message = "All clones to learn from have the same fate: there is nothing to predict."
        raise ValueError(message)
    raw = early.loc[clones].to_numpy(dtype=np.float64)
    inputs = _scaled(raw, None if n_cells is None else n_cells.reindex(clones).to_numpy(dtype=np.float64), own)
    power, penalty = _choose({power: x[own] for power, x in inputs.items()}, y[own], seed)
    x = inputs[power]
    probability = _fit_predict(x[own], y[own], x[~own], penalty)
    mean = y[own].mean(0)
    names, held = composition.columns, clones[~own]
    truth = pd.DataFrame(y[~own], index=held, columns=names)
    frame = pd.DataFrame(probability, index=held, columns=names)
    # clones of two fates alike are of neither
    clear = (y[~own] == y[~own].max(1, keepdims=True)).sum(1) == 1
    main, auroc = y[~own][clear].argmax(1), {}
    for i, name in enumerate(names):
        is_one = main == i
        auroc[name] = roc_auc_score(is_one, probability[clear, i]) if 0 < is_one.sum() < len(main) else np.nan
    return Fate(frame, truth, pd.Series(auroc), _bits(y[~own], probability), _bits(y[~own], mean[None]), penalty, power)


def _composition(late: pd.Series | pd.DataFrame) -> pd.DataFrame:
    if isinstance(late, pd.Series):
        return pd.get_dummies(late.dropna().astype(str)).astype(float)
    values = late.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values.sum(1) <= 0).any():
        message = "late holds compositions that are negative, missing or empty; drop clones without late cells."
        raise ValueError(message)
    return pd.DataFrame(values / values.sum(1, keepdims=True), index=late.index, columns=late.columns)


def _fit_predict(x: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float) -> np.ndarray:
    """Probabilities of all classes; each clone counts once, split over its classes."""
    rows, classes = np.nonzero(y > 0)
    result = np.zeros((len(new), y.shape[1]))
    if len(np.unique(classes)) < 2:
        result[:, classes[0]] = 1.0
        return result
    model = LogisticRegression(C=penalty, max_iter=1000)
    with warnings.catch_warnings():
        # the weakest penalties may need more steps, and are not chosen where that matters
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[rows], classes, sample_weight=y[rows, classes])
    result[:, model.classes_] = model.predict_proba(new)
    return result


def _scaled(raw: np.ndarray, n_cells: np.ndarray | None, own: np.ndarray) -> dict[float, np.ndarray]:
    """Embeddings about their mean, times powers of the number of cells, at unit spread over training clones."""
    if n_cells is None:
        powers: Sequence[float] = (0.0,)
        n_cells = np.ones(len(raw))
    elif np.isfinite(n_cells).all() and (n_cells > 0).all():
        powers = POWERS
    else:
        message = "n_cells must hold a number of cells above zero for every clone of early."
        raise ValueError(message)
    result = {}
    for power in powers:
        x = (raw - raw[own].mean(0)) * (n_cells / n_cells[own].mean())[:, None] ** power
        result[power] = x / max(float(x[own].std(0).mean()), 1e-12)
    return result


def _choose(inputs: dict[float, np.ndarray], y: np.ndarray, seed: int) -> tuple[float, float]:
    """Power and penalty of the least cross-validated loss."""
    folds = list(KFold(min(N_FOLDS, len(y)), shuffle=True, random_state=seed).split(y))
    losses = {
        (power, float(c)): np.mean([_bits(y[b], _fit_predict(x[a], y[a], x[b], c)) for a, b in folds])
        for power, x in inputs.items()
        for c in PENALTIES
    }
    return min(losses, key=losses.__getitem__)


def _bits(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean cross-entropy in bits; a class that was never seen costs as much as one in a million."""
    return float(-(truth * np.log2(np.maximum(probability, 1e-6))).sum(1).mean())
