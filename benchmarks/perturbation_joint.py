"""Joint training against two steps: does a loss of predictable shifts, beside the others, make unseen perturbations better predicted?

The paper adds to its loss, with weight 0.5, that of predicting a perturbed population from its control and a description of the
perturbation (arXiv 2505.18150, section on Perturb-seq), so that the encoder is pulled towards embeddings that can be predicted. Here the shift of
each set's embedding from that of the control is predicted by a linear map of features that is trained with it, in units of the spread of embeddings.
Then heads are fitted as ever. Same folds and seeds as ``perturbation.py``; both geometries, since the isometric one holds the encoder to Wasserstein
distances, and the emergent one leaves it to the generator and to this loss. Rows of each set, geometry, training and seed are kept in
``results/perturbation_joint``.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from _common import RESULTS, options, quiet_train, report, seeds
from torch import nn

import scgde
from scgde._constants import BATCH_KEYS
from scgde.module import GDEModule

CONTROL = "non-targeting"
ROWS = RESULTS / "perturbation_joint"
METRICS = ["e_distance", "pearson_delta", "r2_pearson", "mse_delta"]


class JointModule(GDEModule):
    """A module whose encoder also learns from how well shifts are predicted from features."""

    def prepare(self, features: pd.DataFrame, labels: list[str], weight: float) -> None:
        """Take features of populations (zeros and no part in the loss for those without)."""
        known = features.reindex(labels)
        self.described = torch.from_numpy(known.notna().all(axis=1).to_numpy())
        values = (known - known.mean()) / known.std(ddof=0).replace(0, 1)
        self.described_by = torch.from_numpy(values.fillna(0).to_numpy(dtype=np.float32))
        self.control = labels.index(CONTROL)
        self.joint_weight = weight
        width = self.set_encoder.n_embedding
        self.joint_head = nn.Linear(self.described_by.shape[1], width)
        nn.init.zeros_(self.joint_head.weight)
        nn.init.zeros_(self.joint_head.bias)
        self.last_control: torch.Tensor | None = None

    def population_loss(self, batch, generator=None):
        terms = super().population_loss(batch, generator)
        sources, weights = batch[BATCH_KEYS.SOURCES], batch[BATCH_KEYS.SOURCE_WEIGHTS]
        pure = weights[:, 0] > 0.999
        scored = batch.get(BATCH_KEYS.SCORED)
        rows = slice(None) if scored is None else ~scored
        z = self.set_encoder(batch[BATCH_KEYS.U_MEAN][rows], batch[BATCH_KEYS.SEGMENT][rows], n_sets=len(sources))
        controls = pure & (sources[:, 0] == self.control)
        if controls.any():
            here = z[controls].mean(0)
            self.last_control = here.detach()
        elif self.last_control is None:
            return terms
        else:
            here = self.last_control
        chosen = pure & self.described[sources[:, 0]]
        if not chosen.any():
            return terms
        predicted = here + self.joint_head(self.described_by[sources[chosen, 0]])
        spread = z.detach().var(0).sum().clamp_min(1e-8)
        loss = (z[chosen] - predicted).square().sum(1).mean() / spread
        terms["loss"] = terms["loss"] + self.joint_weight * loss
        return {**terms, "joint": loss.detach()}


def make_joint(model: scgde.GDEModel, features: pd.DataFrame, weight: float) -> None:
    """Have the module that training builds be a joint one."""
    build = model._build_module

    def joint(seed: int | None) -> JointModule:
        module = build(seed)
        module.__class__ = JointModule
        module.prepare(features, list(model._table().labels), weight)
        return module

    model._build_module = joint


def folds(name: str, seed: int, weight: float, geometry: str, epochs: int | None):
    """Rows of one seed, as in ``perturbation.py`` but for the module's class."""
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
        if weight:
            # features from the training cells alone, as the predictor makes them
            model.train_indices_ = np.arange(train.n_obs)
            features = scgde.perturbation.gene_loadings(model, list(train.var_names))
            make_joint(model, features, weight)
        quiet_train(model, seed=seed, max_epochs=epochs)
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
