"""Mutual information of simulated pairs whose information is known: estimate, interval, null and the neighbours' estimate alone.

Early and late vectors of 300 clones have 16 dimensions, turned at random. ``normal``: pairs of coordinates of equal correlation. ``classes``: clones of a class stay
in it with some probability; coordinates are normal about the centre of the class. ``both``: four classes beside three normal pairs. ``skewed``:
three normal pairs, each coordinate exponentiated. ``sizes``: means of early and late cells that are all of one law, in clones of which those with many early cells
have many late ones, without and with ``n_cells``; truth is what there is beside numbers of cells. Truth is exact, or a mean over 40,000 draws. Seeds from 100; below, it was tuned.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import options, report, seeds
from scipy.special import logsumexp

from scgde.lineage import Projection, clone_information, ksg_information

N_DIMENSIONS = 16
NORMAL = {
    "normal, 2 pairs": (2, 0.7),
    "normal, 4 pairs": (4, 0.7),
    "normal, 8 pairs": (8, 0.6),
    "independent": (4, 0.0),
}
CLASSES = {"2 classes": (2, 0.9, 5.0), "4 classes": (4, 0.8, 4.0), "4 classes apart": (4, 0.9, 8.0), "8 classes": (8, 0.8, 5.0)}  # fmt: skip


def normal_pairs(n: int, d: int, r: float, rng) -> tuple[np.ndarray, np.ndarray, float]:
    x = rng.normal(size=(n, d))
    return x, r * x + np.sqrt(1 - r * r) * rng.normal(size=(n, d)), -d / 2 * np.log2(1 - r * r)


def class_pairs(n: int, k: int, stay: float, apart: float, rng) -> tuple[np.ndarray, np.ndarray, float]:
    joint = np.full((k, k), (1 - stay) / (k - 1))
    np.fill_diagonal(joint, stay)
    joint /= k
    left, size, _ = np.linalg.svd(np.eye(k) - 1 / k)
    centres = apart * (left * size)[:, : k - 1]

    def draw(n, rng):
        pairs = rng.choice(k * k, size=n, p=joint.ravel())
        return [centres[v] + rng.normal(size=(n, k - 1)) for v in (pairs // k, pairs % k)]

    a, b = (-0.5 * np.square(v[:, None] - centres).sum(2) for v in draw(40_000, np.random.default_rng(0)))
    both = logsumexp(a[:, :, None] + b[:, None] + np.log(joint), axis=(1, 2))
    truth = (both - logsumexp(a - np.log(k), axis=1) - logsumexp(b - np.log(k), axis=1)).mean() / np.log(2)
    return *draw(n, rng), float(truth)


def turned(v: np.ndarray, rng) -> np.ndarray:
    """Beside unrelated coordinates, in a random basis."""
    rest = N_DIMENSIONS - v.shape[1]
    v = np.hstack([v, rng.normal(size=(len(v), rest)) * rng.uniform(0.3, 1.5, size=rest)])
    return v @ np.linalg.qr(rng.normal(size=(N_DIMENSIONS, N_DIMENSIONS)))[0]


def sized_pairs(n: int, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of early and late cells of one law, and numbers of late cells."""
    early = rng.geometric(0.2, n)
    late = 1 + rng.poisson(1.5 * early)
    x, y = (rng.normal(size=(n, N_DIMENSIONS)) / np.sqrt(size)[:, None] for size in (early, late))
    return x, y, late


def pairs(design: str, n: int, rng) -> tuple[np.ndarray, np.ndarray, float]:
    if design in NORMAL:
        x, y, truth = normal_pairs(n, *NORMAL[design], rng)
    elif design in CLASSES:
        x, y, truth = class_pairs(n, *CLASSES[design], rng)
    else:
        x, y, truth = normal_pairs(n, 3, 0.7, rng)
        if design == "skewed":
            x, y = np.exp(0.6 * x), np.exp(0.6 * y)
        else:
            a, b, more = class_pairs(n, 4, 0.8, 5.0, rng)
            x, y, truth = np.hstack([a, x]), np.hstack([b, y]), truth + more
    return turned(x, rng), turned(y, rng), truth


def neighbours(x: np.ndarray, y: np.ndarray, rng) -> float:
    """Neighbours in four canonical coordinates at most, of one half of the clones by the other, less the null."""
    half = rng.permutation(len(x)) % 2 == 0
    a, b = Projection(x[half], y[half])(x[~half], y[~half])
    return float(ksg_information(a, b).mean() - np.mean([ksg_information(a, b[rng.permutation(len(b))]).mean() for _ in range(20)]))  # fmt: skip


def main() -> None:
    arguments = options(__doc__, clones=300, **{"first-seed": 100})
    rows = []
    for design in (*NORMAL, *CLASSES, "both", "skewed", "sizes", "sizes, n_cells given"):
        for seed in seeds(arguments):
            rng = np.random.default_rng([seed, 1])
            size, truth = None, 0.0
            if design.startswith("sizes"):
                x, y, late_size = sized_pairs(arguments.clones, rng)
                size = late_size if design.endswith("given") else None
            else:
                x, y, truth = pairs(design, arguments.clones, rng)
            early, late = (pd.DataFrame(v, index=[f"clone_{i}" for i in range(len(v))]) for v in (x, y))
            n_cells = None if size is None else pd.Series(size, late.index)
            found = clone_information(early, late, n_cells=n_cells, n_permutations=50, seed=seed)
            low, high = found.interval
            rows.append({"design": design, "truth": truth, "neighbours": neighbours(x, y, rng), "bits": found.bits, "sd": found.bits,
                         "half_width": (high - low) / 2, "coverage": float(low <= truth <= high), "p": found.p_value})  # fmt: skip
    table = pd.DataFrame(rows).groupby("design", sort=False)
    result = table.mean()
    result["sd"] = table["bits"].std()
    report("information", result.reset_index(), arguments)


if __name__ == "__main__":
    main()
