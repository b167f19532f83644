"""A perturbation screen whose effects, and interactions of pairs, are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

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

CONTROL = "control"


def simulate_screen(
    n_perturbations: int = 30,
    n_combinations: int = 0,
    *,
    n_contexts: int = 1,
    interacting: float = 0.2,
    n_pathways: int = 8,
    effect: float = 2.0,
    context_effect: float = 0.3,
    cells_per_population: tuple[int, int] = (50, 100),
    control_cells: int = 500,
    n_genes: int = 200,
    n_latent: int = 8,
    depth: float = 2000.0,
    depth_sd: float = 0.4,
    dispersion: float = 2.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate the counts of a screen of single and double perturbations.

    Every perturbation ``p`` hits one pathway :math:`k_p` with a strength :math:`a_p \sim U(0.5, 1.5)` and shifts the mean of the latent
    by :math:`s_p = a_p d_{k_p} + \epsilon_p`, with directions ``d`` of length ``effect`` and own parts :math:`\epsilon_p` of a quarter of that. A
    combination shifts it by :math:`s_p + s_q + a_p a_q g_{k_p k_q}`. The interaction ``g`` is zero except for pairs of pathways drawn at random
    until a share ``interacting`` of the combinations interact; there it is of length ``effect``, in a direction of its own. In context
    ``c`` shifts are :math:`(I + M_c) s` with entries of :math:`M_c` from N(0, ``context_effect`` squared / ``n_latent``). Counts are as
    in :func:`simulate_populations`.

    Parameters
    ----------
    n_perturbations
        Number of single perturbations, ``p0``, ``p1``, ...
    n_combinations
        Number of different pairs, ``p0+p1``, ..., drawn at random.
    n_contexts
        Number of contexts, each with a control.
    interacting
        Share of combinations that interact.
    n_pathways
        Number of pathways.
    effect, context_effect
        Length of shifts, in standard deviations of cells, and how much they differ between contexts.
    cells_per_population
        Smallest and largest number of cells of a perturbation in a context.
    control_cells
        Cells of each control.
    n_genes, n_latent, depth, depth_sd, dispersion
        See :func:`simulate_populations`.
    seed
        Seed.

    Returns
    -------
    Integer counts with ``obs`` columns ``context``, ``perturbation`` and ``population`` (``context|perturbation``), ``obsm["X_true_latent"]``,
    and ``uns["simulation"]`` as from :func:`simulate_populations`, with ``pathway`` and ``strength`` of each single perturbation, and for
    ``combinations`` (pairs) whether they are ``interacting``; so that :func:`simulate_cells` draws fresh cells.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type, or there are not as many pairs.

    Examples
    --------
    >>> adata = simulate_screen(5, 3, n_genes=50, cells_per_population=(10, 20), control_cells=30)
    >>> adata.obs["perturbation"].nunique()
    9
    """
    from scgde.ot import pairwise_gaussian_wasserstein

    for name, count, least in (
        ("n_perturbations", n_perturbations, 1),
        ("n_combinations", n_combinations, 0),
        ("n_contexts", n_contexts, 1),
        ("n_pathways", n_pathways, 1),
        ("control_cells", control_cells, 1),
    ):
        _check_integer(name, count, least)
    _check_expression(n_latent, n_genes, depth, depth_sd, dispersion, seed)
    _check_real("effect", effect, "a finite number above 0", lambda number: number > 0)
    _check_real("context_effect", context_effect, "a finite number of at least 0", lambda number: number >= 0)
    _check_real("interacting", interacting, "a fraction from 0 to 1", lambda number: 0 <= number <= 1)
    low, high = _check_sizes(cells_per_population, 1)
    n_pairs = n_perturbations * (n_perturbations - 1) // 2
    if n_combinations > n_pairs:
        raise ValueError(
            f"`n_combinations` is {n_combinations}: {n_perturbations} perturbations have {n_pairs} pairs. Lower it."
        )

    law_rng, gene_rng, cell_rng = np.random.default_rng([seed, 2]).spawn(3)
    effects = _effects(law_rng, n_perturbations, n_combinations, n_pathways, n_latent, effect, interacting)
    names = [CONTROL, *(f"p{i}" for i in range(n_perturbations)), *(f"p{i}+p{j}" for i, j in effects["pairs"])]
    shifts = np.concatenate([np.zeros((1, n_latent)), effects["single"], effects["double"]])
    base = law_rng.normal(size=(n_contexts, n_latent))
    change = np.eye(n_latent) + law_rng.normal(0, context_effect / np.sqrt(n_latent), (n_contexts, n_latent, n_latent))
    means = base[:, None] + np.einsum("cij,pj->cpi", change, shifts)
    covariances = _laws.independent(law_rng, n_contexts, n_latent).covariance
    labels = pd.DataFrame(
        [(f"context_{c}|{name}", f"context_{c}", name) for c in range(n_contexts) for name in names],
        columns=["population", "context", "perturbation"],
    )
    mean, covariance = means.reshape(-1, n_latent), np.repeat(covariances, len(names), axis=0)
    truth: dict[str, Any] = {
        "populations": labels["population"].to_numpy(dtype=str),
        "mean": mean,
        "covariance": covariance,
        **_expression(gene_rng, n_latent, n_genes, depth, depth_sd, dispersion, seed),
        "design": "screen",
        "perturbations": np.array(names[1 : n_perturbations + 1]),
        "pathway": effects["pathway"],
        "strength": effects["strength"],
        "combinations": np.array(names[n_perturbations + 1 :], dtype=str),
        "interacting": effects["interacting"],
    }
    if len(labels) <= 500:
        truth["w2"] = pairwise_gaussian_wasserstein(mean, covariance)
    sizes = cell_rng.integers(low, high, size=len(labels), endpoint=True)
    sizes[labels["perturbation"] == CONTROL] = control_cells
    population = cell_rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    batch = np.zeros(len(population), dtype=np.int64)
    latent, counts = _draw_cells(cell_rng, truth, population, batch)
    return _assemble(counts, latent, labels.iloc[population].reset_index(drop=True), batch, truth, truth["genes"])


