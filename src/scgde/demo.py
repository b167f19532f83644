"""A small run from start to end: ``python -m scgde.demo --out DIR``.

Simulates clones at three time points with known distances between their laws, trains a model, compares its distances with the
truth, generates cells, and writes cells, populations and one figure.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import pearsonr, spearmanr

import scgde
from scgde import ot
from scgde.components import log_normalised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_GENERATED = 200
"""Cells generated for each population shown."""

_N_COMPONENTS = 20
_DEPTH = 1e4


class Size(NamedTuple):
    """How large the demonstration is; ``max_epochs=None`` leaves the length of training to the model."""

    n_populations: int
    cells_per_population: tuple[int, int]
    max_epochs: int | None


FULL = Size(90, (20, 200), None)
SHORT = Size(45, (20, 100), 120)


def run(out: str | Path, *, size: Size = FULL, seed: int = 0) -> dict[str, Path]:
    """Run the demonstration.

    Parameters
    ----------
    out
        Folder to write to; made if absent.
    size
        Number of populations and cells, and length of training.
    seed
        Seed of the simulation, of training and of generation.

    Returns
    -------
    Paths of the files written: ``cells``, ``populations``, ``generated`` (AnnData) and ``figure``.
    """
    started = time.perf_counter()
    # What the trainer says about devices, once per call, would drown what this module says.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    _say("Simulating clones at three time points, in two batches, with known laws")
    adata = scgde.datasets.simulate_populations(
        size.n_populations,
        cells_per_population=size.cells_per_population,
        n_batches=2,
        unassigned_fraction=0.1,
        seed=seed,
    )
    n_loose = int(adata.obs["clone"].isna().sum())
    print(f"  {adata.n_obs} cells x {adata.n_vars} genes; {n_loose} cells belong to no clone")

    _say("Training: first the cell latent, then the set encoder and the generator")
    scgde.GDEModel.setup_anndata(adata, population_key=["clone", "time"], batch_key="batch")
    model = scgde.GDEModel(adata)
    model.train(max_epochs=size.max_epochs, seed=seed)

    _say("Embedding populations, with standard errors")
    model.embed_populations(adata)
    pop = model.get_population_adata()
    print(f"  {pop.n_obs} populations of {pop.obs['gde_n_cells'].min()} to {pop.obs['gde_n_cells'].max()} cells")

    _say("Comparing distances with the true Wasserstein-2 distances between the simulated laws")
    truth, estimates = compare(adata, pop)
    print(f"  {'distance':<42} {'Spearman':>8} {'Pearson':>8}")
    for label, values in estimates.items():
        print(f"  {label:<42} {spearmanr(truth, values)[0]:8.3f} {pearsonr(truth, values)[0]:8.3f}")

    _say("Generating cells of one late population of each fate")
    shown = _one_per_fate(pop)
    generated = model.sample(shown, N_GENERATED, seed=seed)
    real = adata[adata.obs["population"].isin(shown)].copy()
    r = _profile_correlation(real, generated, shown)
    print(f"  {generated.n_obs} cells of {', '.join(shown)}")
    print(f"  mean log expression of a gene, real against generated cells: r = {r:.3f} (mean over populations)")

    _say("Drawing")
    paths = {
        "cells": out / "cells.h5ad",
        "populations": out / "populations.h5ad",
        "generated": out / "generated.h5ad",
        "figure": out / "demo.png",
    }
    draw(pop, truth, estimates, real, generated).savefig(paths["figure"], dpi=130)
    adata.write_h5ad(paths["cells"], compression="gzip")
    pop.write_h5ad(paths["populations"], compression="gzip")
    generated.write_h5ad(paths["generated"], compression="gzip")

    _say(f"Done in {time.perf_counter() - started:.0f} s")
    print(f"  {paths['figure']}  the four pictures")
    print(f"  {paths['cells']}  cells: obsm 'X_gde', 'X_gde_population', uns 'gde'")
    print(f"  {paths['populations']}  one row per population: X, layers 'standard_error', obsp 'gde_distances'")
    print(f"  {paths['generated']}  generated counts")
    return paths


def compare(adata: AnnData, pop: AnnData) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True distances of all pairs of populations, and estimates of them.

    Parameters
    ----------
    adata
        Simulated cells.
    pop
        Their populations, embedded.

    Returns
    -------
    The true distances, and by name: distances between embeddings; two free baselines on principal components of
    log-normalised counts centred in each batch; and, from the cells' true latents, what is left to sampling noise. All
    ``(pairs,)`` in the same order.
    """
    truth = adata.uns["simulation"]
    # Populations of both are labelled "clone|time", in different orders.
    order = np.array([list(truth["populations"]).index(label) for label in pop.obs_names])
    pairs = np.triu_indices(pop.n_obs, 1)
    codes = pop.obs_names.get_indexer(adata.obs["population"].astype(object))
    components = _components(adata)
    assigned = codes >= 0
    means = np.stack([components[codes == code].mean(0) for code in range(pop.n_obs)])
    estimates = {
        "scgde embedding": np.asarray(pop.obsp["gde_distances"]),
        "pseudobulk, in PCA space": np.linalg.norm(means[:, None] - means[None], axis=-1),
        "exact W2 between cells, in PCA space": ot.pairwise_distances(components, codes, progress=False),
        "Gaussian W2 of the true latents (ceiling)": ot.pairwise_distances(
            adata.obsm["X_true_latent"][assigned], codes[assigned], metric="gaussian", progress=False
        ),
    }
    return truth["w2"][np.ix_(order, order)][pairs], {name: values[pairs] for name, values in estimates.items()}


