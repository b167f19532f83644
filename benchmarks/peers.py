"""Geometry of peers at equal CPU time: Wasserstein Wormhole on point clouds, MrVI on counts.

Each peer runs in a virtual environment of its own, made with pip at its first use (``_environments.py`` has the pinned releases).
Its training gets the CPU seconds that scgde took in the same run for training and embedding, or ``--cpu-seconds``, on one thread;
more rows give it multiples of that (``--multiples``). Start-up, compilation and the peer's own embedding are printed apart and not
counted against it.

Synthetic suites (``--part synthetic``): Gaussians and mixtures of three Gaussians in 2 and 10 dimensions, also with the mean of every
population taken away, as in ``geometry.py``: 256 populations of 128 points train, and pairs of 64 new populations of 64 points are
scored by the rank correlation of latent distances with the true W2. Wasserstein Wormhole (Haviv et al. 2024, arXiv 2404.09411) gets the same points.
Its squared latent distance is fitted to a Sinkhorn divergence of squared costs; a rank correlation is the same for a distance and
its square. One of its steps on all 128 points takes seconds on one core, so that the defaults would leave it a dozen steps. What it
gets instead was chosen in its favour, by its score on the first seed: 32 points of every population, drawn anew in each step, a
learning rate of 1e-3 (1e-4 by default), 200 Sinkhorn iterations without the search for their number, and no decoder.

Counts (``--part counts``): MrVI (Boyeau et al. 2025) models counts of samples, and no points, and has no embedding of samples it was
not trained on. So both models train on all populations of a simulation, and all pairs of these are scored. Its distances are
the documented ones, ``get_local_sample_distances`` averaged over all cells, and Euclidean distances of
``get_local_sample_representation`` averaged over all cells. They compare what a cell would be in two samples, and
leave to its latent ``u`` which cells a sample has. So distances between samples' cells in its latents are scored too, as Gaussian W2.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import torch
from _common import CellPCA, PseudobulkPCA, options, quiet_train, report
from _environments import PINS, run_worker
from _suites import (
    N_TEST,
    N_TRAIN,
    SIZE_CEILING,
    SIZE_TEST,
    SIZE_TRAIN,
    ceiling,
    draw_suite,
    fit_model,
    free_estimators,
    model_distances,
    rank,
)
from scipy.stats import t as student

import scgde

WORMHOLE = {"points": 32, "rate": 1e-3, "iterations": 200, "steps": 10**6}
COUNTS = {"n_populations": 60, "cells_per_population": (30, 150), "n_genes": 300}
LATENT_WIDTH = 10


def multiples(arguments) -> list[float]:
    return [float(x) for x in arguments.multiples.split(",")]


def synthetic(family: str, d: int, centred: bool, seed: int, arguments) -> list[dict]:
    """Scores of one suite and seed."""
    n_pairs = arguments.pairs if family == "mixtures" else 2 * arguments.pairs
    suite = draw_suite(family, d, centred, seed, n_pairs=n_pairs, n_truth=arguments.truth)
    (x, codes), (y, new_codes), pairs = suite.train, suite.tests[SIZE_TEST], suite.pairs
    rows = []

    def add(method: str, distance: np.ndarray, **seconds: float) -> None:
        name = f"{family}, {d}-d{', centred' if centred else ''}"
        score = rank(distance, suite.truth)
        rows.append({"suite": name, "seed": seed, "method": method, "spearman": score, **seconds})
        print(rows[-1], flush=True)

    model = fit_model(x, codes, seed, epochs=arguments.epochs)
    start = time.process_time()
    latent = model_distances(model, y, new_codes, pairs)
    embedding = time.process_time() - start
    add("scgde", latent, train_s=model.cpu_seconds, embed_s=embedding)
    for multiple in multiples(arguments):
        out = run_worker(
            "wormhole",
            train=x.reshape(N_TRAIN, SIZE_TRAIN, d),
            test=y.reshape(N_TEST, SIZE_TEST, d),
            seconds=multiple * (arguments.cpu_seconds or model.cpu_seconds + embedding),
            seed=seed,
            **WORMHOLE,
        )
        z = out["embedding"]
        add(
            f"Wormhole, {multiple:g} x CPU",
            np.linalg.norm(z[pairs[0]] - z[pairs[1]], axis=1),
            **{key: float(out[key]) for key in ("train_s", "embed_s", "setup_s", "steps")},
        )
    for name, distance in free_estimators(y, new_codes, pairs).items():
        add(name, distance)
    add(f"ceiling: {SIZE_CEILING} other points", ceiling(suite, family, seed))
    return rows


def counts(seed: int, arguments) -> list[dict]:
    """Scores of the simulated counts of one seed."""
    adata = scgde.datasets.simulate_populations(design="independent", seed=seed, **COUNTS)
    simulation = adata.uns["simulation"]
    names = [str(name) for name in simulation["populations"]]
    codes = pd.Categorical(adata.obs["population"].astype(str), categories=names).codes.astype(int)
    # free_estimators and MrVI's worker take cells in the order of the populations
    order = np.argsort(codes, kind="stable")
    adata, codes = adata[order].copy(), codes[order]
    pairs = np.stack(np.triu_indices(len(names), 1))
    truth = simulation["w2"][tuple(pairs)]
    rows = []

    def add(method: str, distance: np.ndarray, **seconds: float) -> None:
        suite = f"counts of {len(names)} populations"
        rows.append({"suite": suite, "seed": seed, "method": method, "spearman": rank(distance, truth), **seconds})
        print(rows[-1], flush=True)

    def gaussian(latent: np.ndarray) -> np.ndarray:
        return free_estimators(latent.astype(float), codes, pairs, exact=False)["Bures"]

    scgde.GDEModel.setup_anndata(adata)
    model = scgde.GDEModel(adata)
    used = quiet_train(model, max_epochs=arguments.epochs, seed=seed)
    start = time.process_time()
    latent = model.get_population_distances().loc[names, names].to_numpy()
    embedding = time.process_time() - start
    add("scgde", latent[tuple(pairs)], train_s=used, embed_s=embedding)
    add("scgde, Gaussian W2 of u", gaussian(model.get_latent_representation()))
    for multiple in multiples(arguments):
        out = run_worker(
            "mrvi",
            counts=adata.X.toarray(),
            codes=codes,
            seconds=multiple * (arguments.cpu_seconds or used + embedding),
            seed=seed,
            epochs=0,
        )
        seconds = {key: float(out[key]) for key in ("train_s", "embed_s", "setup_s", "steps")}
        add(f"MrVI local distances, {multiple:g} x CPU", out["local"][tuple(pairs)], **seconds)
        add(f"MrVI representations, {multiple:g} x CPU", out["representation"][tuple(pairs)])
        for key in ("u", "z"):
            add(f"MrVI, Gaussian W2 of {key}, {multiple:g} x CPU", gaussian(out[key]))
    components = CellPCA(adata.X, LATENT_WIDTH, seed)(adata.X)
    for name, distance in free_estimators(components, codes, pairs).items():
        add(f"{name}, {LATENT_WIDTH} PCs", distance)
    profiles = PseudobulkPCA(adata.X, codes)(adata.X, codes)
    for width in (LATENT_WIDTH, profiles.shape[1]):
        part = profiles[:, :width]
        add(f"pseudobulk, {width} PCs", np.linalg.norm(part[pairs[0]] - part[pairs[1]], axis=1))
    add("ceiling: Gaussian W2 of true latents", gaussian(np.asarray(adata.obsm["X_true_latent"])))
    return rows


def summary(rows: list[dict]) -> pd.DataFrame:
    """Means over seeds; and scgde less each method, paired by seed, with a 95 % interval from Student's t."""
    table = pd.DataFrame(rows)
    lines = []
    for suite, part in table.groupby("suite", sort=False):
        own = part[part["method"] == "scgde"].set_index("seed")["spearman"]
        for method, group in part.groupby("method", sort=False):
            line = {
                "suite": suite,
                "method": method,
                "spearman": group["spearman"].mean(),
                "min": group["spearman"].min(),
            }
            if method != "scgde":
                difference = (own - group.set_index("seed")["spearman"]).to_numpy()
                n = len(difference)
                # one seed has no spread: the interval is missing and not of width 0
                half = student.ppf(0.975, n - 1) * difference.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
                mean = difference.mean()
                line |= {"scgde - it": mean, "95 % low": mean - half, "95 % high": mean + half}
            lines.append(
                line | {key: group[key].mean() for key in ("train_s", "embed_s", "setup_s", "steps") if key in group}
            )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    arguments = options(
        __doc__.splitlines()[0],
        part="all",
        families="gaussians,mixtures",
        dimensions="2,10",
        pairs=150,
        truth=2000,
        multiples="1,4",
        **{"cpu-seconds": 0.0},
    )
    if arguments.part not in ("all", "synthetic", "counts"):
        raise SystemExit(f"--part is {arguments.part!r}: it must be all, synthetic or counts.")
    torch.set_num_threads(1)
    note = "training of scgde plus embedding in the same run" if not arguments.cpu_seconds else arguments.cpu_seconds
    if arguments.part in ("all", "synthetic"):
        suites = [
            (family, int(d), centred)
            for family in arguments.families.split(",")
            for d in arguments.dimensions.split(",")
            for centred in (False, True)
        ]
        rows = [
            row for suite in suites for seed in range(arguments.seeds) for row in synthetic(*suite, seed, arguments)
        ]
        facts = {"CPU seconds of the peer": note, "peer": ", ".join(PINS["wormhole"]), "peer's settings": WORMHOLE}
        report("peers_synthetic", summary(rows), arguments, **facts)
    if arguments.part in ("all", "counts"):
        rows = [row for seed in range(arguments.seeds) for row in counts(seed, arguments)]
        facts = {"CPU seconds of the peer": note, "peer": ", ".join(PINS["mrvi"]), "simulation": COUNTS}
        report("peers_counts", summary(rows), arguments, **facts)
