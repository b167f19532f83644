"""How the embedding's standard deviation falls with the number of cells, and coverage of its intervals, for every encoder.

Rows are continuous: Gaussian laws of five dimensions. On laws that did not train, the standard deviation is that of the embedding
over repeated draws of n cells, the root mean square over coordinates; its slope is that of the logarithms, -1/2 where the
central limit theorem has set in. Intervals are 95 %, from t with n - 1 degrees of freedom, around the trained model's embedding
of a very large sample of the law.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import torch
from _common import options, report, seeds
from _suites import Mixture, draw_laws, draw_points, fit_model
from scipy.stats import t as student

import scgde
from scgde.encoders import ENCODERS
from scgde.inference import embed

DIMENSION, N_TRAIN, SIZE_TRAIN, EPOCHS = 5, 100, 512, 10
SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)
COVERED = (10, 30, 100, 300, 1000)
CELLS_OF_A_SIZE, FEWEST_DRAWS = 200_000, 24
TRUTH = 1, 100_000
"""Samples of a law, and cells in each, whose mean embedding is the truth."""

LARGEST, LARGEST_COVERED = {"attention": 1000}, {"attention": 300}
LARGE_SAMPLE = {"attention": (25, 2000)}
"""Attention is quadratic in the size of a set. The mean over many samples has the same noise; its bias is that of one of them."""

CELLS_AT_ONCE = {"attention": 5000}
SLOW = ("transport", "median_pool", "attention", "induced_attention")
"""Influences of these cost most; a quarter of the cells covers them."""


def latents(model: scgde.GDEModel, law: Mixture, n: int, rng: np.random.Generator) -> torch.Tensor:
    """Latents of ``n`` new points of a law."""
    return model.module.observation.encode(torch.from_numpy(law.sample(n, rng)).float())[0]


@torch.no_grad()
def embed_draws(
    model: scgde.GDEModel, u: torch.Tensor, n: int, at_once: int, *, with_error: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of successive sets of ``n`` cells and their standard errors, ``(draws, n_embedding)`` each."""
    encoder = model.module.set_encoder
    z, error = [], []
    for part in u.split(max(at_once // n, 1) * n):
        k = len(part) // n
        codes = np.repeat(np.arange(k), n)
        # beyond delete-one values, the mean of per-cell vectors is the plain embedding
        if with_error or n <= encoder.jackknife_max:
            e = embed(encoder, part, codes, [str(i) for i in range(k)], None)
            z.append(e.z)
            error.append(e.standard_error)
        else:
            z.append(encoder(part, torch.from_numpy(codes), n_sets=k).numpy())
            error.append(np.full_like(z[-1], np.nan))
    return np.concatenate(z).astype(np.float64), np.concatenate(error)


def run(encoder: str, seed: int, arguments) -> list[dict]:
    """Coverage and standard deviation by size and coordinate for one model, a row for each law, size and coordinate."""
    rng = np.random.default_rng([seed, 61])
    train = draw_points(draw_laws("gaussians", DIMENSION, N_TRAIN, rng), SIZE_TRAIN, rng)
    options = {"encoder": encoder, "n_embedding": 10, "n_hidden": 64}
    model = fit_model(*train, seed, epochs=arguments.epochs or EPOCHS, **options)
    at_once = CELLS_AT_ONCE.get(encoder, 50_000)
    rows = []
    for i, law in enumerate(draw_laws("gaussians", DIMENSION, arguments.laws, rng)):
        samples, n_large = LARGE_SAMPLE.get(encoder, TRUTH)
        large = [
            embed_draws(model, latents(model, law, n_large, rng), n_large, n_large, with_error=False)[0]
            for _ in range(samples)
        ]
        truth = np.mean(large, axis=0)[0]
        for n in SIZES:
            if n > LARGEST.get(encoder, n):
                continue
            draws = int(np.clip(CELLS_OF_A_SIZE // n, FEWEST_DRAWS, arguments.draws))
            u = latents(model, law, draws * n, rng)
            z, _ = embed_draws(model, u, n, at_once, with_error=False)
            row = {"encoder": encoder, "seed": seed, "law": i, "n": n, "sd": np.sqrt(z.var(0, ddof=1).mean())}
            if n in COVERED and n <= LARGEST_COVERED.get(encoder, n):
                few = min(draws, arguments.covered // (4 if encoder in SLOW else 1) // n)
                z, error = embed_draws(model, u[: few * n], n, at_once, with_error=True)
                row["covered"] = (np.abs(z - truth) <= student.ppf(0.975, n - 1) * error).mean(0)
            rows.append(row)
    return rows


def slope(part: pd.DataFrame) -> float:
    """Slope of the logarithm of the standard deviation over that of the size."""
    return float(np.polyfit(np.log(part["n"]), np.log(part["sd"]), 1)[0])


def summarise(rows: list[dict]) -> pd.DataFrame:
    """One row for each encoder: slopes over laws, and coverage by size, mean and worst coordinate."""
    out = []
    for encoder, part in pd.DataFrame(rows).groupby("encoder", sort=False):
        slopes = [slope(of_law) for _, of_law in part.groupby(["seed", "law"])]
        row = {"encoder": encoder, "slope": np.mean(slopes), "lowest": min(slopes), "highest": max(slopes)}
        row["largest n"] = part["n"].max()
        for n in COVERED:
            of_size = part[(part["n"] == n) & part["covered"].notna()]
            # coordinates of one model keep their meaning over laws, not over models
            by_model = [np.stack(list(m["covered"])).mean(0) for _, m in of_size.groupby("seed")]
            row[f"n={n}"] = np.mean(by_model) if by_model else np.nan
            row[f"worst, n={n}"] = np.min(by_model) if by_model else np.nan
        out.append(row)
    return pd.DataFrame(out)


if __name__ == "__main__":
    arguments = options(__doc__, encoders=",".join(ENCODERS), laws=2, draws=200, covered=100_000, **{"first-seed": 0})
    rows = []
    for encoder in arguments.encoders.split(","):
        start = time.process_time()
        for seed in seeds(arguments):
            rows += run(encoder, seed, arguments)
        print(summarise([r for r in rows if r["encoder"] == encoder]).to_string(index=False))
        print(f"{encoder}: {time.process_time() - start:.0f} CPU s", flush=True)
    report("size_law", summarise(rows), arguments)
