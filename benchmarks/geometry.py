"""Distances on synthetic laws with known W2: suites of Gaussians and mixtures, small samples, and the cost of all pairs.

``--part suites``: training 256 populations of 128 points, test 64 new populations of 64 points (some suites also of 1,000), Spearman
to the true W2; 20 draws of the free estimators, ``--seeds`` trainings on the first of them (20 for centred Gaussians in 10
dimensions). Truth of mixtures: exact transport between 2,000 points, at populations of 1,000 between 5,000.
``--part small``: centred Gaussians in 10 dimensions at 64, 32 and 16 points, error against the truth.
``--part cost``: all pairs of 2,000 populations of 200 cells.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from _common import options, report
from _suites import (
    N_TEST,
    N_TRAIN,
    SIZE_CEILING,
    SIZE_TEST,
    SIZE_TRAIN,
    Suite,
    as_adata,
    ceiling,
    draw_laws,
    draw_pairs,
    draw_points,
    draw_suite,
    exact_pairs,
    fit_model,
    free_estimators,
    gaussian_truth,
    model_distances,
    rank,
)
from scipy.stats import t as student

import scgde

SUITES = [(family, d, centred) for family in ("gaussians", "mixtures") for d in (2, 10) for centred in (False, True)]
SIZE_LARGE = 1000
LARGE_SEEDS, LARGE_PAIRS, LARGE_TRUTH = 2, 50, 5000
"""Draws, pairs and points of the truth of large mixtures: one exact distance of 5,000 points takes ten seconds."""

TRANSPORT_SEEDS = 3
"""Draws that the slower encoder is trained on."""

UNTRAINED_PAIRS = 20
"""Pairs of mixtures in draws that only free estimators are scored on; a true distance takes a second."""


def tests_of(family: str, d: int, centred: bool, seed: int, arguments) -> list[tuple[int, Suite]]:
    """Suites that share laws and training points, with the size of test population that each is scored at."""
    trained = seed < n_trainings(family, d, centred, arguments)
    pairs = arguments.pairs if trained else UNTRAINED_PAIRS
    if family == "gaussians":
        chosen = draw_suite(family, d, centred, seed, n_pairs=2 * arguments.pairs, sizes=(SIZE_LARGE,))
        return [(n, chosen) for n in ((SIZE_TEST,) if centred else (SIZE_TEST, SIZE_LARGE))]
    out = [(SIZE_TEST, draw_suite(family, d, centred, seed, n_pairs=pairs, n_truth=arguments.truth))]
    if d == 2 and not centred and seed < LARGE_SEEDS:
        large = draw_suite(family, d, centred, seed, n_pairs=LARGE_PAIRS, n_truth=LARGE_TRUTH, sizes=(SIZE_LARGE,))
        out.append((SIZE_LARGE, large))
    return out


def n_trainings(family: str, d: int, centred: bool, arguments) -> int:
    """Draws that models are trained on: all where a paired gain over the free estimators is asked for to the third digit."""
    return arguments.draws if (family, d, centred) == ("gaussians", 10, True) else arguments.seeds


def run_suite(family: str, d: int, centred: bool, seed: int, arguments) -> list[dict]:
    """Scores of one draw of the populations: free estimators, and models on the first draws."""
    rows, model_of = [], {}
    for n, suite in tests_of(family, d, centred, seed, arguments):
        x, codes = suite.tests[n]
        found = free_estimators(x, codes, suite.pairs, exact=family == "mixtures" or n == SIZE_TEST)
        found["moments of the law, Bures"] = gaussian_truth(suite.laws, suite.pairs)
        if seed < arguments.seeds:
            found[f"ceiling: {SIZE_CEILING} other points"] = ceiling(suite, family, seed)
        trained = seed < n_trainings(family, d, centred, arguments)
        for encoder in arguments.encoders.split(",") if trained else ():
            if encoder == "transport" and (family == "gaussians" or d > 2 or seed >= TRANSPORT_SEEDS):
                continue  # normal laws have no more than moments, and ten dimensions more than 64 points show of a map
            if encoder not in model_of:
                model_of[encoder] = fit_model(*suite.train, seed, epochs=arguments.epochs, encoder=encoder)
                used = model_of[encoder].cpu_seconds
                print(f"{family} {d} centred={centred} seed {seed} {encoder}: {used:.0f} CPU s", flush=True)
            found[f"scgde {encoder}"] = model_distances(model_of[encoder], x, codes, suite.pairs)
        for method, distance in found.items():
            error = float(np.sqrt(np.mean((distance - suite.truth) ** 2)) / suite.truth.mean())
            rows.append(
                {"family": family, "d": d, "centred": centred, "n": n, "seed": seed, "method": method}
                | {"spearman": rank(distance, suite.truth), "rmse / mean": error}
            )
    return rows


def paired(table: pd.DataFrame, ours: str, theirs: str) -> str:
    """Mean gain over draws that both were scored on, with its 95 % interval."""
    wide = table.pivot_table(index="seed", columns="method", values="spearman")[[ours, theirs]].dropna()
    gain = wide[ours] - wide[theirs]
    if len(gain) < 2:
        return f"{gain.mean():+.4f}"
    half = student.ppf(0.975, len(gain) - 1) * gain.std() / len(gain) ** 0.5
    return f"{gain.mean():+.4f} [{gain.mean() - half:+.4f}, {gain.mean() + half:+.4f}]"


def run_suites(arguments) -> None:
    keys = ["d", "centred", "n"]
    for family in ("gaussians", "mixtures"):
        suites = [s for s in SUITES if s[0] == family and f"{family}_{s[1]}" in arguments.suites.split(",")]
        rows = [row for s in suites for seed in range(arguments.draws) for row in run_suite(*s, seed, arguments)]
        if not rows:
            continue
        table = pd.DataFrame(rows)
        summary = table.groupby([*keys, "method"], sort=False).agg(
            spearman=("spearman", "mean"),
            lowest=("spearman", "min"),
            error=("rmse / mean", "mean"),
            draws=("seed", "size"),
        )
        report(f"geometry_{family}", summary.reset_index(), arguments)
        gains = []
        for key, part in table.groupby(keys, sort=False):
            for method in part.loc[part.method.str.startswith("scgde"), "method"].unique():
                row = dict(zip(keys, key, strict=True)) | {"method": method}
                for other in ("mean + root covariance", "Bures", "exact OT"):
                    if (part.method == other).any():
                        row[f"over {other}"] = paired(part, method, other)
                gains.append(row)
        report(f"geometry_{family}_gains", pd.DataFrame(gains), arguments)


def run_small(arguments) -> None:
    d, rows = 10, []
    for seed in range(arguments.seeds):
        rng = np.random.default_rng([seed, 10, 3])
        laws = draw_laws("gaussians", d, N_TEST, rng, centred=True)
        pairs = draw_pairs(N_TEST, arguments.pairs, rng)
        truth = gaussian_truth(laws, pairs)
        train = draw_points(draw_laws("gaussians", d, N_TRAIN, rng, centred=True), SIZE_TRAIN, rng)
        model = fit_model(*train, seed, epochs=arguments.epochs)
        for n in (64, 32, 16):
            x, codes = draw_points(laws, n, rng)
            distances = free_estimators(x, codes, pairs) | {"scgde": model_distances(model, x, codes, pairs)}
            distances["scgde, bias-corrected"] = corrected_distances(model, x, codes, pairs)
            error = {m: float(np.sqrt(np.mean((v - truth) ** 2))) for m, v in distances.items()}
            rows += [
                {"n": n, "seed": seed, "method": m, "rmse": e, "over exact OT": e / error["exact OT"]}
                for m, e in error.items()
            ]
    table = pd.DataFrame(rows).groupby(["n", "method"], sort=False)[["rmse", "over exact OT"]].mean()
    report("geometry_small", table.reset_index(), arguments)


def corrected_distances(model: scgde.GDEModel, x: np.ndarray, codes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Distances from which the sampling noise of both embeddings is taken off, in the units of the points."""
    frame, _ = model.get_population_distances(as_adata(x, codes, "t"), return_std=True)
    frame = frame.sort_index().sort_index(axis=1)
    return frame.to_numpy()[pairs[0], pairs[1]] * float(model.module.observation.scale)


