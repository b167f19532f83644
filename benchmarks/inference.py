"""Tests, distances and errors of the very populations that trained a model, beside fresh cells of the same laws.

Every data set is drawn anew, a default model is trained on it, and the default calls are made on its own cells and on as many fresh
ones. Parts:

``null``      all populations have one law
``twins``     different laws, each cut into two populations; pairs are the two of one law
``encoders``  one law, with every set encoder
``errors``    different laws: coverage of 95 % intervals of the embedding against that of 5,000 cells of the law, and RMS error
``real``      real control cells at random as fake perturbations among the real ones
``targets``   real perturbations that are found, against permutation of the energy distance; inert guides against each other
``nuisance``  one law in two batches over different laws in one, with the batch named as batch, as covariate, or not at all
``power``     shifts of mean, spread and proportions, against permutation of the energy distance between components of all cells

Shares are of pairs; intervals are over data sets, which pairs of one data set are not independent in.
"""

from __future__ import annotations

from copy import deepcopy

import anndata as ad
import numpy as np
import pandas as pd
from _common import options, quiet_train, report, seeds
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control
from scipy.stats import t as student

import scgde
from scgde.encoders import ENCODERS
from scgde.inference import encode_components

# shares of cells of a changed law that put power between its limits, by number of cells
SHARES = {
    "mean": {30: 0.8, 100: 0.45, 300: 0.25},
    "narrower": {30: 1.0, 100: 0.6, 300: 0.35},
    "wider": {30: 1.0, 100: 0.6, 300: 0.35},
    "turned": {30: 1.0, 100: 0.6, 300: 0.35},
    "mixture": {30: 0.2, 100: 0.1, 300: 0.05},
}

PERMUTATIONS = 199
DESIGNS = ((6, 30), (6, 100), (6, 400), (12, 30), (12, 100), (12, 400), (30, 30), (30, 100), (30, 400))


def simulate(source: ad.AnnData, laws: list[str], names: list[str], sizes, seed: int) -> ad.AnnData:
    """Cells of laws of a simulation, as populations of other names."""
    parts = []
    for k, (law, name, n) in enumerate(zip(laws, names, np.broadcast_to(sizes, len(laws)), strict=True)):
        cells = scgde.datasets.simulate_cells(source, law, int(n), seed=1000 * seed + k)
        cells.obs["population"] = name
        parts.append(cells)
    joint = ad.concat(parts)
    joint.obs_names = [f"{seed}_{i}" for i in range(joint.n_obs)]
    return joint


def trained(cells: ad.AnnData, seed: int, epochs: int | None, key="population", **model_options) -> scgde.GDEModel:
    scgde.GDEModel.setup_anndata(cells, key)
    model = scgde.GDEModel(cells, **model_options)
    quiet_train(model, max_epochs=epochs, seed=seed)
    return model


def pairs_of(model, pairs: list[tuple[str, str]], adata, seed: int) -> dict[str, float]:
    """What the default calls say of pairs: shares of small p-values and of distances beyond two standard errors."""
    sources, targets = map(list, zip(*pairs, strict=True))
    table = scgde.tl.test_populations(model, sources, targets, adata=adata, n_permutations=PERMUTATIONS, seed=seed)
    distance, error = model.get_population_distances(adata, return_std=True)
    beyond = [distance.loc[p] > 2 * error.loc[p] for p in pairs]
    p = table["p_value"]
    return {
        "p <= .05": float((p <= 0.05).mean()),
        "p <= .01": float((p <= 0.01).mean()),
        "beyond 2 se": float(np.mean(beyond)),
        "median distance": float(np.median([distance.loc[p] for p in pairs])),
    }


def null(seed: int, arguments) -> list[dict]:
    rows = []
    source = scgde.datasets.simulate_populations(
        2, design="independent", cells_per_population=(10, 10), n_genes=100, seed=seed
    )
    for k, n in [tuple(map(int, d.split("x"))) for d in arguments.designs.split(",")]:
        names = [f"guide_{i}" for i in range(k)]
        own, fresh = (simulate(source, ["population_0"] * k, names, n, 2 * seed + 1 + i + 100 * n + k) for i in (0, 1))
        model = trained(own, seed, arguments.epochs)
        pairs = [(names[i], names[j]) for i in range(k) for j in range(i)][:60]
        for which, cells in (("trained", None), ("fresh", fresh)):
            rows.append({"design": f"{k} x {n}", "cells": which, **pairs_of(model, pairs, cells, seed)})
    return rows


