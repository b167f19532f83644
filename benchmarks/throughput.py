"""Cells per CPU second: training beside scVI, embedding, sampling, and the data-space model beside the public layer shapes.

Every part runs its peer in the same process on the same data. Times are CPU seconds on one thread (set ``OMP_NUM_THREADS=1``), rates are
medians over epochs or repetitions.
"""

from __future__ import annotations

import time
from itertools import pairwise

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch
import torch.nn.functional as F
from _common import options, quiet_train, report
from _peer_gde import Diffusion, ResNetEncoder, SlicedWasserstein
from anndata import AnnData
from scipy.stats import spearmanr
from torch import nn

import scgde

N_CELLS, N_GENES, BATCH = 20_000, 2_000, 512
MODEL = {"n_hidden": 128, "n_layers": 1, "n_latent": 10}
LIKELIHOODS = ("zinb", "nb", "poisson")
REPEATS = 5


class Stopwatch(pl.Callback):
    """CPU seconds of every epoch, and whether it was one of single cells."""

    def __init__(self) -> None:
        self.epochs: list[tuple[bool, float]] = []

    def on_train_epoch_start(self, trainer, module) -> None:
        self.start = time.process_time()
        self.cells = getattr(module, "in_cell_phase", True)

    def on_train_epoch_end(self, trainer, module) -> None:
        self.epochs.append((self.cells, time.process_time() - self.start))

    def median(self, *, cells: bool = True) -> float:
        return float(np.median([seconds for phase, seconds in self.epochs if phase == cells]))


def simulated_counts(seed: int):
    """Counts of which a tenth is not zero: training cells, other cells of the same populations, and other populations."""
    adata = scgde.datasets.simulate_populations(
        200, design="independent", cells_per_population=(75, 175), n_genes=N_GENES, depth=380, seed=seed
    )
    adata.obs["population"] = adata.obs["population"].astype(str)
    names = np.random.default_rng(seed).permutation(adata.uns["simulation"]["populations"])
    new = adata.obs["population"].isin(names[160:]).to_numpy()
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~new))
    return adata[np.sort(rows[2000:])].copy(), adata[np.sort(rows[:2000])].copy(), adata[new].copy()


# ------------------------------------------------------------------- training


def training(seed: int, arguments) -> pd.DataFrame:
    """Training to the end by default, and scVI for as many cells."""
    train, held, new = simulated_counts(seed)
    density = train.X.nnz / np.prod(train.shape)
    print(f"{train.n_obs} training cells, {density:.3f} of the entries are not zero", flush=True)
    rows = []
    for likelihood in LIKELIHOODS:
        scgde.GDEModel.setup_anndata(train, "population")
        watch, start = Stopwatch(), time.process_time()
        model = scgde.GDEModel(train, gene_likelihood=likelihood, **MODEL)
        quiet_train(model, train_size=1.0, batch_size=BATCH, seed=seed, callbacks=[watch], max_epochs=arguments.epochs)
        total = time.process_time() - start
        n_epochs = sum(cells for cells, _ in watch.epochs)
        seen = n_epochs * train.n_obs
        step = watch.median() / int(np.ceil(train.n_obs / BATCH))
        rows.append({
            "likelihood": likelihood, "method": "scgde", "cells_per_s": train.n_obs / watch.median(), "all_cells_per_s": seen / total,
            "train_cpu_s": total, "sets_cpu_s": sum(s for cells, s in watch.epochs if not cells), "epochs": n_epochs,
            "held_out_bound": held_out_bound(model, held), "spearman_new": against_truth(model, new),
            "step_over_products": step / products(model),
        })  # fmt: skip
        print(rows[-1], flush=True)
        if arguments.peers:
            scvi.settings.seed = seed
            scvi.model.SCVI.setup_anndata(train)
            watch, start = Stopwatch(), time.process_time()
            peer = scvi.model.SCVI(train, gene_likelihood=likelihood, **MODEL)
            options_ = {"train_size": 1.0, "batch_size": BATCH, "max_epochs": n_epochs, "callbacks": [watch]}
            quiet_train(peer, **options_)
            total = time.process_time() - start
            rows.append({
                "likelihood": likelihood, "method": "scVI", "cells_per_s": train.n_obs / watch.median(), "all_cells_per_s": seen / total,
                "train_cpu_s": total, "epochs": n_epochs, "held_out_bound": float(peer.get_elbo(held)),
            })  # fmt: skip
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if arguments.peers:
        peer = table[table["method"] == "scVI"].set_index("likelihood")
        table["ratio_cells"] = table["cells_per_s"] / table["likelihood"].map(peer["cells_per_s"])
        table["ratio_all"] = table["all_cells_per_s"] / table["likelihood"].map(peer["all_cells_per_s"])
    return table