def run_cost(arguments) -> None:
    rows = []
    for d in (2, 10):
        rng = np.random.default_rng([0, d])
        train = draw_points(draw_laws("gaussians", d, N_TRAIN, rng), SIZE_TRAIN, rng)
        model = fit_model(*train, 0, epochs=arguments.epochs)
        x, codes = draw_points(draw_laws("gaussians", d, 2000, rng), 200, rng)
        adata = as_adata(x, codes, "t")
        start = time.process_time()
        model.get_population_distances(adata)
        ours = time.process_time() - start
        groups = [x[codes == k] for k in range(100)]
        some = draw_pairs(100, 300, rng)
        start = time.process_time()
        exact_pairs(groups, some)
        exact = (time.process_time() - start) / some.shape[1] * 2000 * 1999 / 2
        rows.append(
            {"d": d, "embed + distances, CPU s": ours, "exact OT, CPU s (scaled)": exact, "ratio": ours / exact}
        )
    report("geometry_cost", pd.DataFrame(rows), arguments)


PARTS = {"suites": run_suites, "small": run_small, "cost": run_cost}

if __name__ == "__main__":
    arguments = options(
        __doc__,
        part="suites,small,cost",
        suites="gaussians_2,gaussians_10,mixtures_2,mixtures_10",
        draws=20,
        pairs=150,
        truth=2000,
        encoders="residual,transport",
    )
    for part in arguments.part.split(","):
        PARTS[part](arguments)