def twins(seed: int, arguments) -> list[dict]:
    source = scgde.datasets.simulate_populations(
        20, design="independent", cells_per_population=(10, 10), n_genes=100, seed=seed
    )
    names = [f"{half}{k:02d}" for k in range(20) for half in "ab"]
    laws = [f"population_{k // 2}" for k in range(40)]
    own, fresh = (simulate(source, laws, names, 60, 2 * seed + 1 + i) for i in (0, 1))
    model = trained(own, seed, arguments.epochs)
    pairs = [(f"a{k:02d}", f"b{k:02d}") for k in range(20)]
    return [
        {"design": "20 laws twice x 60", "cells": which, **pairs_of(model, pairs, cells, seed)}
        for which, cells in (("trained", None), ("fresh", fresh))
    ]


def encoders(seed: int, arguments) -> list[dict]:
    rows = []
    source = scgde.datasets.simulate_populations(
        2, design="independent", cells_per_population=(10, 10), n_genes=100, seed=seed
    )
    names = [f"guide_{i}" for i in range(12)]
    pairs = [(names[i], names[j]) for i in range(12) for j in range(i)]
    for encoder in ENCODERS:
        own = simulate(source, ["population_0"] * 12, names, 100, 3 * seed + 7)
        model = trained(own, seed, arguments.epochs, encoder=encoder)
        rows.append({"design": encoder, "cells": "trained", **pairs_of(model, pairs, None, seed)})
    return rows


def errors(seed: int, arguments) -> list[dict]:
    source = scgde.datasets.simulate_populations(
        60, design="independent", cells_per_population=(10, 10), n_genes=200, seed=seed
    )
    laws = [f"population_{k}" for k in range(60)]
    sizes = np.resize([30, 60, 100, 300], 60)
    own, fresh = (simulate(source, laws, laws, sizes, 2 * seed + 1 + i) for i in (0, 1))
    model = trained(own, seed, arguments.epochs)
    some = laws[:16]
    large = simulate(source, some, some, 5000, 900 + seed)
    truth = model.get_population_embedding(large).loc[some].to_numpy()
    rows = []
    for which, cells in (("trained", None), ("fresh", fresh)):
        z = model.get_population_embedding(cells).loc[some].to_numpy()
        error = model.get_population_standard_error(cells).loc[some].to_numpy()
        for n in np.unique(sizes):
            of_size = sizes[:16] == n
            width = student.ppf(0.975, n - 1) * error[of_size]
            off = z[of_size] - truth[of_size]
            rows.append(
                {
                    "design": f"n = {n}",
                    "cells": which,
                    "coverage": float((np.abs(off) <= width).mean()),
                    "rms error": float(np.sqrt(np.square(off).sum(1).mean())),
                }
            )
    return rows


def energy_test(x: np.ndarray, n: int, rng: np.random.Generator, n_permutations: int) -> float:
    """P-value of the energy distance between the first ``n`` rows and the others, by permutation."""
    distances = cdist(x, x)
    m = len(x) - n
    groups = np.zeros((n_permutations + 1, len(x)))
    groups[0, :n] = 1
    chosen = np.argsort(rng.random((n_permutations, len(x))), axis=1)[:, :n]
    groups[np.arange(1, n_permutations + 1)[:, None], chosen] = 1
    rows = groups @ distances
    within = (rows * groups).sum(1)
    between = rows.sum(1) - within
    statistic = 2 * between / (n * m) - within / n**2 - (distances.sum() - within - 2 * between) / m**2
    return float((1 + (statistic[1:] >= statistic[0] - 1e-12).sum()) / (1 + n_permutations))


REAL = {
    "papalexi, 8 x 60": ("papalexi_eccite_299g", "target", "non-targeting", 8, 60),
    "papalexi, 5 x 160": ("papalexi_eccite_299g", "target", "non-targeting", 5, 160),
}


