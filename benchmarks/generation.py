"""Generated cells against held-out cells of the same population, for populations trained on and never trained on.

Every population is compared at equal numbers of cells: generated against one held-out half, and the two held-out halves
against each other, which is the ceiling. Baseline (``redrawn``): the population's own training cells (of an unseen population,
the cells it is embedded from), drawn again. E-distance: unbiased energy distance (Euclidean) on 50 principal components
fitted on training cells. Gene statistics: R2 (1 - SSE / SST over genes) of mean, variance and zero fraction of log1p
counts. Copying: distance of a cell to its nearest training cell.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import CellPCA, options, quiet_train, report
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

import scgde

REAL = {
    "papalexi": ("papalexi_eccite_299g", ["target"]),
    "tapseq": ("tapseq_k562_chr8", ["target"]),
    "kang": ("kang_ifnb_celltypes", ["cell_type", "condition"]),
    "norman": ("norman_mcfaline_500hvg", ["cell_type", "condition"]),
}


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased energy distance of two samples."""
    xx, yy = cdist(x, x).sum() / (len(x) * (len(x) - 1)), cdist(y, y).sum() / (len(y) * (len(y) - 1))
    return 2 * cdist(x, y).mean() - xx - yy


def gene_r2(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """R2 over genes of statistics of log1p counts of ``x`` as predictions of those of ``y``."""
    statistics = {
        "mean": lambda c: np.log1p(c).mean(0),
        "variance": lambda c: np.log1p(c).var(0),
        "zeros": lambda c: (c == 0).mean(0),
    }
    scores = {}
    for name, f in statistics.items():
        a, b = f(x), f(y)
        scores[name] = 1 - np.square(a - b).sum() / np.square(b - b.mean()).sum()
    return scores


def load(name: str, seed: int):
    if name == "simulated":
        return scgde.datasets.simulate_populations(300, design="independent", seed=seed), ["population"]
    dataset, keys = REAL[name]
    return scgde.datasets.load(dataset), keys


def run(name: str, seed: int, epochs: int | None, **model_options) -> list[dict]:
    adata, keys = load(name, seed)
    label = adata.obs[keys].astype(str).agg("|".join, axis=1).to_numpy()
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(label, return_counts=True)
    names = rng.permutation(names[sizes >= 40])
    unseen = set(names[: len(names) // 5])
    # half of every population trains (or, for unseen ones, is only embedded); the rest is held out
    context = np.zeros(len(label), dtype=bool)
    for k in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == k))
        context[rows[: len(rows) // 2]] = True
    is_unseen = np.isin(label, list(unseen))
    train = adata[context & ~is_unseen].copy()
    scgde.GDEModel.setup_anndata(train, keys)
    model = scgde.GDEModel(train, **model_options)
    seconds = quiet_train(model, max_epochs=epochs, seed=seed)
    components = CellPCA(train.X, 50, seed)
    train_pcs = components(train.X)
    neighbours = NearestNeighbors(n_neighbors=1).fit(train_pcs)
    query = adata[context & is_unseen].copy()
    again = np.random.default_rng([seed, 1])

    rows, centres = [], []
    for k in names:
        held = rng.permutation(np.flatnonzero((label == k) & ~context))
        n = min(len(held) // 2, 200)
        one, two = (adata.X[held[i * n : (i + 1) * n]].toarray() for i in (0, 1))
        made = model.sample(k, n, adata=query if k in unseen else None, seed=seed).X.toarray()
        redrawn = adata.X[again.choice(np.flatnonzero((label == k) & context), n)].toarray()
        a, b, g = components(one), components(two), components(made)
        centres.append((a, k in unseen))
        row = {"set": name, "seed": seed, "population": k, "unseen": k in unseen, "cpu_s": seconds}
        row |= {"e_generated": energy_distance(g, a), "e_halves": energy_distance(b, a)}
        row["e_redrawn"] = energy_distance(components(redrawn), a)
        row |= {f"r2_{s}_redrawn": v for s, v in gene_r2(redrawn, one).items()}
        row |= {f"r2_{s}": v for s, v in gene_r2(made, one).items()}
        row |= {f"r2_{s}_halves": v for s, v in gene_r2(two, one).items()}
        row["nearest_generated"] = np.median(neighbours.kneighbors(g)[0])
        row["nearest_held_out"] = np.median(neighbours.kneighbors(a)[0])
        rows.append(row)
    pairs = rng.choice(len(centres), (300, 2))
    between = [energy_distance(centres[i][0], centres[j][0]) for i, j in pairs if i != j]
    for row in rows:
        row["e_between"] = float(np.median(between))
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    out = []
    for (name, unseen), part in table.groupby(["set", "unseen"], sort=False):
        row = {"set": name, "populations": "never trained on" if unseen else "trained on", "n": len(part)}
        row["E generated"] = part["e_generated"].median()
        row["E redrawn"] = part["e_redrawn"].median()
        row["E halves"] = part["e_halves"].median()
        row["E bar"] = part["e_halves"].median() + 0.1 * part["e_between"].median()
        row["share under bar"] = (part["e_generated"] <= part["e_halves"] + 0.1 * part["e_between"]).mean()
        for s, cap in (("mean", 0.99), ("variance", 0.95), ("zeros", 0.98)):
            row[f"R2 {s}"] = part[f"r2_{s}"].median()
            row[f"{s} redrawn"] = part[f"r2_{s}_redrawn"].median()
            row[f"{s} bar"] = min(cap, part[f"r2_{s}_halves"].median() - 0.01)
        row["nearest gen / held-out"] = (part["nearest_generated"] / part["nearest_held_out"]).median()
        out.append(row)
    return pd.DataFrame(out)


if __name__ == "__main__":
    arguments = options(
        __doc__, sets="simulated,papalexi,tapseq,kang,norman", generator="flow", name="generation", **{"n-latent": 20}
    )
    rows = []
    for name in arguments.sets.split(","):
        if name in REAL and not scgde.datasets.has_dataset(REAL[name][0]):
            print(f"{name}: not available (set SCGDE_DATA_DIR), skipped")
            continue
        for seed in range(arguments.seeds):
            rows += run(name, seed, arguments.epochs, generator=arguments.generator, n_latent=arguments.n_latent)
            print(summarise(pd.DataFrame(rows)).tail(2).to_string(index=False), flush=True)
    report(arguments.name, summarise(pd.DataFrame(rows)), arguments)
