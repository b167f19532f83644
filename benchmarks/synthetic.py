"""Populations that differ by one small parameter: points of a simplex, mixtures of digits, rates of a Poisson law.

``--part simplex``: laws of a categorical (or, ``trials`` > 1, multinomial) variable with three classes; training laws from
Dirichlet(1, 1, 1), tested on the 55 points of a grid at 5,000 draws each. The true distance is W2 between normal laws with the
moments of a single draw; Pearson correlation over all pairs. Rows of 20 trials, as in the paper's protocol, have 20 times the
mean and 20 times the covariance, and so another geometry: ``own W2`` is the correlation to theirs.
``--part prior``: the same with training laws from Dirichlet(a, 1, 1), a = 2^-5 ... 2^5; the worst correlation counts.
``--part mnist``: the same with images of digits for classes, in 50 principal components of the training images.
``--part zeros``: P(X = 0) of a Poisson law from n draws, against the Rao-Blackwell estimator and Bayes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import options, report, seeds
from _digits import choose_rows, digits_file, draw_images, load_digits
from _suites import embed_points, fit_model, free_estimators, gaussian_truth
from _zeros import run_zeros

GRID = np.array([(i, j, 9 - i - j) for i in range(10) for j in range(10 - i)]) / 9
PAIRS = np.stack(np.triu_indices(len(GRID), 1))
N_TRAIN, SIZE_TRAIN, SIZE_TEST = 256, 512, 5000
SIZE_DIGITS, SIZE_IMAGES = 1024, 1000
EPOCHS = 4  # 64 steps: what changes later is the generator, which distances do not see
MODELS = {
    "scgde": {},
    "scgde, emergent": {"geometry": "emergent"},
    "kernel mean": {"encoder": "kernel_mean"},
    "kernel mean, emergent": {"encoder": "kernel_mean", "geometry": "emergent"},
    "mean": {"encoder": "mean"},
    "mean, emergent": {"encoder": "mean", "geometry": "emergent"},
}


class Categorical:
    """Law of the counts of ``trials`` draws from three classes with probabilities ``p`` ``(3,)``."""

    def __init__(self, p: np.ndarray, trials: int = 1) -> None:
        self.p, self.trials = p, trials

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """``(n, 3)`` counts."""
        return rng.multinomial(self.trials, self.p, n).astype(np.float64)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``(3,)`` and covariance ``(3, 3)`` of the counts."""
        return self.trials * self.p, self.trials * (np.diag(self.p) - np.outer(self.p, self.p))


def draw(laws: list[Categorical], n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``n`` rows of every law, flat, and their codes."""
    return np.concatenate([law.sample(n, rng) for law in laws]), np.repeat(np.arange(len(laws)), n)


def fit(train: tuple[np.ndarray, np.ndarray], seed: int, arguments, epochs: int = EPOCHS, **choice):
    """A model trained on sets of half a population: covariances of the default 64 draws are pulled far towards the pooled one."""
    size = len(train[0]) // N_TRAIN // 2
    return fit_model(*train, seed, epochs=arguments.epochs or epochs, train={"cells_per_population": size}, **choice)


def pearson(distance: np.ndarray, truth: np.ndarray) -> float:
    """Linear correlation over pairs."""
    return float(np.corrcoef(distance, truth)[0, 1])


def distances(z: np.ndarray) -> np.ndarray:
    """Distances of the grid's pairs, ``(1485,)``, for one vector a population."""
    return np.linalg.norm(z[PAIRS[0]] - z[PAIRS[1]], axis=1)


TRUTH = gaussian_truth([Categorical(p) for p in GRID], PAIRS)


def run_simplex(arguments) -> None:
    rows = []
    for trials in (1, 20):
        own = gaussian_truth([Categorical(p, trials) for p in GRID], PAIRS)
        for seed in seeds(arguments):
            rng = np.random.default_rng([seed, trials, 55])
            train = draw([Categorical(p, trials) for p in rng.dirichlet(np.ones(3), N_TRAIN)], SIZE_TRAIN, rng)
            test = draw([Categorical(p, trials) for p in GRID], SIZE_TEST, rng)
            found = {name: (d, 0.0) for name, d in free_estimators(*test, PAIRS, exact=False).items()}
            found["moments of the law"] = own, 0.0
            for name, choice in MODELS.items():
                if trials > 1 and name not in ("scgde", "scgde, emergent"):
                    continue
                model = fit(train, seed, arguments, **choice)
                found[f"{name} model"] = distances(embed_points(model, *test)), model.cpu_seconds
                print(
                    trials,
                    seed,
                    name,
                    pearson(found[f"{name} model"][0], TRUTH),
                    f"{model.cpu_seconds:.0f} CPU s",
                    flush=True,
                )
            rows += [
                {"trials": trials, "seed": seed, "method": name, "pearson": pearson(d, TRUTH)}
                | {"own W2": pearson(d, own), "CPU s": seconds}
                for name, (d, seconds) in found.items()
            ]
    report("synthetic_simplex", over_seeds(pd.DataFrame(rows), ["trials", "method"], ["own W2", "CPU s"]), arguments)


def over_seeds(table: pd.DataFrame, keys: list[str], others: list[str]) -> pd.DataFrame:
    """Mean and lowest Pearson correlation over seeds, and means of other columns."""
    named = {name: (name, "mean") for name in others}
    summary = table.groupby(keys, sort=False).agg(pearson=("pearson", "mean"), lowest=("pearson", "min"), **named)
    return summary.reset_index()


def run_prior(arguments) -> None:
    rows = []
    for seed in seeds(arguments):
        test = draw([Categorical(p) for p in GRID], SIZE_TEST, np.random.default_rng([seed, 56]))
        for power in range(-5, 6):
            rng = np.random.default_rng([seed, power + 5, 57])
            laws = [Categorical(p) for p in rng.dirichlet([2.0**power, 1, 1], N_TRAIN)]
            train = draw(laws, SIZE_TRAIN, rng)
            row = {"seed": seed, "alpha": 2.0**power}
            for geometry in ("isometric", "emergent"):
                model = fit(train, seed, arguments, geometry=geometry)
                row[geometry] = pearson(distances(embed_points(model, *test)), TRUTH)
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows)
    worst = table.groupby("seed")[["isometric", "emergent"]].min().min()
    summary = table.groupby("alpha")[["isometric", "emergent"]].agg(["mean", "min"])
    summary.columns = [f"{geometry}, {what}" for geometry, what in summary.columns]
    facts = {f"worst {name}": float(value) for name, value in worst.items()}
    report("synthetic_prior", summary.reset_index(), arguments, **facts)