def _effects(
    rng: np.random.Generator,
    n: int,
    n_pairs: int,
    n_pathways: int,
    n_latent: int,
    effect: float,
    interacting: float,
) -> dict[str, Any]:
    """Shifts of singles ``(n, n_latent)`` and pairs ``(n_pairs, n_latent)``, and what they are made of."""

    def directions(*shape: int) -> np.ndarray:
        v = rng.normal(size=(*shape, n_latent))
        return effect * v / np.linalg.norm(v, axis=-1, keepdims=True)

    pathway, strength = rng.integers(n_pathways, size=n), rng.uniform(0.5, 1.5, size=n)
    single = strength[:, None] * directions(n_pathways)[pathway] + 0.25 * directions(n)
    first, second = np.triu_indices(n, 1)
    chosen = np.sort(rng.choice(len(first), n_pairs, replace=False))
    first, second = first[chosen], second[chosen]
    low, high = np.sort(np.stack([pathway[first], pathway[second]]), axis=0)
    code = low * n_pathways + high
    acts = np.zeros(n_pathways**2, dtype=bool)
    for c in rng.permutation(np.unique(code)):
        if acts[code].mean() >= interacting:
            break
        acts[c] = True
    kind = directions(n_pathways**2)
    does = acts[code] if n_pairs else np.zeros(0, dtype=bool)
    extra = (strength[first] * strength[second])[:, None] * kind[code] * does[:, None]
    return {
        "single": single,
        "double": single[first] + single[second] + extra,
        "pairs": list(zip(first.tolist(), second.tolist(), strict=True)),
        "pathway": pathway,
        "strength": strength,
        "interacting": does,
    }
