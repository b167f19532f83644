"""Distances on synthetic laws with known W2: suites of Gaussians and mixtures, small samples, and the cost of all pairs.

``--part suites``: training 256 populations of 128 points, test 64 new populations of 64 points (and of 1,000), Spearman to
the true W2; 20 draws of the free estimators, ``--seeds`` trainings on the first of them.
``--part small``: centred Gaussians in 10 dimensions at 64, 32 and 16 points, error against the truth.
``--part cost``: all pairs of 2,000 populations of 200 cells.
"""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
from _common import options, report
from _suites import (
    draw_laws,
    draw_pairs,
    draw_points,
    exact_pairs,
    fit_model,
    free_estimators,
    gaussian_truth,
    mixture_truth,
    model_distances,
    rank,
)
from scipy.stats import t as student

import scgde

SUITES = [(family, d, centred) for family in ("gaussians", "mixtures") for d in (2, 10) for centred in (False, True)]
ENCODERS = ("residual", "transport")
N_TRAIN, N_TEST, SIZE_TRAIN, SIZE_TEST, SIZE_LARGE = 256, 64, 128, 64, 1000


def suite(family: str, d: int, centred: bool, seed: int, arguments) -> list[dict]:
    """Scores of one draw of the populations: free estimators, and models on the first draws."""
    rng = np.random.default_rng([seed, d, family == "mixtures"])
    plain = draw_laws(family, d, N_TEST, rng)
    pairs = draw_pairs(N_TEST, arguments.pairs, rng)
    mean = np.stack([law.moments()[0] for law in plain])
    apart = np.linalg.norm(mean[pairs[0]] - mean[pairs[1]], axis=1)
    laws = [law.centred() for law in plain] if centred else plain
    if family == "gaussians":
        truth = gaussian_truth(laws, pairs)
    else:
        name = f"mixtures_{d}_{seed}_{arguments.pairs}_{arguments.truth}"
        truth = mixture_truth(plain, pairs, arguments.truth, np.random.default_rng([seed, d, 7]), name)
        truth = truth if centred else np.hypot(truth, apart)
    tests = {SIZE_TEST: draw_points(laws, SIZE_TEST, rng)}
    if not centred and (family == "gaussians" or d == 2):
        tests[SIZE_LARGE] = draw_points(laws, SIZE_LARGE, rng)
    rows = []

    def add(method: str, n: int, distance: np.ndarray) -> None:
        error = float(np.sqrt(np.mean((distance - truth) ** 2)) / truth.mean())
        rows.append(
            {"family": family, "d": d, "centred": centred, "n": n, "seed": seed, "method": method}
            | {"spearman": rank(distance, truth), "rmse / mean": error}
        )

    for n, (x, codes) in tests.items():
        if n == SIZE_LARGE and seed >= arguments.seeds:
            continue
        for method, distance in free_estimators(x, codes, pairs).items():
            add(method, n, distance)
        add("moments of the law, Bures", n, gaussian_truth(laws, pairs))
    if seed < arguments.seeds:
        train = draw_points(draw_laws(family, d, N_TRAIN, rng, centred=centred), SIZE_TRAIN, rng)
        for encoder in arguments.encoders.split(","):
            model = fit_model(*train, seed, epochs=arguments.epochs, encoder=encoder)
            for n, (x, codes) in tests.items():
                add(f"scgde {encoder}", n, model_distances(model, x, codes, pairs))
            print(f"{family} {d} centred={centred} seed {seed} {encoder}: {model.cpu_seconds:.0f} CPU s", flush=True)
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
    rows = []
    for family, d, centred in SUITES:
        for seed in range(arguments.draws):
            rows += suite(family, d, centred, seed, arguments)
    table = pd.DataFrame(rows)
    keys = ["family", "d", "centred", "n"]
    summary = table.groupby([*keys, "method"], sort=False).agg(
        spearman=("spearman", "mean"), lowest=("spearman", "min"), error=("rmse / mean", "mean"), draws=("seed", "size")
    )
    report("geometry_suites", summary.reset_index(), arguments)
    gains = []
    for key, part in table.groupby(keys, sort=False):
        for method in part.loc[part.method.str.startswith("scgde"), "method"].unique():
            row = dict(zip(keys, key, strict=True)) | {"method": method}
            for other in ("mean + root covariance", "Bures", "exact OT"):
                row[f"over {other}"] = paired(part, method, other)
            gains.append(row)
    report("geometry_gains", pd.DataFrame(gains), arguments)


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
    from _suites import as_adata

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
        from _suites import as_adata

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
    arguments = options(__doc__, part="suites,small,cost", draws=20, pairs=300, truth=2000, encoders=",".join(ENCODERS))
    for part in arguments.part.split(","):
        PARTS[part](arguments)