def run_mnist(arguments) -> None:
    path = digits_file()
    if path is None:
        print("mnist: skipped, SCGDE_DATA_DIR has no images/mnist_5k.csv.gz")
        return
    rows = []
    for seed in seeds(arguments):
        rng = np.random.default_rng([seed, 58])
        (x, y), (x_test, y_test) = load_digits(path, rng)
        laws = rng.dirichlet(np.ones(3), N_TRAIN)

        # mean + root covariance, which the encoder starts as, on the grid's mixtures of *training* images
        def grid_score(rows_of, x: np.ndarray, y: np.ndarray, seed: int = seed) -> float:
            chosen = draw_images(y, GRID, SIZE_IMAGES, np.random.default_rng([seed, 2]))
            points = rows_of(x[chosen.ravel()]), np.repeat(np.arange(len(GRID)), SIZE_IMAGES)
            return pearson(free_estimators(*points, PAIRS, exact=False)["mean + root covariance"], TRUTH)

        drawn, tested = draw_images(y, laws, SIZE_DIGITS, rng), draw_images(y_test, GRID, SIZE_IMAGES, rng)
        codes = [np.repeat(np.arange(len(i)), i.shape[1]) for i in (drawn, tested)]
        for kind, rows_of in choose_rows(x, y, laws, SIZE_DIGITS, grid_score, seed).items():
            train, test = (rows_of(x[drawn.ravel()]), codes[0]), (rows_of(x_test[tested.ravel()]), codes[1])
            found = {m: (d, 0.0) for m, d in free_estimators(*test, PAIRS, exact=False).items()}
            for name in ("scgde", "scgde, emergent"):
                if kind == "components" and name != "scgde":
                    continue
                model = fit(train, seed, arguments, epochs=2, **MODELS[name])
                found[f"{name} model"] = distances(embed_points(model, *test)), model.cpu_seconds
                print(
                    seed,
                    kind,
                    name,
                    pearson(found[f"{name} model"][0], TRUTH),
                    f"{model.cpu_seconds:.0f} CPU s",
                    flush=True,
                )
            rows += [
                {"rows": kind, "seed": seed, "method": m, "pearson": pearson(d, TRUTH), "CPU s": s}
                for m, (d, s) in found.items()
            ]
    report("synthetic_mnist", over_seeds(pd.DataFrame(rows), ["rows", "method"], ["CPU s"]), arguments)


PARTS = {"mnist": run_mnist, "simplex": run_simplex, "prior": run_prior, "zeros": run_zeros}

if __name__ == "__main__":
    arguments = options(__doc__, part="simplex,prior,mnist,zeros", **{"first-seed": 0})
    for part in arguments.part.split(","):
        PARTS[part](arguments)
