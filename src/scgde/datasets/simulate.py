from copy import deepcopy
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from . import _laws

Design = Literal["lineage", "perturbation", "independent"]
_DESIGNS = ("lineage", "perturbation", "independent")

# Columns that name the population of a cell, and hence are missing for an unassigned one.
_POPULATION_COLUMNS = ("population", "clone", "fate", "perturbation")
# Entries of the dense chunk in which counts are drawn: a few arrays of 16 MiB.
_CHUNK_ENTRIES = 2**21


def simulate_populations(
    n_populations: int = 60,
    *,
    design: Design = "lineage",
    n_time_points: int = 3,
    n_fates: int = 4,
    n_contexts: int = 3,
    cells_per_population: tuple[int, int] = (30, 300),
    n_genes: int = 500,
    n_latent: int = 8,
    depth: float = 2000.0,
    depth_sd: float = 0.4,
    dispersion: float = 2.0,
    n_batches: int = 1,
    batch_effect: float = 2.0,
    batch_genes: float = 1 / 3,
    unassigned_fraction: float = 0.0,
    loadings_sd: float = 0.5,
    offsets_sd: float = 1.2,
    seed: int = 0,
) -> AnnData:
    r"""Simulate the counts of populations of cells whose laws are known.

    A cell of population :math:`k` in batch :math:`b` has

    .. math::

        u \sim N(\mu_k, \Sigma_k), \quad
        \rho = \operatorname{softmax}(u W + o + s_b), \quad
        \ell \sim \operatorname{LogNormal}(\log \text{depth}, \text{depth\_sd}^2), \quad
        x_g \sim \operatorname{NB}(\ell \rho_g, \theta)

    with loadings :math:`W_{ig} \sim N(0, \text{loadings\_sd}^2)`, offsets :math:`o_g \sim N(0, \text{offsets\_sd}^2)`
    and inverse dispersion :math:`\theta`, so that the variance of a count is :math:`m + m^2 / \theta` for mean
    :math:`m`.

    Designs:

    - ``"independent"``: means from N(0, I), covariances :math:`A A' + 0.05 I` with entries of :math:`A` from
      N(0, 0.25 / d).
    - ``"lineage"``: clones times time points. A clone has its own origin, drifts along the direction of its fate and
      spreads out with time. Labels are ``clone|time``.
    - ``"perturbation"``: contexts (cell types) times perturbations, one of which is ``"control"``. The mean of a
      population is that of its context plus the shift of its perturbation. Labels are ``context|perturbation``.

    Parameters
    ----------
    n_populations
        Number of populations. It is rounded down to a multiple of ``n_time_points`` (lineage) or of ``n_contexts``
        (perturbation).
    design
        How the laws of the populations are related.
    n_time_points, n_fates
        Time points ``d2``, ``d4``, ... and fates of the lineage design.
    n_contexts
        Contexts of the perturbation design.
    cells_per_population
        Smallest and largest size; sizes are uniform on these integers, both included.
    n_genes, n_latent
        Number of genes, and dimension :math:`d` of the latent space.
    depth, depth_sd
        Median library size, and standard deviation of its logarithm.
    dispersion
        Inverse dispersion of the counts.
    n_batches
        Number of batches. The cells of every population are split evenly at random between them.
    batch_effect, batch_genes
        In each batch but the first, the rates of a random fraction ``batch_genes`` of the genes are multiplied or
        divided by ``batch_effect``, each with equal chance.
    unassigned_fraction
        Fraction of all cells that are added without a label, from populations drawn at random.
    loadings_sd, offsets_sd
        Standard deviations of loadings and offsets.
    seed
        Seed. The laws do not depend on the sizes, the depth or the number of batches.

    Returns
    -------
    Integer counts (CSR, float32), cells in random order, with

    - ``obs["population"]`` and ``obs["batch"]``, categorical; with the design also ``obs["clone"]``, ``obs["time"]``
      and ``obs["fate"]``, or ``obs["context"]`` and ``obs["perturbation"]``. Unassigned cells have no population, clone,
      fate or perturbation.
    - ``obsm["X_true_latent"]``: :math:`u`.
    - ``uns["simulation"]``: ``populations`` (P,) in the order of the arrays ``mean`` (P, d), ``covariance`` (P, d, d)
      and ``w2`` (P, P), the 2-Wasserstein distances between the laws of :math:`u`; ``loadings`` (d, G), ``offsets`` (G,),
      ``genes`` (G,), ``batch_shift`` (B, G) on the log scale, ``depth``, ``depth_sd``, ``dispersion``, ``seed``,
      ``design``.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type.

    Examples
    --------
    >>> adata = simulate_populations(6, n_genes=50, cells_per_population=(20, 40))
    >>> sorted(adata.obs["time"].unique())
    ['d2', 'd4', 'd6']
    >>> adata.uns["simulation"]["w2"].shape
    (6, 6)
    """
    from scgde.ot import pairwise_gaussian_wasserstein

    if design not in _DESIGNS:
        raise ValueError(f"`design` is {design!r}: it must be one of {', '.join(map(repr, _DESIGNS))}.")
    for name, count in {
        "n_populations": n_populations,
        "n_time_points": n_time_points,
        "n_fates": n_fates,
        "n_contexts": n_contexts,
        "n_batches": n_batches,
    }.items():
        _check_integer(name, count, 1)
    _check_expression(n_latent, n_genes, depth, depth_sd, dispersion, seed)
    _check_real("batch_effect", batch_effect, "a finite number above 0", lambda number: number > 0)
    for name, value in {"loadings_sd": loadings_sd, "offsets_sd": offsets_sd}.items():
        _check_real(name, value, "a finite number of at least 0", lambda number: number >= 0)
    _check_real("batch_genes", batch_genes, "a fraction from 0 to 1", lambda number: 0 <= number <= 1)
    _check_real("unassigned_fraction", unassigned_fraction, "a fraction below 1", lambda number: 0 <= number < 1)
    low, high = _check_sizes(cells_per_population, n_batches)
    _check_levels(design, n_populations, n_time_points, n_contexts)

    # Separate streams: asking for more cells or batches leaves the laws as they are.
    law_rng, gene_rng, batch_rng, cell_rng = np.random.default_rng(seed).spawn(4)
    if design == "lineage":
        laws = _laws.lineage(law_rng, n_populations, n_latent, n_time_points, n_fates)
    elif design == "perturbation":
        laws = _laws.perturbation(law_rng, n_populations, n_latent, n_contexts)
    else:
        laws = _laws.independent(law_rng, n_populations, n_latent)

    batch_shift = np.zeros((n_batches, n_genes))
    for shift in batch_shift[1:]:
        changed = batch_rng.permutation(n_genes)[: round(batch_genes * n_genes)]
        shift[changed] = np.log(batch_effect) * batch_rng.choice([-1, 1], size=len(changed))
    truth = {
        "populations": laws.labels["population"].to_numpy(dtype=str),
        "mean": laws.mean,
        "covariance": laws.covariance,
        "w2": pairwise_gaussian_wasserstein(laws.mean, laws.covariance),
        **_expression(gene_rng, n_latent, n_genes, depth, depth_sd, dispersion, seed, loadings_sd, offsets_sd),
        "batch_shift": batch_shift,
        "design": str(design),
    }

    sizes = cell_rng.integers(low, high, size=len(laws.labels), endpoint=True)
    population = np.repeat(np.arange(len(sizes)), sizes)
    batch = np.concatenate([_split_evenly(cell_rng, size, n_batches) for size in sizes])
    n_unassigned = round(unassigned_fraction / (1 - unassigned_fraction) * len(population))
    assigned = np.arange(len(population) + n_unassigned) < len(population)
    population = np.concatenate([population, cell_rng.integers(len(sizes), size=n_unassigned)])
    batch = np.concatenate([batch, cell_rng.integers(n_batches, size=n_unassigned)])
    order = cell_rng.permutation(len(population))
    population, batch, assigned = population[order], batch[order], assigned[order]

    latent, counts = _draw_cells(cell_rng, truth, population, batch)
    labels = laws.labels.iloc[population].reset_index(drop=True)
    labels.loc[~assigned, [name for name in _POPULATION_COLUMNS if name in labels]] = np.nan
    return _assemble(counts, latent, labels, batch, truth, truth["genes"])


