"""Draw overview.png, the picture of the user guide.

    python docs/figures/make_overview.py

The cells are draws from two-dimensional Gaussians, the embedding is classical scaling of their Wasserstein-2 distances, and
the generated cells are fresh draws: the picture shows the idea, not the output of a trained model.
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import ConnectionPatch, Ellipse
from scipy.linalg import sqrtm

COLORS = ["#3b6fb6", "#e07b39", "#4a9d5b"]
NAMES = ["population A", "population B", "population C"]
INK = "#333333"
N_CELLS = [60, 45, 12]
MEANS = np.array([[-2.6, 1.2], [0.2, -1.6], [2.4, 1.5]])
COVARIANCES = np.array([[[0.5, 0.28], [0.28, 0.35]], [[1.1, -0.1], [-0.1, 0.16]], [[0.22, -0.08], [-0.08, 0.55]]])


def wasserstein(i: int, j: int) -> float:
    """Wasserstein-2 distance between two of the Gaussians."""
    root = sqrtm(COVARIANCES[i])
    cross = sqrtm(root @ COVARIANCES[j] @ root).real
    bures2 = np.trace(COVARIANCES[i] + COVARIANCES[j] - 2 * cross)
    return float(np.sqrt(((MEANS[i] - MEANS[j]) ** 2).sum() + max(bures2, 0.0)))


def scale(distances: np.ndarray) -> np.ndarray:
    """Two-dimensional coordinates with the given distances (classical scaling)."""
    n = len(distances)
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centring @ distances**2 @ centring / 2)
    points = vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None))
    # Turned and mirrored so as to resemble the arrangement of the means.
    u, _, vt = np.linalg.svd(points.T @ (MEANS - MEANS.mean(axis=0)))
    return points @ u @ vt


def draw_cells(ax, draws, alpha: float) -> None:
    for cells, color in zip(draws, COLORS, strict=True):
        ax.scatter(*cells.T, s=11, color=color, alpha=alpha, linewidths=0)


def main() -> None:
    rng = np.random.default_rng(3)
    distances = np.array([[wasserstein(i, j) for j in range(3)] for i in range(3)])
    z = scale(distances)
    observed = [rng.multivariate_normal(m, c, n) for m, c, n in zip(MEANS, COVARIANCES, N_CELLS, strict=True)]
    generated = [rng.multivariate_normal(m, c, 60) for m, c in zip(MEANS, COVARIANCES, strict=True)]

    fig = plt.figure(figsize=(9.6, 3.3), dpi=130)
    left, width, gap = 0.02, 0.24, 0.12
    axes = [fig.add_axes((left + i * (width + gap), 0.12, width, 0.7)) for i in range(3)]
    draw_cells(axes[0], observed, 0.75)
    for mean, name, color, n, shift in zip(
        MEANS, NAMES, COLORS, N_CELLS, ([0.1, 2.35], [0, -1.25], [-0.1, 2.05]), strict=True
    ):
        axes[0].text(*(mean + shift), f"{name}\n{n} cells", color=color, ha="center", va="center", fontsize=7.5)

    for i, j in ((0, 1), (1, 2), (0, 2)):
        axes[1].plot(*z[[i, j]].T, color="#b5b5b5", linewidth=1.0, zorder=0)
    middle = z[[0, 2]].mean(axis=0)
    axes[1].text(*(middle + [0.0, 0.75]), r"length $\approx W_2(A, C)$", color="#666666", ha="center", fontsize=8)
    offsets = [(-19, -4), (9, -4), (9, 4)]
    for point, color, covariance, n, letter, offset in zip(
        z, COLORS, COVARIANCES, N_CELLS, "ABC", offsets, strict=True
    ):
        widths = 2 * 2.45 * np.sqrt(np.diag(covariance) / n)
        axes[1].add_patch(Ellipse(point, *widths, facecolor=color, alpha=0.25, linewidth=0))
        axes[1].scatter(*point, s=24, color=color, edgecolors="white", linewidths=0.8, zorder=3)
        axes[1].annotate(f"$z_{letter}$", point, xytext=offset, textcoords="offset points", color=color, fontsize=11)

    draw_cells(axes[2], generated, 0.75)

    titles = ("cells $u$", "populations $z$", "generated cells $u$")
    captions = (
        "one point per cell",
        "one point per population,\nellipse: 95 % confidence",
        "decoded to integer counts",
    )
    for ax, title, caption in zip(axes, titles, captions, strict=True):
        ax.set(xlim=(-4.6, 4.4), ylim=(-3.6, 4.2), xticks=[], yticks=[])
        ax.spines[:].set_color("#cfcfcf")
        ax.set_title(title, fontsize=11, color=INK)
        ax.set_xlabel(caption, fontsize=8, color="#666666")
    for first, second, label in ((axes[0], axes[1], "set encoder"), (axes[1], axes[2], "generator")):
        arrow = ConnectionPatch(
            (1.04, 0.5),
            (-0.04, 0.5),
            coordsA=first.transAxes,
            coordsB=second.transAxes,
            arrowstyle="-|>",
            mutation_scale=16,
            linewidth=1.6,
            color=INK,
        )
        fig.add_artist(arrow)
        start, end = first.get_position().x1, second.get_position().x0
        fig.text((start + end) / 2, 0.52, label, ha="center", fontsize=9, color=INK)
    # No creation date or version: the same script gives the same bytes.
    fig.savefig(Path(__file__).with_name("overview.png"), metadata={"Software": None})


if __name__ == "__main__":
    main()
