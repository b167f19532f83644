"""Coverage of the standard errors of population embeddings, and their bias, by number of cells.

Truth: the trained model's embedding of 100,000 cells of a law. 20 laws that did not train, 500 draws of n cells each; 95 %
intervals from t with n - 1 degrees of freedom.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from _common import options, quiet_train, report
from scipy.stats import t as student

import scgde
from scgde.inference import embed, encode_cells

SIZES = (3, 5, 10, 30, 100, 300, 1000)


def run(seed: int, epochs: int | None, n_laws: int, n_draws: int, n_truth: int, encoder: str) -> list[dict]:
    adata = scgde.datasets.simulate_populations(300, design="independent", seed=seed)
    labels = np.asarray(adata.uns["simulation"]["populations"]).astype(str)
    laws = labels[-n_laws:]
    train = adata[~adata.obs["population"].isin(laws).to_numpy()].copy()
    scgde.GDEModel.setup_anndata(train)
    model = scgde.GDEModel(train, encoder=encoder)
    quiet_train(model, max_epochs=epochs, seed=seed)
    rng = np.random.default_rng(seed)
    covered = {n: [] for n in SIZES}
    bias = {n: [] for n in SIZES}
    raw_bias = {n: [] for n in SIZES}
    for i, law in enumerate(laws):
        pool = []
        for part in range(n_truth // 10_000):  # in parts: the counts of a whole law would fill memory
            cells = scgde.datasets.simulate_cells(adata, law, 10_000, seed=1000 * seed + 50 * i + part)
            pool.append(encode_cells(model.module, model._table(cells), np.arange(cells.n_obs))[0])
        u = torch.cat(pool)
        truth = embed(model.module.set_encoder, u, np.zeros(len(u), dtype=int), ["law"], None).z[0]
        for n in SIZES:
            rows = np.concatenate([rng.choice(len(u), n, replace=False) for _ in range(n_draws)])
            codes = np.repeat(np.arange(n_draws), n)
            e = embed(model.module.set_encoder, u[rows], codes, [str(k) for k in range(n_draws)], None)
            width = student.ppf(0.975, n - 1) * e.standard_error
            covered[n].append((np.abs(e.z - truth) <= width).mean(0))
            spread = e.z.std(0)
            bias[n].append((e.z.mean(0) - truth) / spread)
            with torch.no_grad():
                plain = model.module.set_encoder(u[rows], torch.from_numpy(codes), n_sets=n_draws).numpy()
            raw_bias[n].append((plain.mean(0) - truth) / plain.std(0))
        print(f"seed {seed} law {i + 1}/{len(laws)}", flush=True)
    out = []
    for n in SIZES:
        by_coordinate = np.mean(covered[n], axis=0)
        row = {"encoder": encoder, "seed": seed, "n": n, "coverage": by_coordinate.mean(), "worst": by_coordinate.min()}
        # root mean square over laws and coordinates, in standard deviations of the embedding at that n
        row["bias / sd"] = np.sqrt(np.mean(np.square(bias[n])))
        row["bias / sd, uncorrected"] = np.sqrt(np.mean(np.square(raw_bias[n])))
        out.append(row)
    return out


if __name__ == "__main__":
    arguments = options(__doc__, laws=20, draws=500, truth=100_000, encoders="residual")
    rows = []
    for encoder in arguments.encoders.split(","):
        for seed in range(arguments.seeds):
            rows += run(seed, arguments.epochs, arguments.laws, arguments.draws, arguments.truth, encoder)
    table = pd.DataFrame(rows)
    summary = table.groupby(["encoder", "n"], sort=False).agg(
        coverage=("coverage", "mean"),
        worst=("worst", "min"),
        bias=("bias / sd", "mean"),
        bias_uncorrected=("bias / sd, uncorrected", "mean"),
    )
    report("standard_errors", summary.reset_index(), arguments)