def simulate_cells(
    adata: AnnData, population: str | list[str], n_cells: int, *, batch: int = 0, seed: int = 0
) -> AnnData:
    """Draw fresh cells from the true laws of simulated populations.

    Parameters
    ----------
    adata
        Data from :func:`simulate_populations`, or a subset of its cells and genes.
    population
        Label of a population, or several.
    n_cells
        Number of cells of each population.
    batch
        Index of the batch that the cells are measured in.
    seed
        Seed; these cells are independent of those in ``adata`` whatever the seed.

    Returns
    -------
    Integer counts of the genes of ``adata``, with ``obs["population"]``, ``obs["batch"]``, ``obsm["X_true_latent"]``
    and ``uns["simulation"]``.

    Raises
    ------
    KeyError
        If a population is unknown, or ``adata`` does not hold the truth of a simulation.
    ValueError
        If ``n_cells``, ``batch`` or a gene is out of range.

    Examples
    --------
    >>> adata = simulate_populations(6, n_genes=50, cells_per_population=(20, 40))
    >>> simulate_cells(adata, "clone_0|d2", 100).shape
    (100, 50)
    """
    if "simulation" not in adata.uns:
        raise KeyError(
            "`adata.uns` has no 'simulation': fresh cells need the true laws. Pass data from `simulate_populations`."
        )
    truth = adata.uns["simulation"]
    _check_integer("n_cells", n_cells, 1)
    _check_integer("seed", seed, 0)
    _check_integer("batch", batch, 0)
    n_batches = len(truth["batch_shift"])
    if batch >= n_batches:
        raise ValueError(f"`batch` is {batch}: the simulation has batches 0 to {n_batches - 1}. Choose one of these.")
    wanted = [population] if isinstance(population, str) else list(population)
    known = pd.Index(truth["populations"])
    rows = known.get_indexer(wanted)
    if (rows < 0).any():
        unknown = [label for label, row in zip(wanted, rows, strict=True) if row < 0]
        raise KeyError(
            f"`population` names {unknown[:5]}, not in the simulation of {len(known)} populations such as "
            f"{known[:5].tolist()}. See `adata.uns['simulation']['populations']`."
        )
    columns = pd.Index(truth["genes"]).get_indexer(adata.var_names)
    if (columns < 0).any():
        raise ValueError(
            f"`adata` has genes {adata.var_names[columns < 0][:5].tolist()} that were not simulated: the truth has no "
            "rate for them. Subset the simulated data instead of renaming genes."
        )

    # The second entry keeps this stream apart from those that `simulate_populations` spawns from the same seed.
    rng = np.random.default_rng([seed, 1])
    codes = np.repeat(rows, n_cells)
    batches = np.full(len(codes), batch)
    latent, counts = _draw_cells(rng, truth, codes, batches)
    labels = pd.DataFrame({"population": np.asarray(truth["populations"])[codes]})
    return _assemble(counts[:, columns], latent, labels, batches, deepcopy(truth), adata.var_names)


