"""Barcoded clones with a memory that is known, and the information that it carries from early to late cells."""

from __future__ import annotations

import itertools
from math import comb, lgamma
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import logsumexp

from scgde.datasets import _laws
from scgde.datasets.simulate import (
    _assemble,
    _check_expression,
    _check_integer,
    _check_real,
    _check_sizes,
    _draw_cells,
    _expression,
)

MAX_OUTCOMES = 2_000_000
"""Pairs of early and late outcomes that information is summed over at most."""


def simulate_lineage(
    n_clones: int = 200,
    *,
    n_fates: int = 4,
    n_early_states: int = 6,
    fidelity: float = 0.8,
    bias: float = 0.6,
    purity: float = 0.7,
    early_cells: tuple[int, int] = (3, 10),
    late_cells: tuple[int, int] = (5, 30),
    unbarcoded: float = 0.3,
    separation: float = 4.0,
    n_genes: int = 200,
    n_latent: int = 8,
    depth: float = 2000.0,
    depth_sd: float = 0.4,
    dispersion: float = 2.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate the counts of barcoded clones at an early and a late day, with a memory of known information.

    Each clone has one of ``n_fates`` memories. Its early cells are in states of a progenitor, drawn from the memory's early law: a
    share ``bias`` of it is on states of its own, the rest is the same for all. Its late cells are drawn from a late law, that of its memory
    with probability ``fidelity`` and else of another; a share ``purity`` of late cells is of the law's own fate, the rest is spread over all. A state is a normal
    law of the latent; counts are as in :func:`simulate_populations`. Memory, laws and states are discrete, so that the information
    between early and late is a finite sum (:func:`lineage_information`).

    Parameters
    ----------
    n_clones
        Number of clones.
    n_fates
        Number of memories, late laws and late states.
    n_early_states
        Number of states of progenitors, at least ``n_fates``.
    fidelity, bias, purity
        Between 0 and 1; see above.
    early_cells, late_cells
        Smallest and largest number of cells of a clone on each day; zero cells are a clone that was not seen.
    unbarcoded
        Cells without a barcode over all cells. Their ``clone`` is missing.
    separation
        Standard deviation of the centres of states, in standard deviations of cells of one state.
    n_genes, n_latent, depth, depth_sd, dispersion
        See :func:`simulate_populations`.
    seed
        Seed.

    Returns
    -------
    Integer counts with ``obs`` columns ``clone`` (missing without barcode), ``time`` (``early`` or ``late``) and ``state``,
    ``obsm["X_true_latent"]``, and ``uns["simulation"]`` as from :func:`simulate_populations` (its populations are the states), with ``early_laws`` and
    ``late_laws`` (laws x states), their ``joint`` probability, and for ``clones`` their ``early_law`` and ``late_law``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type.

    Examples
    --------
    >>> adata = simulate_lineage(20, n_genes=50)
    >>> sorted(adata.obs["time"].unique())
    ['early', 'late']
    """
    for name, count, least in (
        ("n_clones", n_clones, 1),
        ("n_fates", n_fates, 2),
        ("n_early_states", n_early_states, n_fates),
    ):
        _check_integer(name, count, least)
    _check_expression(n_latent, n_genes, depth, depth_sd, dispersion, seed)
    _check_real("separation", separation, "a finite number above 0", lambda number: number > 0)
    for name, value in {"fidelity": fidelity, "bias": bias, "purity": purity}.items():
        _check_real(name, value, "a fraction from 0 to 1", lambda number: 0 <= number <= 1)
    _check_real("unbarcoded", unbarcoded, "a fraction of at least 0 and below 1", lambda number: 0 <= number < 1)
    sizes = {
        name: _check_sizes(cells, name=f"{name}_cells", least=0)
        for name, cells in (("early", early_cells), ("late", late_cells))
    }

    law_rng, gene_rng, cell_rng = np.random.default_rng([seed, 3]).spawn(3)
    own = np.arange(n_early_states) % n_fates == np.arange(n_fates)[:, None]
    early_laws = (1 - bias) / n_early_states + bias * own / own.sum(1, keepdims=True)
    late_laws = (1 - purity) / n_fates + purity * np.eye(n_fates)
    joint = np.full((n_fates, n_fates), (1 - fidelity) / (n_fates - 1))
    np.fill_diagonal(joint, fidelity)
    joint /= n_fates
    n_states = n_early_states + n_fates
    mean = law_rng.normal(0, separation, (n_states, n_latent))
    # progenitors are nearer to one another than fates are
    mean[:n_early_states] *= 0.5
    states = np.array([f"progenitor_{i}" for i in range(n_early_states)] + [f"fate_{i}" for i in range(n_fates)])

    pairs = cell_rng.choice(n_fates**2, size=n_clones, p=joint.ravel())
    laws = {"early": pairs // n_fates, "late": pairs % n_fates}
    rows = []
    for time, probabilities, first in (("early", early_laws, 0), ("late", late_laws, n_early_states)):
        n_cells = cell_rng.integers(*sizes[time], size=n_clones, endpoint=True)
        clone = np.repeat(np.arange(n_clones), n_cells)
        extra = round(len(clone) * unbarcoded / (1 - unbarcoded))
        law = np.concatenate([laws[time][clone], cell_rng.integers(n_fates, size=extra)])
        edges = np.cumsum(probabilities, axis=1)
        state = (cell_rng.random(len(law))[:, None] > edges[law][:, :-1]).sum(1) + first
        labels = [f"clone_{c}" for c in clone] + [np.nan] * extra
        rows.append(pd.DataFrame({"clone": labels, "time": time, "code": state}))
    table = pd.concat(rows, ignore_index=True)
    table = table.iloc[cell_rng.permutation(len(table))].reset_index(drop=True)
    truth: dict[str, Any] = {
        "populations": states,
        "mean": mean,
        "covariance": _laws.draw_covariances(law_rng, n_states, n_latent),
        # states are far apart: less of that is in each gene
        **_expression(
            gene_rng, n_latent, n_genes, depth, depth_sd, dispersion, seed, loadings_sd=0.5 / np.sqrt(separation)
        ),
        "design": "lineage_memory",
        "early_laws": early_laws,
        "late_laws": late_laws,
        "joint": joint,
        "clones": np.array([f"clone_{c}" for c in range(n_clones)]),
        "early_law": laws["early"],
        "late_law": laws["late"],
    }
    code = table.pop("code").to_numpy()
    latent, counts = _draw_cells(cell_rng, truth, code, np.zeros(len(code), dtype=np.int64))
    table["state"] = states[code]
    return _assemble(counts, latent, table, np.zeros(len(code), dtype=np.int64), truth, truth["genes"])


def lineage_information(
    joint: np.ndarray,
    early_laws: np.ndarray | None = None,
    late_laws: np.ndarray | None = None,
    n_early: int | None = None,
    n_late: int | None = None,
) -> float:
    r"""Information in bits that early cells of a clone hold about its late cells.

    .. math:: I = \sum_{a, b} P(a, b) \log_2 \frac{P(a, b)}{P(a) P(b)},

    over early and late laws, or over the counts of states among n cells that are drawn from them: what laws share is an upper bound to what cells show.

    Parameters
    ----------
    joint
        Probability of each pair of laws, ``(early laws, late laws)``.
    early_laws, late_laws
        Probabilities of states, ``(laws, states)``.
    n_early, n_late
        Number of observed cells; None for the law itself.

    Raises
    ------
    ValueError
        If there are too many outcomes to sum over, or laws are needed and not given.
    """
    p = np.asarray(joint, dtype=np.float64)
    for laws, n, axis in ((early_laws, n_early, 0), (late_laws, n_late, 1)):
        if n is None:
            continue
        if laws is None:
            message = "Cells are drawn from laws: pass early_laws with n_early and late_laws with n_late."
            raise ValueError(message)
        # states that laws hold in the same proportion tell nothing apart
        lumped = _lump(np.asarray(laws, dtype=np.float64))
        size = p.shape[1 - axis] * comb(n + lumped.shape[1] - 1, n)
        if size > MAX_OUTCOMES:
            message = f"There are {size} pairs of outcomes, more than {MAX_OUTCOMES}; ask for fewer cells."
            raise ValueError(message)
        outcomes = np.exp(_multinomial(lumped, n))
        p = outcomes.T @ p if axis == 0 else p @ outcomes
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / independent[seen])).sum())


def fate_probabilities(counts: np.ndarray, joint: np.ndarray, early_laws: np.ndarray) -> np.ndarray:
    """Probability of each late law given counts of early states ``(clones, states)``: the best that any classifier can know.

    Returns
    -------
    ``(clones, late laws)``.
    """
    with np.errstate(divide="ignore"):
        likelihood = np.asarray(counts) @ np.log(np.maximum(early_laws, 1e-300)).T
    weight = np.exp(likelihood - logsumexp(likelihood, axis=1, keepdims=True))
    result = weight @ joint
    return result / result.sum(1, keepdims=True)


def _lump(laws: np.ndarray) -> np.ndarray:
    """Laws over groups of states whose probabilities are proportional in all laws."""
    total = laws.sum(0)
    profile = np.round(laws / np.where(total > 0, total, 1.0), 10)
    codes = np.unique(profile, axis=1, return_inverse=True)[1].ravel()
    lumped = np.zeros((len(laws), codes.max() + 1))
    np.add.at(lumped.T, codes, laws.T)
    return lumped


def _multinomial(laws: np.ndarray, n: int) -> np.ndarray:
    """Log probability of each composition of ``n`` cells under each law, ``(laws, outcomes)``."""
    n_states = laws.shape[1]
    bars = itertools.combinations(range(n + n_states - 1), n_states - 1)
    edges = np.array(list(bars), dtype=np.int64).reshape(-1, n_states - 1)
    padded = np.concatenate([np.full((len(edges), 1), -1), edges, np.full((len(edges), 1), n + n_states - 1)], axis=1)
    counts = np.diff(padded, axis=1) - 1
    table = np.array([lgamma(k + 1) for k in range(n + 1)])
    return table[n] - table[counts].sum(1) + np.log(np.maximum(laws, 1e-300)) @ counts.T
