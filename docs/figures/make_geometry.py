"""Draw distances.png and geodesics.png, the pictures of the page on distances.

    python docs/figures/make_geometry.py

Models are trained on the suites of ``benchmarks``, on draws that the tables do not use.
"""

import sys
import warnings
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import matplotlib.pyplot as plt
import numpy as np
from _suites import Mixture, as_adata, draw_points, draw_suite, fit_model, free_estimators, model_distances, rank

import scgde

HERE = Path(__file__).parent
SEED = 200
SUITES = [
    ("gaussians", 2, False, "normal laws, d = 2"),
    ("gaussians", 10, True, "normal laws of mean 0, d = 10"),
    ("mixtures", 2, False, "mixtures of three, d = 2"),
]
"""Family, dimensions, whether centred, and title."""
EPOCHS, EPOCHS_SHAPES = {"gaussians": 20, "mixtures": 40}, 24
BLUE, GREY, INK = "#3b6fb6", "#8a8a8a", "#333333"
COLORS = np.array(["#3b6fb6", "#e07b39", "#4a9d5b"])
N_STEPS, N_CELLS = 5, 240
SPREAD = np.broadcast_to(0.06 * np.eye(2), (3, 2, 2))
ENDS = [
    Mixture(np.full(3, 1 / 3), np.array([[0.6, 4.2], [0.6, 2.5], [0.6, 0.8]]), SPREAD),
    Mixture(np.array([0.25, 0.5, 0.25]), np.array([[3.0, 4.4], [4.6, 2.5], [3.0, 0.6]]), SPREAD),
]
"""The populations between which the second picture goes."""


def scatter(ax, truth: np.ndarray, distances: np.ndarray, name: str, color: str) -> None:
    top = 1.05 * max(truth.max(), distances.max())
    ax.plot([0, top], [0, top], color=INK, linewidth=0.8)
    ax.scatter(truth, distances, s=7, color=color, alpha=0.6, linewidths=0)
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    ax.text(0.04, 0.96, f"{name}\nSpearman {rank(distances, truth):.3f}", transform=ax.transAxes, va="top", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7)


def draw_distances() -> tuple[scgde.GDEModel, tuple[np.ndarray, np.ndarray]]:
    """Estimated against true distances of new populations; returns the model of mixtures and its training points."""
    fig, axes = plt.subplots(2, len(SUITES), figsize=(8.4, 5.8), dpi=120, layout="constrained")
    for column, (family, d, centred, title) in zip(axes.T, SUITES, strict=True):
        n_pairs = 100 if family == "mixtures" else 300
        suite = draw_suite(family, d, centred, SEED, n_pairs=n_pairs, n_truth=1000)
        points, codes = suite.tests[64]
        model = fit_model(*suite.train, SEED, epochs=EPOCHS[family])
        distances = model_distances(model, points, codes, suite.pairs)
        free = free_estimators(points, codes, suite.pairs, exact=False)["Bures"]
        scatter(column[0], suite.truth, distances, "scgde", BLUE)
        scatter(column[1], suite.truth, free, "moments of the points", GREY)
        column[0].set_title(title, fontsize=9)
        column[1].set_xlabel("true W2", fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("estimated from 64 points each", fontsize=8)
    save(fig, "distances.png")
    return model, suite.train


def fit_shapes(points: np.ndarray, codes: np.ndarray) -> scgde.GDEModel:
    """A model that sees shapes, trained on the first 128 populations: exact distances of all pairs are its targets."""
    first = codes < 128
    return fit_model(points[first], codes[first], SEED, epochs=EPOCHS_SHAPES, encoder="transport", generator="mixture")


def draw_geodesics(plain: scgde.GDEModel, shapes: scgde.GDEModel) -> None:
    """Frames of paths between two mixtures; a cell keeps the colour of the cluster that it comes from."""
    points, codes = draw_points(ENDS, N_CELLS, np.random.default_rng(SEED))
    given = as_adata(points, codes)
    rows = [
        ("latent,\ndefault model", "latent", plain),
        ("latent,\ntransport encoder", "latent", shapes),
        ("displacement,\ntransport encoder", "displacement", shapes),
    ]
    fig, axes = plt.subplots(3, N_STEPS, figsize=(8.4, 4.9), dpi=120, layout="constrained", sharex=True, sharey=True)
    for axes_of, (title, method, model) in zip(axes, rows, strict=True):
        path = model.interpolate(
            "p00000", "p00001", n_steps=N_STEPS, n_cells=N_CELLS, method=method, adata=given, seed=SEED
        )
        steps = np.asarray(path.X).reshape(N_STEPS, N_CELLS, 2)
        cluster = np.square(steps[0][:, None] - ENDS[0].means).sum(-1).argmin(1)
        for t, ax, step in zip(np.linspace(0, 1, N_STEPS), axes_of, steps, strict=True):
            ax.scatter(*points.T, s=2, color="#d0d0d0", linewidths=0)
            ax.scatter(*step.T, s=4, color=COLORS[cluster], linewidths=0)
            ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-0.6, 6.4), ylim=(-0.6, 5.6))
            if model is plain:
                ax.set_title(f"t = {t:g}", fontsize=9)
        axes_of[0].set_ylabel(title, fontsize=8)
    save(fig, "geodesics.png")


def save(fig, name: str) -> None:
    # No creation date or version: the same script gives the same bytes.
    fig.savefig(HERE / name, metadata={"Software": None})


def main() -> None:
    warnings.filterwarnings("ignore")
    plain, train = draw_distances()
    draw_geodesics(plain, fit_shapes(*train))


if __name__ == "__main__":
    main()