def real(seed: int, arguments) -> list[dict]:
    rows = []
    for name, (dataset, key, control, k, n) in REAL.items():
        adata = scgde.datasets.load(dataset)
        rng = np.random.default_rng(seed)
        label = adata.obs[key].astype(str).to_numpy().astype(object)
        chosen = rng.permutation(np.flatnonzero(label == control))[: k * n].reshape(k, n)
        for i, cells in enumerate(chosen):
            label[cells] = f"fake_{i}"
        adata.obs["population"] = label.astype(str)
        model = trained(adata, seed, arguments.epochs)
        fakes = [f"fake_{i}" for i in range(k)]
        pairs = [(fakes[i], fakes[j]) for i in range(k) for j in range(i)] + [(f, control) for f in fakes]
        rows.append({"design": name, "cells": "trained", **pairs_of(model, pairs, None, seed)})
    return rows


def targets(seed: int, arguments) -> list[dict]:
    adata = scgde.datasets.load("papalexi_eccite_299g")
    rng, control = np.random.default_rng(seed), "non-targeting"
    label = adata.obs["target"].astype(str).to_numpy()
    model = trained(adata, seed, arguments.epochs, "target")
    names = sorted(set(label) - {control})
    p = scgde.tl.test_populations(model, names, control, n_permutations=999, seed=seed)["p_value"]
    x = encode_components(model.module, model._table(), np.arange(adata.n_obs))
    controls = np.flatnonzero(label == control)
    energy = [
        energy_test(x[np.r_[np.flatnonzero(label == t), controls]], int((label == t).sum()), rng, 999) for t in names
    ]
    found = {
        "design": f"papalexi: {len(names)} targets at FDR 5 %",
        "cells": "trained",
        "found": int((false_discovery_control(p) <= 0.05).sum()),
        "found, energy distance": int((false_discovery_control(energy) <= 0.05).sum()),
    }
    guides = scgde.datasets.load("tapseq_k562_chr8")
    guides = guides[(guides.obs["target"] == "non-targeting").to_numpy()].copy()
    scgde.GDEModel.setup_anndata(guides, "guide", batch_key="batch")
    model = scgde.GDEModel(guides)
    quiet_train(model, max_epochs=arguments.epochs, seed=seed)
    names = list(model.get_population_embedding().index)
    pairs = [(names[i], names[j]) for i in range(len(names)) for j in range(i)][::4]
    inert = {"design": "tapseq: inert guides, within batches", "cells": "trained", **pairs_of(model, pairs, None, seed)}
    return [found, inert]


NUISANCE = {
    "batch_key": {"batch_key": "batch"},
    "categorical covariate": {"categorical_covariate_keys": ["batch"]},
    "continuous covariate": {"continuous_covariate_keys": ["number"]},
    "not named": {},
}


def nuisance(seed: int, arguments) -> list[dict]:
    adata = scgde.datasets.simulate_populations(
        10, design="perturbation", n_contexts=1, cells_per_population=(120, 140), n_genes=200, n_batches=2, seed=seed
    )
    adata.obs["half"], adata.obs["number"] = adata.obs["batch"].astype(str), adata.obs["batch"].cat.codes.astype(float)
    names = sorted(adata.obs["population"].astype(str).unique())
    one, two = ([f"{n}|batch_{b}" for n in names] for b in range(2))
    upper = np.triu_indices(len(names), 1)
    trains = np.random.default_rng(seed).random(adata.n_obs) < 0.5
    own, fresh = adata[trains].copy(), adata[~trains].copy()
    rows = []
    for design, keys in NUISANCE.items():
        scgde.GDEModel.setup_anndata(own, ["population", "half"], **keys)
        model = scgde.GDEModel(own)
        quiet_train(model, max_epochs=arguments.epochs, seed=seed)
        for which, cells in (("trained", None), ("fresh", fresh)):
            d = model.get_population_distances(cells, bias_correction=True)
            ratio = np.median(np.diag(d.loc[one, two])) / np.median(d.loc[one, one].to_numpy()[upper])
            rows.append({"design": design, "cells": which, "ratio": float(ratio)})
    return rows


def changed(truth: dict, law: int, kind: str, other: int, rng: np.random.Generator) -> dict:
    """The simulation with one law changed: its mean moved by .5, its covariance halved, widened by half, or exchanged for another
    one of the same trace; or an unrelated law in its place (``mixture``)."""
    truth = deepcopy(truth)
    mean, covariance = truth["mean"], truth["covariance"]
    if kind == "mean":
        line = rng.normal(size=mean.shape[1])
        mean[law] += 0.5 * line / np.linalg.norm(line)
    elif kind == "turned":
        covariance[law] = covariance[other] * np.trace(covariance[law]) / np.trace(covariance[other])
    elif kind == "mixture":
        mean[law], covariance[law] = mean[other], covariance[other]
    else:
        covariance[law] *= {"narrower": 0.5, "wider": 1.5}[kind]
    return truth