def _check_expression(n_latent: int, n_genes: int, depth: float, depth_sd: float, dispersion: float, seed: int) -> None:
    """Raise if an argument that all simulations share is out of range."""
    for name, count, least in (("n_latent", n_latent, 1), ("n_genes", n_genes, 1), ("seed", seed, 0)):
        _check_integer(name, count, least)
    for name, value in {"depth": depth, "dispersion": dispersion}.items():
        _check_real(name, value, "a finite number above 0", lambda number: number > 0)
    _check_real("depth_sd", depth_sd, "a finite number of at least 0", lambda number: number >= 0)


def _expression(
    rng: np.random.Generator,
    n_latent: int,
    n_genes: int,
    depth: float,
    depth_sd: float,
    dispersion: float,
    seed: int,
    loadings_sd: float = 0.5,
    offsets_sd: float = 1.2,
) -> dict[str, Any]:
    """How latents become counts, in one batch: the part of the truth that all simulations share."""
    return {
        "loadings": rng.normal(0, loadings_sd, size=(n_latent, n_genes)),
        "offsets": rng.normal(0, offsets_sd, size=n_genes),
        "genes": np.array([f"gene_{i}" for i in range(n_genes)]),
        "batch_shift": np.zeros((1, n_genes)),
        "depth": float(depth),
        "depth_sd": float(depth_sd),
        "dispersion": float(dispersion),
        "seed": int(seed),
    }