def rates(seed: int, arguments) -> pd.DataFrame:
    """Seconds of an epoch of ours and of scVI by turns, so that a computer that is busy at times is so to both."""
    train, _, _ = simulated_counts(seed)
    rows = []
    for likelihood in LIKELIHOODS:
        ours, sets, peers = [], [], []
        for turn in range(REPEATS):
            scgde.GDEModel.setup_anndata(train, "population")
            watch = Stopwatch()
            model = scgde.GDEModel(train, gene_likelihood=likelihood, **MODEL)
            quiet_train(model, train_size=1.0, batch_size=BATCH, seed=turn, callbacks=[watch], max_epochs=8)
            ours.append(watch.median())
            sets.append(watch.median(cells=False))
            scvi.model.SCVI.setup_anndata(train)
            watch = Stopwatch()
            peer = scvi.model.SCVI(train, gene_likelihood=likelihood, **MODEL)
            quiet_train(peer, train_size=1.0, batch_size=BATCH, max_epochs=3, callbacks=[watch])
            peers.append(watch.median())
        ratio = np.array(peers) / np.array(ours)
        rows.append({"likelihood": likelihood, "cells_per_s": train.n_obs / np.median(ours), "scvi_cells_per_s": train.n_obs / np.median(peers),
                     "set_cells_per_s": train.n_obs / np.median(sets), "ratio": np.median(ratio), "ratio_min": ratio.min(), "ratio_max": ratio.max()})  # fmt: skip
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


@torch.no_grad()
def held_out_bound(model, held, n_draws: int = 5) -> float:
    """Mean evidence bound of cells that did not train; larger is better."""
    module, table = model.module.eval(), model._table(held)
    everything = np.arange(held.n_obs)
    batch = {"X": table.tensor(everything, sparse=True), "batch": torch.from_numpy(table.batch)[:, None]}
    draws = [module.cell_loss(batch, 1.0, torch.Generator().manual_seed(i))[0].loss for i in range(n_draws)]
    return -float(torch.stack(draws).mean())


def against_truth(model, new) -> float:
    """Rank correlation of distances between populations that did not train with their true Wasserstein-2 distances."""
    z = model.get_population_embedding(new)
    place = pd.Index(new.uns["simulation"]["populations"]).get_indexer(z.index)
    upper = np.triu_indices(len(z), 1)
    true = np.asarray(new.uns["simulation"]["w2"])[np.ix_(place, place)][upper]
    return float(spearmanr(torch.cdist(*[torch.from_numpy(z.to_numpy())] * 2).numpy()[upper], true).statistic)


def products(model) -> float:
    """CPU seconds of the matrix products of a step on single cells, forward and backward, in the same shapes."""
    observation = model.module.observation
    shapes = [(m.in_features, m.out_features, True) for m in observation.encoder.modules() if isinstance(m, nn.Linear)]
    shapes += [(m.in_features, m.out_features, True) for m in observation.decoder.modules() if isinstance(m, nn.Linear)]
    shapes += [(observation.encoder_mean.in_features, observation.n_latent, True)] * 2
    shapes += [(observation.encoder_linear.in_features, observation.n_latent, False)]
    shapes += [
        (observation.n_latent + observation.decoder_scale.in_features, observation.decoder_scale.out_features, True)
    ]
    total = 0.0
    for n_in, n_out, both in shapes:
        x, w, g = torch.randn(BATCH, n_in), torch.randn(n_out, n_in), torch.randn(BATCH, n_out)
        bias = torch.randn(n_out)

        def once(x=x, w=w, g=g, bias=bias, both=both) -> None:
            F.linear(x, w, bias)
            g.T @ x
            if both:
                g @ w

        total += seconds_of(once, 30)
    return total


def seconds_of(function, repeats: int) -> float:
    """Median CPU seconds of a call."""
    function()
    times = [time.process_time()]
    for _ in range(repeats):
        function()
        times.append(time.process_time())
    return float(np.median([b - a for a, b in pairwise(times)]))


# ------------------------------------------------------------------ embedding


def embedding(seed: int, arguments) -> pd.DataFrame:
    """Whole populations, with and without vectors of cells and standard errors, and scVI's latents."""
    train, _, _ = simulated_counts(seed)
    scgde.GDEModel.setup_anndata(train, "population")
    model = scgde.GDEModel(train, **MODEL)
    quiet_train(model, max_epochs=2, seed=seed)
    scvi.model.SCVI.setup_anndata(train)
    peer = scvi.model.SCVI(train, **MODEL)
    quiet_train(peer, max_epochs=1)
    query = train.copy()
    calls = {
        "scgde, populations": lambda: model.get_population_embedding(query),
        "scgde, cells": lambda: model.get_cell_embedding(query),
        "scgde, standard errors": lambda: model.get_population_standard_error(query),
        "scVI latents": lambda: peer.get_latent_representation(query),
    }
    rows = []
    for name, call in calls.items():
        call()
        times = []
        for _ in range(REPEATS):
            # as if the cells were new: nothing computed before is of use
            query.obs_names = [f"{i}_{len(times)}" for i in range(query.n_obs)]
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        rows.append({"method": name, "cells_per_s": query.n_obs / np.median(times)})
    table = pd.DataFrame(rows)
    table["ratio"] = table["cells_per_s"] / table["cells_per_s"].iloc[-1]
    return table