def alternatives(source: ad.AnnData, n: int, n_laws: int, seed: int) -> tuple[ad.AnnData, list[tuple[str, str, str]]]:
    """Controls of some laws and, for each, populations with a share of cells of a changed law; kinds and labels of the pairs."""
    rng = np.random.default_rng([seed, n])
    parts, pairs = [], []

    def draw(cells: ad.AnnData, law: int, m: int, label: str) -> None:
        drawn = scgde.datasets.simulate_cells(cells, f"population_{law}", m, seed=int(rng.integers(2**31)))
        drawn.obs["population"] = label
        parts.append(drawn)

    for law in range(n_laws):
        draw(source, law, n, f"law_{law}")
        for kind, shares in SHARES.items():
            other = source[:1].copy()
            other.uns["simulation"] = changed(source.uns["simulation"], law, kind, law + n_laws, rng)
            moved = int(rng.binomial(n, shares[n]))
            label = f"{kind}_{law}"
            for cells, m in ((source, n - moved), (other, moved)):
                if m:
                    draw(cells, law, m, label)
            pairs.append((kind, label, f"law_{law}"))
    joint = ad.concat(parts)
    joint.obs_names = [str(i) for i in range(joint.n_obs)]
    return joint, pairs


def power(seed: int, arguments) -> list[dict]:
    """Pairs of a control and of changed populations, all of which train the model."""
    source = scgde.datasets.simulate_populations(
        20, design="independent", cells_per_population=(10, 10), n_genes=200, seed=seed
    )
    rng, rows = np.random.default_rng(seed), []
    for n in (30, 100, 300):
        own, pairs = alternatives(source, n, 8, seed)
        model = trained(own, seed, arguments.epochs)
        for which, cells in (("trained", own), ("fresh", alternatives(source, n, 8, seed + 500)[0])):
            sources, targets = [p[1] for p in pairs], [p[2] for p in pairs]
            table = scgde.tl.test_populations(
                model, sources, targets, adata=cells, n_permutations=PERMUTATIONS, seed=seed
            )
            x = encode_components(model.module, model._table(cells), np.arange(cells.n_obs))
            label = cells.obs["population"].to_numpy()
            for (kind, first, second), p in zip(pairs, table["p_value"], strict=True):
                union = np.r_[np.flatnonzero(label == first), np.flatnonzero(label == second)]
                energy = energy_test(x[union], n, rng, PERMUTATIONS)
                found = {"scgde": p <= 0.05, "energy distance": energy <= 0.05}
                rows.append({"design": kind, "n": n, "cells": which, **found})
    return rows


PARTS = {
    "null": null,
    "twins": twins,
    "encoders": encoders,
    "errors": errors,
    "real": real,
    "targets": targets,
    "nuisance": nuisance,
    "power": power,
}

if __name__ == "__main__":
    designs = ",".join(f"{k}x{n}" for k, n in DESIGNS)
    arguments = options(__doc__, part="all", designs=designs, **{"first-seed": 1})
    for part in PARTS if arguments.part == "all" else arguments.part.split(","):
        if part in ("real", "targets") and not scgde.datasets.has_dataset("papalexi_eccite_299g"):
            print(f"{part}: data not available (set SCGDE_DATA_DIR), skipped")
            continue
        rows = []
        for seed in seeds(arguments):
            rows += [{"seed": seed, **row} for row in PARTS[part](seed, arguments)]
            print(f"{part} seed {seed}", *rows[-2:], sep="\n  ", flush=True)
        table = pd.DataFrame(rows)
        keys = [c for c in ("design", "cells", "n") if c in table]
        values = [c for c in table if c not in (*keys, "seed")]
        table[values] = table[values].astype(float)
        grouped = table.groupby(keys, sort=False)
        means = grouped[values].mean().reset_index()
        if "p <= .05" in table:
            of_sets = grouped["p <= .05"].std(ddof=1) / np.sqrt(grouped["seed"].nunique())
            means["its standard error"] = of_sets.to_numpy()
        report(f"inference_{part}", means, arguments)
