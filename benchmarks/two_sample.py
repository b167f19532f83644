"""Two-sample tests: size over null pairs, and power against permutation tests by energy distance and MMD.

A model is trained on 280 of 300 simulated populations; pairs are drawn from the others' laws (20,000 encoded cells of each, drawn
from with replacement). All tests permute the same cells as often, and the peers see the same latents u. An alternative replaces
a share of the second population's cells by cells of a changed law: its mean moved by 0.5, its covariance halved, widened by half,
or exchanged for another one of the same trace; `mixture` by cells of an unrelated law. The transformation of the vectors and its one weight were
chosen on seed 0 of these laws and alternatives, so the seeds here start at 1.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from _common import options, quiet_train, report
from scipy.spatial.distance import cdist

import scgde
from scgde.inference import encode_cells
from scgde.uncertainty import permutation_test, spread_vectors

# shares that put power between its limits, by number of cells
SHARES = {
    "mean": {30: 0.8, 100: 0.45, 300: 0.25},
    "narrower": {30: 1.0, 100: 0.6, 300: 0.35},
    "wider": {30: 1.0, 100: 0.6, 300: 0.35},
    "turned": {30: 1.0, 100: 0.6, 300: 0.35},
    "mixture": {30: 0.2, 100: 0.1, 300: 0.05},
}


def changed(truth: dict, law: int, kind: str, other: int, rng: np.random.Generator) -> dict:
    """The simulation with one law changed."""
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


def peers(u: np.ndarray, n: int, rng: np.random.Generator, n_permutations: int) -> dict[str, float]:
    """P-values of permutation tests on latents ``(2 n, d)`` by energy distance and MMD (RBF, median bandwidth)."""
    distances = cdist(u, u)
    bandwidth = np.median(distances[np.triu_indices(2 * n, 1)])
    kernels = {"energy distance": -distances, "MMD": np.exp(-np.square(distances / bandwidth) / 2)}
    groups = np.zeros((n_permutations + 1, 2 * n))
    groups[0, :n] = 1
    chosen = np.argsort(rng.random((n_permutations, 2 * n)), axis=1)[:, :n]
    groups[np.arange(1, n_permutations + 1)[:, None], chosen] = 1
    out = {}
    for name, kernel in kernels.items():
        rows = groups @ kernel
        within = (rows * groups).sum(1)
        between = rows.sum(1) - within
        statistic = within + (kernel.sum() - within - 2 * between) - 2 * between
        exceeding = (statistic[1:] >= statistic[0] - 1e-9 * abs(statistic[0])).sum()
        out[name] = (1 + exceeding) / (1 + n_permutations)
    return out


def run(seed: int, arguments) -> list[dict]:
    adata = scgde.datasets.simulate_populations(300, design="independent", seed=seed)
    truth = adata.uns["simulation"]
    labels = np.asarray(truth["populations"]).astype(str)
    held_out = np.arange(len(labels))[-20:]
    train = adata[~adata.obs["population"].isin(labels[held_out]).to_numpy()].copy()
    scgde.GDEModel.setup_anndata(train)
    model = scgde.GDEModel(train)
    quiet_train(model, max_epochs=arguments.epochs, seed=seed)
    model.module.eval()
    encoder = model.module.set_encoder
    rng = np.random.default_rng(seed)

    def pool(laws: dict, law: int) -> np.ndarray:
        source = adata[:1].copy()
        source.uns["simulation"] = laws
        parts = []
        for _ in range(max(arguments.pool // 10_000, 1)):  # in parts: counts of many cells would fill memory
            n = min(arguments.pool, 10_000)
            cells = scgde.datasets.simulate_cells(source, labels[law], n, seed=int(rng.integers(2**31)))
            parts.append(encode_cells(model.module, model._table(cells), np.arange(n))[0].numpy())
        return np.concatenate(parts)

    def p_values(u: np.ndarray, n: int, *, with_peers: bool) -> dict[str, float]:
        with torch.no_grad():
            _, psi = encoder.influence(torch.from_numpy(u), torch.zeros(2 * n, dtype=torch.long), 1)
        group, count = np.arange(2 * n) < n, arguments.permutations
        out = {"scgde": permutation_test(spread_vectors(psi.numpy()), group, rng, n_permutations=count)[1]}
        if with_peers:
            out["scgde, influences as they are"] = permutation_test(psi.numpy(), group, rng, n_permutations=count)[1]
            out |= peers(u, n, rng, count)
        return out

    sizes = [int(n) for n in arguments.sizes.split(",")]
    rows = []
    for i in range(arguments.laws):
        law, other = held_out[i], held_out[(i + 7) % len(held_out)]
        own = pool(truth, law)
        alternatives = {kind: pool(changed(truth, law, kind, other, rng), law) for kind in SHARES}
        for n in sizes:
            for kind in ("null", *SHARES):
                runs = arguments.null_pairs if kind == "null" else arguments.pairs
                for _ in range(-(-runs // arguments.laws)):
                    u = own[rng.integers(0, len(own), 2 * n)]
                    if kind != "null":
                        drawn = n + np.flatnonzero(rng.random(n) < SHARES[kind][n])
                        u[drawn] = alternatives[kind][rng.integers(0, len(own), len(drawn))]
                    p = p_values(u, n, with_peers=kind != "null")
                    rows.append({"seed": seed, "n": n, "alternative": kind, **p})
        print(f"seed {seed} law {i + 1}/{arguments.laws}", flush=True)
    return rows


if __name__ == "__main__":
    arguments = options(__doc__, laws=10, pairs=300, null_pairs=2000, permutations=199, pool=20_000, sizes="30,100,300")
    table = pd.DataFrame([row for seed in range(1, 1 + arguments.seeds) for row in run(seed, arguments)])
    names = [name for name in table if name not in ("seed", "n", "alternative")]
    # p-values of pairs that a test was not run on stay missing
    table[names] = (table[names] <= 0.05).where(table[names].notna())
    shares = table.groupby(["alternative", "n"], sort=False)[names].mean().astype(float).reset_index()
    by_seed = table[table["alternative"] == "null"].groupby(["n", "seed"])["scgde"].mean()
    pairs = int((table["alternative"] == "null").sum() / table["n"].nunique())
    report("two_sample", shares, arguments, null_pairs=pairs, size_range=[float(by_seed.min()), float(by_seed.max())])
