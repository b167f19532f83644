"""Distances between populations never trained on, against the true Wasserstein-2 distance of a simulator.

300 populations of 30-300 negative binomial cells, 500 genes, 8 latent dimensions; 240 train, 60 are scored. The second
table adds a batch effect (a random third of genes shifted two-fold) and asks whether the nearest embedding of the other
batch is the same population. The third has clones that drift apart along a few fates, so that the axes of the true latent differ
much in spread, and compares weights of the axes; the default was chosen on seeds 0 and 71 of this design and by retrieval
(retrieval.py), so the seeds here start at 1.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import CellPCA, PseudobulkPCA, options, quiet_train, report
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr

import scgde


def upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def held_out(adata, seed: int, n: int = 60):
    """Training cells, and cells of ``n`` populations that no part of training sees."""
    labels = np.asarray(adata.uns["simulation"]["populations"]).astype(str)
    test = np.random.default_rng(seed).choice(labels, n, replace=False)
    is_test = adata.obs["population"].isin(test).to_numpy()
    return adata[~is_test].copy(), adata[is_test].copy(), test


MODELS = {
    "independent": {"scgde isometric": {}, "scgde emergent": {"geometry": "emergent"}},
    "lineage": {f"scgde, expression_weight={w}": {"expression_weight": w} for w in (0.0, 0.5, 1.0)},
}


def distances(seed: int, epochs: int | None, design: str) -> list[dict]:
    sizes = {"independent": {}, "lineage": {"cells_per_population": (20, 200)}}[design]
    adata = scgde.datasets.simulate_populations(300 if not sizes else 180, design=design, seed=seed, **sizes)
    train, test, labels = held_out(adata, seed)
    truth = adata.uns["simulation"]
    order = {str(k): i for i, k in enumerate(truth["populations"])}
    names = sorted(set(labels))
    position = np.array([order[k] for k in names])
    w2 = upper(truth["w2"][np.ix_(position, position)])
    codes = pd.Categorical(test.obs["population"].astype(str), categories=names).codes.astype(int)
    train_codes = pd.factorize(train.obs["population"])[0]
    rows = []

    def add(method: str, values: np.ndarray, seconds: float = np.nan) -> None:
        row = {"seed": seed, "method": method, "spearman": spearmanr(values, w2)[0]}
        # latents and components have units of their own: one factor for all pairs is fitted, for every method alike
        scaled = values * (values @ w2) / (values @ values)
        row |= {"pearson": np.corrcoef(values, w2)[0, 1], "error": np.sqrt(np.mean((scaled - w2) ** 2)) / w2.mean()}
        row |= {"cpu_s": seconds}
        rows.append(row)
        print(row, flush=True)

    def gaussian(latent: np.ndarray) -> np.ndarray:
        m = np.stack([latent[codes == k].mean(0) for k in range(len(names))])
        c = np.stack([np.cov(latent[codes == k].T) for k in range(len(names))])
        return upper(scgde.ot.pairwise_gaussian_wasserstein(m, c))

    for name, choices in MODELS[design].items():
        cells = train.copy()
        scgde.GDEModel.setup_anndata(cells)
        model = scgde.GDEModel(cells, **choices)
        seconds = quiet_train(model, max_epochs=epochs, seed=seed)
        d = model.get_population_distances(test).loc[names, names].to_numpy()
        add(name, upper(d), seconds)
        if not choices:
            add("Gaussian W2 in u", gaussian(model.get_latent_representation(test)))
    pseudobulk = PseudobulkPCA(train.X, train_codes)(test.X, codes)
    components = CellPCA(train.X, 50, seed)(test.X)
    for r in (10, 50):
        add(f"pseudobulk PCA, {r}", pdist(pseudobulk[:, :r]))
        part = components[:, :r]
        add(f"exact W2 in PCA space, {r}", upper(scgde.ot.pairwise_distances(part, codes, progress=False)))
    add(
        "sliced W2 in PCA space, 50",
        upper(scgde.ot.pairwise_distances(components, codes, metric="sliced", progress=False)),
    )
    # the ceiling: distances from the cells' true latents, as many cells as each population has
    add("ceiling: Gaussian W2 of true latents", gaussian(np.asarray(test.obsm["X_true_latent"])))
    return rows


def batches(seed: int, epochs: int | None) -> list[dict]:
    adata = scgde.datasets.simulate_populations(300, design="independent", n_batches=2, seed=seed)
    train, test, _ = held_out(adata, seed)
    rows = []

    def add(method: str, z: pd.DataFrame) -> None:
        parts = [label.rsplit("|", 1) for label in z.index]
        population, batch = (np.array(p) for p in zip(*parts, strict=True))
        a, b = (z.to_numpy()[batch == k] for k in np.unique(batch))
        pa, pb = (population[batch == k] for k in np.unique(batch))
        d = cdist(a, b)
        hits = np.concatenate([pb[d.argmin(1)] == pa, pa[d.argmin(0)] == pb])
        rows.append({"seed": seed, "method": method, "same_population_nearest": hits.mean()})
        print(rows[-1], flush=True)

    for batch_key in ("batch", None):
        cells = train.copy()
        scgde.GDEModel.setup_anndata(cells, ["population", "batch"], batch_key=batch_key)
        model = scgde.GDEModel(cells)
        quiet_train(model, max_epochs=epochs, seed=seed)
        add(f"scgde, batch_key={batch_key!r}", model.get_population_embedding(test))
        if batch_key:
            add("same, populations trained on", model.get_population_embedding())
    label = test.obs["population"].astype(str) + "|" + test.obs["batch"].astype(str)
    codes, names = pd.factorize(label)
    train_codes = pd.factorize(train.obs["population"].astype(str) + train.obs["batch"].astype(str))[0]
    add("pseudobulk PCA", pd.DataFrame(PseudobulkPCA(train.X, train_codes)(test.X, codes), index=names))
    latent = np.asarray(test.obsm["X_true_latent"])
    z = pd.DataFrame([latent[codes == k].mean(0) for k in range(len(names))], index=names)
    add("ceiling: means of true latents", z)
    return rows


if __name__ == "__main__":
    arguments = options(__doc__, part="all")
    for part, design, first in (("distances", "independent", 0), ("lineage", "lineage", 1)):
        if arguments.part not in ("all", part):
            continue
        seeds = range(first, first + arguments.seeds)
        table = pd.DataFrame([row for seed in seeds for row in distances(seed, arguments.epochs, design)])
        summary = (
            table.groupby("method", sort=False)[["spearman", "pearson", "error", "cpu_s"]].agg(["mean", "min"]).round(4)
        )
        summary.columns = ["_".join(c) for c in summary.columns]
        report(f"simulated_{part}", summary.reset_index(), arguments)
    if arguments.part in ("all", "batches"):
        table = pd.DataFrame([row for seed in range(arguments.seeds) for row in batches(seed, arguments.epochs)])
        summary = table.groupby("method", sort=False)["same_population_nearest"].agg(["mean", "min"]).reset_index()
        report("simulated_batches", summary, arguments)
