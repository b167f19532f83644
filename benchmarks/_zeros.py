"""P(X = 0) of a Poisson law from n draws: shrinkage towards the laws seen in training, against estimators in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from _common import report
from _suites import fit_model
from scipy.special import gammainc
from scipy.stats import poisson

if TYPE_CHECKING:
    import scgde

TOP = 10.0
"""Rates are uniform on (0, TOP)."""

N_RATES, SIZES, CELLS = 20_000, {10: 10, 100: 100, 1000: 300, 10_000: 1000}, 1_000_000


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
def zero_probability(model: scgde.GDEModel, counts: np.ndarray) -> np.ndarray:
    """Mean of the indicator under the law of each population's frame, free of sampling noise: ``(K,)``.

    ``counts`` ``(K, c)`` is how often each of the values 0 ... c - 1 was drawn. Encoders see a set as an empirical law, so
    that distinct values with weights give what all draws would.
    """
    module, (k, c) = model.module, counts.shape
    rows = torch.from_numpy(np.tile(as_rows(np.arange(c, dtype=np.float32)), (k, 1))).float()
    u, _ = module.observation.encode(rows)
    weight = torch.from_numpy(counts.ravel().astype(np.float32))
    z = module.set_encoder(u, torch.arange(k).repeat_interleave(c), weight, k)
    mean = module.skeleton(z)[0] * module.observation.scale + module.observation.centre
    return mean[:, 1].double().numpy() / ZERO_WEIGHT


def draw_counts(rates: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each value was drawn in ``n`` draws of every law, ``(K, c)``; values above the last one do not occur in practice."""
    law = poisson.pmf(np.arange(45), rates[:, None])
    return rng.multinomial(n, law / law.sum(1, keepdims=True))


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
        for n, trained in SIZES.items():
            if trained not in models:
                models[trained] = train_model(trained, seed, arguments)
            rng = np.random.default_rng([seed, n, 60])
            rates = rng.uniform(0, TOP, N_RATES)
            counts = draw_counts(rates, n, rng)
            total, truth = counts @ np.arange(counts.shape[1]), np.exp(-rates)
            estimates = {"Rao-Blackwell": rao_blackwell(total, n), "share of zeros": counts[:, 0] / n}
            estimates |= {"Bayes": bayes(total, n), "scgde": zero_probability(models[trained], counts)}
            error = {m: float(np.mean((e - truth) ** 2)) for m, e in estimates.items()}
            rows += [
                {"n": n, "seed": seed, "method": m, "MSE": e, "over Rao-Blackwell": e / error["Rao-Blackwell"]}
                for m, e in error.items()
            ]
            print(
                n,
                seed,
                {r["method"]: round(r["over Rao-Blackwell"], 4) for r in rows[-4:]},
                f"{models[trained].cpu_seconds:.0f} CPU s",
                flush=True,
            )
    table = pd.DataFrame(rows).groupby(["n", "method"], sort=False)
    summary = table.agg(
        MSE=("MSE", "mean"), ratio=("over Rao-Blackwell", "mean"), highest=("over Rao-Blackwell", "max")
    )
    report("synthetic_zeros", summary.reset_index().rename(columns={"ratio": "over Rao-Blackwell"}), arguments)
