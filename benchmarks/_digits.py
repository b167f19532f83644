"""Mixtures of digits 0, 1 and 2: images, populations of them, and rows that keep what populations differ in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from scgde import ot

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = "images/mnist_5k.csv.gz"
N_COMPONENTS, N_WAVES = 50, 300
RIDGES, N_FOLDS = (0.1, 0.3, 1.0, 3.0), 5


def digits_file() -> Path | None:
    """File of the images, or None where ``SCGDE_DATA_DIR`` does not hold it."""
    path = Path(os.environ.get("SCGDE_DATA_DIR", "")) / FILE
    return path if path.is_file() else None


def load_digits(path: Path, rng: np.random.Generator) -> tuple[tuple, tuple]:
    """Principal components (fitted on the training half) and classes of a training and a test half of the images."""
    table = pd.read_csv(path, header=None).to_numpy()
    table = rng.permutation(table[table[:, -1] < 3])
    train, test = table[::2], table[1::2]
    pca = PCA(N_COMPONENTS, random_state=0).fit(train[:, :-1] / 255)
    return tuple((pca.transform(half[:, :-1] / 255), half[:, -1].astype(int)) for half in (train, test))


def draw_images(classes: np.ndarray, laws: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices ``(K, n)`` of images drawn with replacement, classes by the probabilities ``laws`` ``(K, 3)``."""
    members = [np.flatnonzero(classes == c) for c in range(3)]
    counts = [rng.multinomial(n, p) for p in laws]
    return np.stack([np.concatenate([rng.choice(m, k) for m, k in zip(members, c, strict=True)]) for c in counts])


def fourier_features(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Rows and random Fourier features of a Gaussian kernel whose bandwidth is the median distance of ``x``."""
    width = np.median(pdist(x[:1000]))
    waves = np.random.default_rng(0).normal(size=(x.shape[1], N_WAVES)) / width
    return lambda z: np.hstack([z / width, np.cos(z @ waves), np.sin(z @ waves)])


def discriminant_axes(features: np.ndarray, drawn: np.ndarray, ridge: float) -> np.ndarray:
    """Two axes ``(F, 2)`` along which populations differ most for their inner spread, scaled to differ alike along both.

    Only populations are used, no classes: ``drawn`` ``(K, n)`` are the rows of ``features`` in each. ``ridge`` is relative to
    the mean spread within populations.
    """
    k, n = drawn.shape
    counts = np.stack([np.bincount(row, minlength=len(features)) for row in drawn]).astype(float)
    centred = features - counts.sum(0) @ features / counts.sum()
    mean = counts @ centred / n
    within = ((centred.T * counts.sum(0)) @ centred - n * mean.T @ mean) / (k * (n - 1))
    between = np.cov(mean.T) - within / n
    d = len(within)
    penalised = within + ridge * np.trace(within) / d * np.eye(d)
    axes = eigh(between, penalised, subset_by_index=[d - 2, d - 1])[1]
    return axes @ np.linalg.inv(ot.sqrtm_psd(axes.T @ between @ axes))


def choose_rows(
    x: np.ndarray, y: np.ndarray, laws: np.ndarray, n: int, score: Callable, seed: int
) -> dict[str, Callable]:
    """Maps from components to rows, fitted on training images: linear and Fourier discriminant axes, and none.

    The ridge of each has the best mean ``score(map, x, y)`` on three fifths of the training images, each in
    turn, of axes fitted on the other four.
    """
    fold = np.arange(len(x)) % N_FOLDS

    def fitted(kind: str, ridge: float, x: np.ndarray, y: np.ndarray) -> Callable:
        lift = fourier_features(x) if kind == "Fourier axes" else lambda z: z
        axes = discriminant_axes(lift(x), draw_images(y, laws, n, np.random.default_rng([seed, 1])), ridge)
        return lambda z: lift(z) @ axes

    maps: dict[str, Callable] = {"components": lambda z: z}
    for kind in ("axes", "Fourier axes"):
        scores = {
            r: float(
                np.mean(
                    [score(fitted(kind, r, x[fold != f], y[fold != f]), x[fold == f], y[fold == f]) for f in range(3)]
                )
            )
            for r in RIDGES
        }
        best = max(scores, key=scores.__getitem__)
        print(f"{kind}: {scores} on held-out training images", flush=True)
        maps[kind] = fitted(kind, best, x, y)
    return maps
