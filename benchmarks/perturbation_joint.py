"""Joint training against two steps: does a loss of predictable shifts, beside the others, make unseen perturbations better predicted?

The paper adds to its loss, with weight 0.5, that of predicting a perturbed population from its control and a description of the
perturbation (arXiv 2505.18150, section on Perturb-seq), so that the encoder is pulled towards embeddings that can be predicted. That is
:class:`scgde.perturbation.PredictableShifts`.
Then heads are fitted as ever. Same folds and seeds as ``perturbation.py``; both geometries, since the isometric one holds the encoder to Wasserstein
distances, and the emergent one leaves it to the generator and to this loss. Rows of each set, geometry, training and seed are kept in
``results/perturbation_joint``.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from _common import RESULTS, options, quiet_train, report, seeds

import scgde
from scgde.perturbation import PredictableShifts

CONTROL = "non-targeting"
ROWS = RESULTS / "perturbation_joint"
METRICS = ["e_distance", "pearson_delta", "r2_pearson", "mse_delta"]


def folds(name: str, seed: int, weight: float, geometry: str, epochs: int | None):
    """Rows of one seed, as in ``perturbation.py`` but for the term of predictable shifts."""
    adata = scgde.datasets.load(name)
    targets = sorted(set(adata.obs["target"]) - {CONTROL})
    order = np.random.default_rng(seed).permutation(targets)
    for fold in range(5):
        held = adata.obs["target"].isin(order[fold::5]).to_numpy()
        train = adata[~held].copy()
        scgde.GDEModel.setup_anndata(
            train, population_key="target", batch_key="batch" if "batch" in train.obs else None
        )
        model = scgde.GDEModel(train, geometry=geometry)
        plan = {"auxiliary": PredictableShifts("target", CONTROL, weight=weight)} if weight else None
        quiet_train(model, seed=seed, max_epochs=epochs, plan_kwargs=plan)
        predictor = scgde.PerturbationPredictor(model, "target", CONTROL).fit()
        frame = predictor.evaluate(adata[held].copy(), per_population=True, seed=seed, unknown="mean")
        yield frame[frame["method"] == "scgde"].assign(seed=seed)


def run(name: str, geometry: str, weight: float, seed: int, arguments) -> dict:
    """Means over held-out targets: from their file, or computed and written to it."""
    epochs = "" if arguments.epochs is None else f"_{arguments.epochs}_epochs"
    path = ROWS / f"{name}_{geometry}_{weight:g}_{seed}{epochs}.json"
    if path.exists() and not arguments.fresh:
        return json.loads(path.read_text())
    means = pd.concat(folds(name, seed, weight, geometry, arguments.epochs))[METRICS].mean()
    training = "joint" if weight else "two steps"
    row = {"set": name, "geometry": geometry, "training": training, "weight": weight, "seed": seed}
    row |= means.round(6).to_dict()
    print(row, flush=True)
    if not arguments.no_save:
        ROWS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row) + "\n")
    return row


def main() -> None:
    sets = "tapseq_k562_chr8,papalexi_eccite_299g"
    arguments = options(
        __doc__, sets=sets, weights="0,0.5", geometry="isometric,emergent", fresh=0, **{"first-seed": 0}
    )
    rows = [
        run(name, geometry, float(weight), seed, arguments)
        for name in arguments.sets.split(",")
        for geometry in arguments.geometry.split(",")
        for weight in arguments.weights.split(",")
        for seed in seeds(arguments)
    ]
    table = (
        pd.DataFrame(rows).groupby(["set", "geometry", "training", "weight"], sort=False)[METRICS].mean().reset_index()
    )
    report("perturbation_joint", table, arguments)


if __name__ == "__main__":
    main()
