"""P(X = 0) of a Poisson law from n draws: shrinkage towards the laws seen in training, against estimators in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from _common import quiet_train, report, seeds
from _suites import fit_model
from scipy.special import gammainc
from scipy.stats import poisson

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scgde

TOP = 10.0
"""Rates are uniform on (0, TOP)."""

N_RATES = 20_000

POPULATION, N_TRAIN = 400, 1250
"""Cells of a training population, and number of training populations."""

STAGES = (
    # draws, test set, sets in a batch, optimisation steps, learning rate
    (10, 10, 256, 800, 1e-2),
    (100, 100, 256, 4000, 2e-2),
    (400, None, 256, 2500, 5e-3),
    (1_000, 1_000, 256, 1500, 2e-3),
    (3_000, 10_000, 256, 2500, 2e-3),
)
"""One model learns from sets of more and more draws: what weighs noise against noise is learned where noise is large, and how
the answer bends where it is small, which takes long at low noise."""

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


def draw_populations(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Stratified draws of laws with stratified rates, flat, and codes.

    Random draws would need a hundred times as many cells for populations whose moments are as close to those of their law.
    """
    rates = TOP * (np.arange(N_TRAIN) + rng.random(N_TRAIN)) / N_TRAIN
    level = (np.arange(POPULATION) + rng.random((N_TRAIN, 1))) / POPULATION
    return poisson.ppf(level, rates[:, None]).ravel(), np.repeat(np.arange(N_TRAIN), POPULATION)


def set_size(n: int) -> int:
    """Cells of a set, drawn from a population without replacement, that are as noisy as ``n`` independent draws."""
    return round(1 / (1 / n + 1 / POPULATION))


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


def trained_models(seed: int, arguments) -> Iterator[tuple[int, scgde.GDEModel, float]]:
    """Test set, the model to be tested on it and CPU seconds so far, stage by stage; the model is one and the same.

    It learns from moments alone: the generator's frame predicts those of a population from its set, a gradient that reaches the
    encoder with ``geometry="emergent"`` only. The generator's own loss has weight zero here: nothing is generated, and a step without it
    takes less time.
    """
    x, codes = draw_populations(np.random.default_rng([seed, 59]))
    options = {"geometry": "emergent", "n_embedding": 20, "n_hidden": 64, "generator_weight": 0}
    model, seconds = None, 0.0
    for stage, (n, test, n_sets, n_steps, rate) in enumerate(STAGES):
        size = set_size(n)
        epochs = arguments.epochs or max(round(n_steps * n_sets * size / len(x)), 1)
        train = {"cells_per_population": size, "populations_per_batch": n_sets, "plan_kwargs": {"lr_sets": rate}}
        if model is None:
            model = fit_model(as_rows(x), codes, seed, epochs=epochs, train=train, **options)
            seconds = model.cpu_seconds
        else:  # other sets at every stage
            seconds += quiet_train(model, max_epochs=epochs, seed=seed + 1000 * stage, train_size=1.0, **train)
        if test is not None:
            yield test, model, seconds


def run_zeros(arguments) -> None:
    rows = []
    for seed in seeds(arguments):
        for n, model, seconds in trained_models(seed, arguments):
            rng = np.random.default_rng([seed, n, 60])
            rates = rng.uniform(0, TOP, N_RATES)
            counts = draw_counts(rates, n, rng)
            total, truth = counts @ np.arange(counts.shape[1]), np.exp(-rates)
            estimates = {"Rao-Blackwell": rao_blackwell(total, n), "share of zeros": counts[:, 0] / n}
            estimates |= {"Bayes": bayes(total, n), "scgde": zero_probability(model, counts)}
            error = {m: float(np.mean((e - truth) ** 2)) for m, e in estimates.items()}
            rows += [
                {"n": n, "seed": seed, "method": m, "n MSE": n * e, "over Rao-Blackwell": e / error["Rao-Blackwell"]}
                for m, e in error.items()
            ]
            ratios = {r["method"]: round(r["over Rao-Blackwell"], 4) for r in rows[-4:]}
            print(n, seed, ratios, f"{seconds:.0f} CPU s", flush=True)
    table = pd.DataFrame(rows).groupby(["n", "method"], sort=False)
    summary = table.agg(
        n_mse=("n MSE", "mean"), ratio=("over Rao-Blackwell", "mean"), highest=("over Rao-Blackwell", "max")
    )
    report(
        "synthetic_zeros",
        summary.reset_index().rename(columns={"n_mse": "n MSE", "ratio": "over Rao-Blackwell"}),
        arguments,
    )
