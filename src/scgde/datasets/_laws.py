from dataclasses import dataclass
from math import floor

import numpy as np
import pandas as pd

# Variance that every direction keeps, so that all laws have a density.
_FLOOR = 0.05


@dataclass
class Laws:
    """Gaussian laws of the populations: means (P, d), covariances (P, d, d), and their annotation (P rows)."""

    mean: np.ndarray
    covariance: np.ndarray
    labels: pd.DataFrame


def draw_covariances(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Covariances ``A A' + 0.05 I`` with entries of ``A`` from N(0, 0.25 / d)."""
    factor = rng.normal(0, np.sqrt(0.25 / d), size=(n, d, d))
    return factor @ factor.transpose(0, 2, 1) + _FLOOR * np.eye(d)


def independent(rng: np.random.Generator, n_populations: int, d: int) -> Laws:
    """Populations that share nothing. Benchmarks rely on this law: it must not change."""
    mean = rng.normal(size=(n_populations, d))
    covariance = draw_covariances(rng, n_populations, d)
    labels = pd.DataFrame({"population": [f"population_{i}" for i in range(n_populations)]})
    return Laws(mean, covariance, labels)


def lineage(rng: np.random.Generator, n_populations: int, d: int, n_time_points: int, n_fates: int) -> Laws:
    """Clones that start near their progenitor and drift towards one of a few fates while they spread out."""
    n_clones = floor(n_populations / n_time_points)
    origin = rng.normal(0, 0.5, size=(n_clones, d))
    direction = rng.normal(size=(n_fates, d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # Every fate is taken where there are enough clones.
    fate = rng.permutation(np.arange(n_clones) % n_fates)
    base = draw_covariances(rng, n_clones, d)

    clone, time = (index.ravel() for index in np.indices((n_clones, n_time_points)))
    progress = (time + 1) / n_time_points
    mean = origin[clone] + 3 * progress[:, None] * direction[fate[clone]]
    covariance = base[clone] * (0.5 + progress)[:, None, None]
    labels = pd.DataFrame(
        {
            "clone": [f"clone_{i}" for i in clone],
            "time": [f"d{2 * (t + 1)}" for t in time],
            "fate": [f"fate_{i}" for i in fate[clone]],
        }
    )
    labels.insert(0, "population", labels["clone"] + "|" + labels["time"])
    return Laws(mean, covariance, labels)


def perturbation(rng: np.random.Generator, n_populations: int, d: int, n_contexts: int) -> Laws:
    """Perturbations that shift the mean of every context alike and change its spread a little."""
    n_perturbations = floor(n_populations / n_contexts)
    centre = rng.normal(size=(n_contexts, d))
    base = draw_covariances(rng, n_contexts, d)
    shift = rng.normal(0, 0.5, size=(n_perturbations, d))
    spread = rng.lognormal(0, 0.2, size=n_perturbations)
    shift[0], spread[0] = 0, 1

    context, index = (grid.ravel() for grid in np.indices((n_contexts, n_perturbations)))
    names = ["control", *(f"perturbation_{i}" for i in range(1, n_perturbations))]
    labels = pd.DataFrame(
        {"context": [f"context_{i}" for i in context], "perturbation": [names[i] for i in index]},
    )
    labels.insert(0, "population", labels["context"] + "|" + labels["perturbation"])
    mean = centre[context] + shift[index]
    return Laws(mean, base[context] * spread[index][:, None, None], labels)
