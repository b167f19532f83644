"""How long the cell phase should last: held-out evidence bound of cells after more and fewer passes over the cells.

70 % of each population's cells train and the others are scored. Each number of passes is a training of its own, with its own
schedule of the learning rate. "limit" is the package's own choice; nothing else of the model is changed. Lower is better.
"""

from __future__ import annotations

import pandas as pd
from _common import options, report

import scgde
from scgde import _model_training, training

SETS = {
    "kang": ("kang_ifnb_celltypes", ["cell_type", "condition"]),
    "larry": ("larry_hematopoiesis", ["state"]),
    "norman": ("norman_mcfaline_500hvg", ["cell_type", "condition"]),
    "tapseq": ("tapseq_k562_chr8", ["guide"]),
    "papalexi": ("papalexi_eccite_299g", ["target"]),
}
PASSES = (10, 20, 40, 80, 160)


def run(name: str, passes: int | None, seed: int, likelihood: str = "zinb") -> dict:
    dataset, keys = SETS[name]
    adata = scgde.datasets.load(dataset)
    scgde.GDEModel.setup_anndata(adata, keys)
    model = scgde.GDEModel(adata, gene_likelihood=likelihood)
    n_cells = int(0.7 * adata.n_obs)
    limit = training.cell_pass_limit(n_cells, adata.n_vars) if passes is None else passes

    def plan(n_cell_batches: int, n_set_batches: int, **_) -> training.EpochPlan:
        """As many passes as asked, or what the limit leaves of the default; the population phase is not looked at."""
        default = training.default_epochs(
            n_cell_batches, n_set_batches, learned=True, max_epochs=None, max_passes=limit
        )
        return training.EpochPlan(default.cells if passes is None else passes, 1)

    original, _model_training.default_epochs = _model_training.default_epochs, plan
    try:
        model.train(accelerator="cpu", enable_progress_bar=False, train_size=0.7, seed=seed, check_val_every_n_epoch=1)
    finally:
        _model_training.default_epochs = original
    # the last row is of the population phase
    scores = model.history["elbo_validation"].dropna().astype(float).iloc[:, 0]
    row = {"set": name, "cells": n_cells, "genes": adata.n_vars, "likelihood": likelihood}
    row |= {"passes": "limit" if passes is None else str(passes), "run": len(scores), "seed": seed}
    return row | {"held-out bound": scores.iloc[-1], "best on the way": scores.min()}


if __name__ == "__main__":
    arguments = options(__doc__, sets=",".join(SETS))
    rows = []
    for name in arguments.sets.split(","):
        if not scgde.datasets.has_dataset(SETS[name][0]):
            print(f"{name}: not available (set SCGDE_DATA_DIR), skipped")
            continue
        for seed in range(arguments.seeds):
            for passes in (None, *PASSES):
                rows.append(run(name, passes, seed))
                print(rows[-1], flush=True)
            rows.append(run(name, None, seed, "nb"))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    keys = ["set", "cells", "genes", "likelihood", "passes", "run"]
    report(
        "cell_phase",
        table.groupby(keys, sort=False)[["held-out bound", "best on the way"]].mean().reset_index(),
        arguments,
    )
