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

N_RATES, CELLS = 20_000, 1_000_000
SIZES = {10: 10, 100: 100, 1_000: 300, 10_000: 1_000}
"""Draws of a test set, and of the training sets of the model that sees it: shrinking as 300 draws ask for
costs 1 % of the error at 1,000 draws, and as 1,000 ask for 1 % at 10,000."""

BATCHES = {10: (256, 1200), 100: (64, 1200), 300: (32, 800), 1_000: (32, 400)}
"""Sets in a batch and optimisation steps, by draws of a training set."""

ZERO_WEIGHT = 30.0
"""Scale of the indicator of zero in a row, so that it counts for as much as the rest."""


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
    """Rows ``(cells, 4)`` of counts: the count, two smooth steps towards zero and the indicator of zero, of like spread.

    The mean of ``a^X`` is exp(-(1 - a) rate): between the mean count and exp(-rate), they make what is to be learned nearly a
    polynomial, where a network would need a sharp bend.
    """
    return np.stack([x, 15 * 0.75**x, 15 * 0.5**x, ZERO_WEIGHT * (x == 0)], axis=1)


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
    return mean[:, -1].double().numpy() / ZERO_WEIGHT


def draw_counts(rates: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each value was drawn in ``n`` draws of every law, ``(K, c)``; values above the last one do not occur in practice."""
    law = poisson.pmf(np.arange(45), rates[:, None])
    return rng.multinomial(n, law / law.sum(1, keepdims=True))


def train_model(n: int, seed: int, arguments) -> scgde.GDEModel:
    """A model of sets of ``n`` draws out of populations of at least four times as many.

    The generator's frame learns the moments of whole populations, of which sets are a small part: the law given the set, and not
    the set's own moments. That gradient reaches the encoder with ``geometry="emergent"`` only.
    """
    size = max(4 * n, 1000)
    rng = np.random.default_rng([seed, n, 59])
    x, codes = draw(rng.uniform(0, TOP, CELLS // size), size, rng)
    n_sets, n_steps = BATCHES[n]
    options = {"geometry": "emergent", "generator": "vae", "n_embedding": 20}
    train = {"cells_per_population": n, "populations_per_batch": n_sets, "plan_kwargs": {"lr_sets": 5e-3}}
    epochs = arguments.epochs or max(round(n_steps * n_sets * n / CELLS), 1)
    return fit_model(as_rows(x), codes, seed, epochs=epochs, train=train, **options)


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
                {"n": n, "seed": seed, "method": m, "n MSE": n * e, "over Rao-Blackwell": e / error["Rao-Blackwell"]}
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
        n_mse=("n MSE", "mean"), ratio=("over Rao-Blackwell", "mean"), highest=("over Rao-Blackwell", "max")
    )
    report(
        "synthetic_zeros",
        summary.reset_index().rename(columns={"n_mse": "n MSE", "ratio": "over Rao-Blackwell"}),
        arguments,
    )