# ----------------------------------------------------------------- data space


def data_space(seed: int, arguments) -> pd.DataFrame:
    """Training by default on 32 sets of 100 points in 100 dimensions a step: encoder, loss, backward pass and Adam."""
    d, n_sets, size, width = 100, 32, 100, 32
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(256, 1, d)) + rng.normal(size=(256, size, d)) * rng.chisquare(1, size=(256, 1, d)) ** 0.5
    adata = AnnData(obsm={"X_points": x.reshape(-1, d).astype(np.float32)})
    adata.obs["population"] = np.repeat(np.arange(256), size).astype(str)
    rows = []
    for peer, generator in ((Diffusion, "flow"), (SlicedWasserstein, "sliced_wasserstein")):
        encoder, model = ResNetEncoder(d, width), peer(d, width)
        parameters = [*encoder.parameters(), *model.parameters()]
        optimiser = torch.optim.Adam(parameters, 1e-3)
        points = torch.from_numpy(x[:n_sets]).float()

        def step(encoder=encoder, model=model, optimiser=optimiser, points=points) -> None:
            optimiser.zero_grad()
            model.loss(points, encoder(points)).backward()
            optimiser.step()

        rows.append(
            {
                "generator": generator,
                "method": "public layer shapes",
                "samples_per_s": n_sets * size / seconds_of(step, 30),
            }
        )
        for geometry in ("emergent", "isometric"):
            scgde.GDEModel.setup_anndata(adata, "population", obsm_key="X_points")
            ours = scgde.GDEModel(adata, n_embedding=width, n_hidden=128, generator=generator, geometry=geometry)
            watch = Stopwatch()
            quiet_train(ours, max_epochs=arguments.epochs, seed=seed, train_size=1.0, populations_per_batch=n_sets,
                        cells_per_population=size, callbacks=[watch])  # fmt: skip
            # all epochs: what is computed once and kept takes its time in the first
            rate = adata.n_obs * len(watch.epochs) / sum(seconds for _, seconds in watch.epochs)
            rows.append({"generator": generator, "method": f"scgde, {geometry}", "samples_per_s": rate})
        print(rows[-3:], flush=True)
    table = pd.DataFrame(rows)
    base = table[table["method"] == "public layer shapes"].set_index("generator")["samples_per_s"]
    table["ratio"] = table["samples_per_s"] / table["generator"].map(base)
    return table


# ------------------------------------------------------------------- sampling


def sampling(seed: int, arguments) -> pd.DataFrame:
    """Latents and counts of generated cells, beside 400 passes of diffusion and a bare gamma-Poisson draw."""
    train, _, _ = simulated_counts(seed)
    rows = []
    for likelihood in LIKELIHOODS:
        scgde.GDEModel.setup_anndata(train, "population")
        model = scgde.GDEModel(train, gene_likelihood=likelihood, **MODEL)
        quiet_train(model, max_epochs=4, seed=seed)
        names = model.get_population_embedding().index[:100]
        n = 200
        z = torch.from_numpy(model.get_population_embedding().loc[names].to_numpy()).repeat_interleave(10 * n, 0)
        with torch.no_grad():
            latent = seconds_of(lambda model=model, z=z: model.module.sample_latent(z, torch.Generator()), 3)
        counts = seconds_of(lambda model=model, names=names, n=n: model.sample(list(names), n, seed=0), 3)
        theta, mean = torch.full((1000, N_GENES), 2.0), torch.rand(1000, N_GENES) * 0.4

        def bare(theta=theta, mean=mean, n=n, names=names) -> None:
            for _ in range(n * len(names) // 1000):
                torch.poisson(torch._standard_gamma(theta) * (mean / theta))

        drawn = seconds_of(bare, 3)
        rows.append({"likelihood": likelihood, "latents_per_s": len(z) / latent, "cells_per_s": n * len(names) / counts,
                     "bare_draws_per_s": n * len(names) / drawn, "counts_over_bare": counts / drawn})  # fmt: skip
        print(rows[-1], flush=True)
    peer = Diffusion(5, 32)
    rows.append({"likelihood": "diffusion, 400 passes, d = 5", "latents_per_s": 2000 / seconds_of(lambda: peer.sample(torch.randn(2000, 32)), 3)})  # fmt: skip
    return pd.DataFrame(rows)


PARTS = {"training": training, "rates": rates, "embedding": embedding, "data_space": data_space, "sampling": sampling}

if __name__ == "__main__":
    given = options(__doc__, part="all", peers=1)
    torch.set_num_threads(1)
    given.seeds = 1  # one simulated data set; what varies is the time, of which medians are taken
    for part in PARTS if given.part == "all" else given.part.split(","):
        report(f"throughput_{part}", PARTS[part](0, given), given)