def _draw_cells(
    rng: np.random.Generator, truth: dict[str, Any], population: np.ndarray, batch: np.ndarray
) -> tuple[np.ndarray, csr_matrix]:
    """Latents and counts of cells of the given populations and batches."""
    d, n_genes = truth["loadings"].shape
    factor = np.linalg.cholesky(truth["covariance"])
    noise = rng.normal(size=(len(population), d))
    latent = truth["mean"][population] + np.einsum("nij,nj->ni", factor[population], noise)
    library = rng.lognormal(np.log(truth["depth"]), truth["depth_sd"], size=len(population))

    counts = []
    size = max(1, _CHUNK_ENTRIES // n_genes)
    for start in range(0, len(population), size):
        rows = slice(start, start + size)
        mean = latent[rows] @ truth["loadings"] + truth["offsets"] + truth["batch_shift"][batch[rows]]
        mean -= mean.max(axis=1, keepdims=True)
        np.exp(mean, out=mean)
        mean *= (library[rows] / mean.sum(axis=1))[:, None]
        # A negative binomial is a Poisson whose rate is gamma-distributed around the mean.
        rate = rng.gamma(truth["dispersion"], mean / truth["dispersion"])
        counts.append(csr_matrix(rng.poisson(rate).astype(np.float32)))
    return latent, vstack(counts, format="csr")


def _split_evenly(rng: np.random.Generator, n_cells: int, n_batches: int) -> np.ndarray:
    """Random batches whose sizes differ by at most one; which batch gets the odd cell is random too."""
    return rng.permutation((np.arange(n_cells) + rng.integers(n_batches)) % n_batches)


def _assemble(
    counts: csr_matrix, latent: np.ndarray, labels: pd.DataFrame, batch: np.ndarray, truth: dict[str, Any], genes: Any
) -> AnnData:
    obs = labels.copy()
    obs["batch"] = [f"batch_{index}" for index in batch]
    obs = obs.astype("category")
    obs.index = [f"cell_{index}" for index in range(len(obs))]
    return AnnData(
        X=counts,
        obs=obs,
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
        obsm={"X_true_latent": latent},
        uns={"simulation": truth},
    )


def _check_integer(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` is {value!r}: it must be an integer of at least {minimum}.")
    if value < minimum:
        raise ValueError(f"`{name}` is {value}: it must be at least {minimum}. Give a larger integer.")


def _check_real(name: str, value: Any, rule: str, valid: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` is {value!r}: it must be {rule}.")
    if not (np.isfinite(float(value)) and valid(value)):
        raise ValueError(f"`{name}` is {value}: it must be {rule}. Change it.")


def _check_sizes(sizes: Any, n_batches: int = 0, name: str = "cells_per_population", least: int = 1) -> tuple[int, int]:
    try:
        low, high = sizes
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` is {sizes!r}: it must be the smallest and the largest size. Give a pair such as (30, 300)."
        ) from error
    _check_integer(f"{name}[0]", low, least)
    _check_integer(f"{name}[1]", high, low)
    if low < n_batches:
        raise ValueError(
            f"`{name}` starts at {low} with {n_batches} batches: every population has cells in every "
            f"batch. Raise it to at least {n_batches} or lower `n_batches`."
        )
    return int(low), int(high)


def _check_levels(design: str, n_populations: int, n_time_points: int, n_contexts: int) -> None:
    name, levels, per_level = {
        "lineage": ("n_time_points", n_time_points, 1),
        "perturbation": ("n_contexts", n_contexts, 2),
        "independent": ("", 1, 1),
    }[design]
    if n_populations < levels * per_level:
        raise ValueError(
            f"`n_populations` is {n_populations} with `{name}` {levels}: design {design!r} needs at least "
            f"{levels * per_level}. Raise `n_populations` or lower `{name}`."
        )
