"""P(X = 0) of a Poisson law from n draws: shrinkage towards the laws seen in training, against estimators in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from _common import report
from _suites import as_adata, fit_model
from scipy.special import gammainc

if TYPE_CHECKING:
    import scgde

TOP = 10.0
"""Rates are uniform on (0, TOP)."""

N_RATES, SIZES, LARGEST_SET, CELLS = 20_000, (10, 100, 1_000, 10_000), 1_000, 1_000_000


def rao_blackwell(total: np.ndarray, n: int) -> np.ndarray:
    """The unbiased estimator of least variance, (1 - 1/n)^total."""
    return (1 - 1 / n) ** total


def bayes(total: np.ndarray, n: int) -> np.ndarray:
    """Posterior mean of exp(-rate) under rates uniform on (0, TOP).

    The posterior is Gamma(total + 1, n) cut off at TOP, so that the mean is a ratio of two incomplete gamma functions.
    """
    shape = total + 1.0
    return (n / (n + 1)) ** shape * gammainc(shape, (n + 1) * TOP) / gammainc(shape, n * TOP)


def as_rows(x: np.ndarray) -> np.ndarray:
    """Rows ``(cells, 2)`` of counts: the count, and an indicator of zero scaled to matter as much."""
    return np.stack([x, ZERO_WEIGHT * (x == 0)], axis=1)


ZERO_WEIGHT = 30.0


def draw(rates: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``n`` draws of every law, flat, and codes."""
    return rng.poisson(np.repeat(rates, n)).astype(np.float32), np.repeat(np.arange(len(rates)), n)


@torch.no_grad()
def zero_probability(model: scgde.GDEModel, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of the indicator under the law that the generator's frame gives to each population, without sampling noise."""
    z = model.get_population_embedding(as_adata(as_rows(x), codes, "t")).sort_index()
    mean, _ = model.module.skeleton(torch.from_numpy(z.to_numpy(np.float32)))
    observation = model.module.observation
    return (mean * observation.scale + observation.centre)[:, 1].double().numpy() / ZERO_WEIGHT


def train_model(n: int, seed: int, arguments) -> scgde.GDEModel:
    """A model of sets of ``n`` draws out of populations of at least ten times as many.

    The generator's frame is fitted to moments of whole populations, and sets are a small part of them: what it learns is the
    law given the set, not the set's own moments.
    """
    size = max(10 * n, 1000) if n < 1000 else 4 * n
    rng = np.random.default_rng([seed, n, 59])
    x, codes = draw(rng.uniform(0, TOP, max(CELLS // size, 128)), size, rng)
    options = {"encoder": "residual", "geometry": "emergent", "generator": "vae", "n_embedding": 16}
    sets = {"cells_per_population": n, "populations_per_batch": 64 if n < 1000 else 32}
    return fit_model(as_rows(x), codes, seed, epochs=arguments.epochs or max(3, 10), train=sets, **options)


def run_zeros(arguments) -> None:
    rows = []
    for seed in range(arguments.seeds):
        models = {}
        for n in SIZES:
            trained = min(n, LARGEST_SET)
            if trained not in models:
                models[trained] = train_model(trained, seed, arguments)
            rng = np.random.default_rng([seed, n, 60])
            rates = rng.uniform(0, TOP, N_RATES)
            total, naive, ours = [], [], []
            for part in np.array_split(rates, max(N_RATES * n // CELLS, 1)):
                x, codes = draw(part, n, rng)
                total.append(np.bincount(codes, x).round())
                naive.append(np.bincount(codes, x == 0) / n)
                ours.append(zero_probability(models[trained], x, codes))
            total, truth = np.concatenate(total), np.exp(-rates)
            estimates = {"Rao-Blackwell": rao_blackwell(total, n), "share of zeros": np.concatenate(naive)}
            estimates |= {"Bayes": bayes(total, n), "scgde": np.concatenate(ours)}
            error = {m: float(np.mean((e - truth) ** 2)) for m, e in estimates.items()}
            rows += [
                {"n": n, "seed": seed, "method": m, "MSE": e, "over Rao-Blackwell": e / error["Rao-Blackwell"]}
                for m, e in error.items()
            ]
            print(n, seed, {r["method"]: round(r["over Rao-Blackwell"], 4) for r in rows[-4:]}, f"{models[trained].cpu_seconds:.0f} CPU s", flush=True)
    table = pd.DataFrame(rows).groupby(["n", "method"], sort=False)
    summary = table.agg(MSE=("MSE", "mean"), ratio=("over Rao-Blackwell", "mean"), highest=("over Rao-Blackwell", "max"))
    report("synthetic_zeros", summary.reset_index().rename(columns={"ratio": "over Rao-Blackwell"}), arguments)
