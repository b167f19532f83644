"""Exactness: invariance of every encoder, cell vectors against embeddings, files."""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd
import torch
from _common import options, quiet_train, report

import scgde
from scgde.encoders import ENCODERS
from scgde.inference import encode_cells


def run(encoder: str, seed: int, epochs: int | None) -> dict:
    adata = scgde.datasets.simulate_populations(
        60, design="lineage", cells_per_population=(1, 500), n_genes=200, seed=seed
    )
    scgde.GDEModel.setup_anndata(adata)
    model = scgde.GDEModel(adata, encoder=encoder)
    quiet_train(model, max_epochs=epochs or 30, seed=seed)
    table = model._table()
    u, _ = encode_cells(model.module, table, np.arange(adata.n_obs))
    codes = torch.from_numpy(table.codes)
    net, k = model.module.set_encoder, len(table.labels)
    with torch.no_grad():
        z = net(u, codes, n_sets=k)
        shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(u)))
        permuted = net(u[shuffled], codes[shuffled], n_sets=k)
        thrice = net(u.repeat(3, 1), codes.repeat(3), n_sets=k)
        alone = torch.cat(
            [net(u[codes == i], torch.zeros(int((codes == i).sum()), dtype=torch.long)) for i in range(k)]
        )
    embedding = model.get_population_embedding()
    cells = model.get_cell_embedding()
    means = np.stack([cells[table.codes == i].mean(0) for i in range(k)])
    means_error = np.abs(means - embedding.loc[table.labels].to_numpy()).max()
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, overwrite=True)
        loaded = scgde.GDEModel.load(folder, adata, accelerator="cpu")
        identical = bool((loaded.get_population_embedding().to_numpy() == embedding.to_numpy()).all())
    return {
        "encoder": encoder,
        "seed": seed,
        "permutation": float((permuted - z).abs().max()),
        "duplication x3": float((thrice - z).abs().max()),
        "one at a time": float((alone - z).abs().max()),
        "mean of X_gde": float(means_error),
        "identical after save, load": identical,
    }


if __name__ == "__main__":
    arguments = options(__doc__)
    rows = [run(e, s, arguments.epochs) for e in ENCODERS for s in range(arguments.seeds)]
    report("invariance", pd.DataFrame(rows), arguments)