def draw(
    pop: AnnData, truth: np.ndarray, estimates: dict[str, np.ndarray], real: AnnData, generated: AnnData
) -> Figure:
    """Draw the four pictures of the demonstration on one figure.

    Parameters
    ----------
    pop
        Embedded populations.
    truth, estimates
        From :func:`compare`.
    real, generated
        Cells of the same populations.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.04)
    figure = Figure(figsize=(13.0, 9.6), layout=layout)
    axes = figure.subplots(2, 2)
    scgde.pl.population_embedding(
        pop, color="fate", title="Populations (clone x time), with 95 % ellipses", ax=axes[0, 0]
    )
    _draw_truth(axes[0, 1], truth, estimates)
    scgde.pl.population_distances(pop, groupby="fate", title="Distances between embeddings", ax=axes[1, 0])
    scgde.pl.real_vs_generated(real, generated, title="Cells of one late population of each fate", ax=axes[1, 1])
    for handle in axes[1, 1].get_legend().legend_handles:
        handle.set_sizes([30])
    for letter, ax in zip("abcd", axes.flat, strict=True):
        ax.annotate(
            letter,
            (0, 1),
            xytext=(-34, 8),
            xycoords="axes fraction",
            textcoords="offset points",
            weight="bold",
            size=14,
        )
    return figure


def _draw_truth(ax: Axes, truth: np.ndarray, estimates: dict[str, np.ndarray]) -> None:
    """Embedding distances against true ones, with the rank correlations of all estimates."""
    ax.scatter(truth, estimates["scgde embedding"], s=6, color="#3b6fb6", alpha=0.4, linewidths=0)
    lines = ["Spearman with the truth"]
    lines += [f"{name}  {spearmanr(truth, values)[0]:.3f}" for name, values in estimates.items()]
    ax.text(0.98, 0.03, "\n".join(lines), transform=ax.transAxes, ha="right", va="bottom", fontsize="small")
    ax.set(
        xlabel="true Wasserstein-2 distance (units of the simulation)",
        ylabel="distance between embeddings (units of u)",
        title=f"Embedding against truth, {len(truth)} pairs of populations",
        xlim=(0, None),
        ylim=(0, None),
    )
    ax.spines[["top", "right"]].set_visible(False)


def _one_per_fate(pop: AnnData) -> list[str]:
    """The largest population of the last time point of each fate."""
    late = pop.obs[pop.obs["time"] == max(pop.obs["time"])].sort_values(["fate", "gde_n_cells"])
    return [str(label) for label in late.groupby("fate", observed=True).tail(1).index]


def _components(adata: AnnData) -> np.ndarray:
    """Principal components of log-normalised counts, each gene centred in each batch: ``(cells, components)``."""
    from sklearn.decomposition import PCA

    x = log_normalised(adata.X.toarray().astype(float), _DEPTH)
    for batch in adata.obs["batch"].cat.categories:
        rows = (adata.obs["batch"] == batch).to_numpy()
        x[rows] -= x[rows].mean(0)
    return PCA(_N_COMPONENTS, random_state=0).fit_transform(x)


def _profile_correlation(real: AnnData, generated: AnnData, populations: list[str]) -> float:
    """Pearson correlation over genes of mean log expression, averaged over populations."""
    x, y = (log_normalised(a.X.toarray().astype(float), _DEPTH) for a in (real, generated))
    correlations = []
    for label in populations:
        a = x[(real.obs["population"] == label).to_numpy()].mean(0)
        b = y[(generated.obs["gde_population"] == label).to_numpy()].mean(0)
        correlations.append(pearsonr(a, b)[0])
    return float(np.mean(correlations))


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run.

    Parameters
    ----------
    argv
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m scgde.demo", description="Simulate, train, embed, generate, draw.")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--short", action="store_true", help="fewer populations, cells and epochs")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")
    arguments = parser.parse_args(argv)
    run(arguments.out, size=SHORT if arguments.short else FULL, seed=arguments.seed)


if __name__ == "__main__":
    main()
