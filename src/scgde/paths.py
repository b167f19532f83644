"""Paths between populations and densities of their cells, from a trained module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scgde import ot
from scgde.generation import generate_latents

if TYPE_CHECKING:
    from scgde.module import GDEModule

MAX_SCORED = 1000
"""Cells from which exact Wasserstein distances of a transport are computed at most."""

_CELLS_PER_PASS = 4096


def latent_path(
    module: GDEModule,
    z_source: np.ndarray,
    z_target: np.ndarray,
    times: np.ndarray,
    n_cells: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Latents ``(steps, n_cells, n_latent)`` of the populations on the line between two embeddings ``(n_embedding,)``.

    Shape is generated from the line, in a frame on the geodesic (:func:`path_frames`). Every step is generated from the same noise,
    so that cell ``i`` of one step is cell ``i`` of the next, moved.
    """
    state, path = generator.get_state(), []
    frames = path_frames(module, z_source, z_target, times) if module.has_skeleton else None
    for i, t in enumerate(times):
        generator.set_state(state)
        z = ((1 - t) * z_source + t * z_target).astype(np.float32)
        u = generate_latents(module, np.repeat(z[None], n_cells, 0), generator)[0]
        if frames is not None:
            mean, root = (x[0].double().cpu().numpy() for x in _read(module, z[None]))
            y = np.linalg.solve(root, (u - mean).T)
            u = (frames[0][i] + (frames[1][i] @ y).T).astype(np.float32)
        path.append(u)
    return np.stack(path)


def path_frames(
    module: GDEModule, z_source: np.ndarray, z_target: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means ``(steps, n_latent)`` and root covariances ``(steps, n_latent, n_latent)`` along a path between two embeddings.

    Those of the Wasserstein geodesic of normal populations with the mean and covariance that are read off the ends. Read off the
    line between the embeddings they would nearly be the same: it is straight in root covariances, as the geodesic is where these commute.
    """
    mean, root = (x.double().cpu().numpy() for x in _read(module, np.stack([z_source, z_target])))
    cov = root @ root
    steps = [ot.gaussian_geodesic(mean[0], cov[0], mean[1], cov[1], float(t)) for t in times]
    return np.stack([m for m, _ in steps]), ot.sqrtm_psd(np.stack([c for _, c in steps]))


@torch.no_grad()
def _read(module: GDEModule, z: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and root covariances that are read off embeddings ``(K, n_embedding)``."""
    return module.skeleton(torch.from_numpy(np.asarray(z, dtype=np.float32)).to(module.device))


def displacement_path(
    module: GDEModule,
    z_source: np.ndarray,
    z_target: np.ndarray,
    times: np.ndarray,
    n_cells: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Latents ``(steps, n_cells, n_latent)`` on straight lines between cells of two populations.

    Displacement interpolation (McCann 1997, Adv Math 128, 153-179) of draws from both, matched by exact optimal transport
    between them.
    """
    start, end = (generate_latents(module, np.repeat(z[None], n_cells, 0), generator)[0] for z in (z_source, z_target))
    rows, columns = linear_sum_assignment(cdist(start, end, "sqeuclidean"))
    step = np.asarray(times, dtype=np.float32)[:, None, None]
    return (1 - step) * start[rows] + step * end[columns]


PATHS = {"latent": latent_path, "displacement": displacement_path}


def path_parts(source: list[str], target: list[str], times: np.ndarray) -> list[list[str]]:
    """Values of the population key's columns at every step: what both ends share, and a name of the step elsewhere."""
    return [
        [s if s == t else f"{s}->{t}@{round(float(time), 6)}" for s, t in zip(source, target, strict=True)]
        for time in times
    ]


@torch.no_grad()
def transport_cells(module: GDEModule, u: np.ndarray, z_source: np.ndarray, z_target: np.ndarray) -> np.ndarray:
    """Latents ``(cells, n_latent)`` carried from one population to another, by their embeddings ``(n_embedding,)``."""
    module.eval()
    ends = [torch.from_numpy(np.asarray(z, dtype=np.float32)).to(module.device) for z in (z_source, z_target)]
    blocks = [torch.from_numpy(u[i : i + _CELLS_PER_PASS]) for i in range(0, len(u), _CELLS_PER_PASS)]
    return np.concatenate([module.transport_latent(block.to(module.device), *ends).cpu().numpy() for block in blocks])


def transport_score(u: np.ndarray, moved: np.ndarray, rng: np.random.Generator) -> dict[str, float | int]:
    r"""How close a map is to optimal transport between where cells were and where they are, each ``(cells, n_latent)``.

    No coupling is cheaper than the optimal one, so that the distance over the root mean square displacement of the map is
    at most one, and one for an optimal map. Few cells in many dimensions lie so far apart that nearly every map is
    optimal *between them*: the Gaussian distance, a lower bound for all laws (Gelbrich 1990, Math Nachr 147, theorem 2.1)
    that depends on moments alone, shows what the exact one cannot then.

    Returns
    -------
    ``cost`` (root mean square displacement), ``wasserstein`` (exact), ``ratio`` (``wasserstein / cost``),
    ``gaussian_wasserstein``, ``gaussian_ratio`` (``gaussian_wasserstein / cost``, at most ``ratio``) and ``n_cells``, those
    scored.
    """
    if len(u) > MAX_SCORED:
        chosen = np.sort(rng.choice(len(u), MAX_SCORED, replace=False))
        u, moved = u[chosen], moved[chosen]
    u, moved = u.astype(np.float64), moved.astype(np.float64)
    cost = float(np.sqrt(np.square(moved - u).sum(1).mean()))
    # rounding can put either a hair above what it bounds
    exact = min(ot.wasserstein(u, moved), cost)
    moments = [(x.mean(0), np.cov(x.T, bias=True).reshape(x.shape[1], -1)) for x in (u, moved)]
    bound = min(float(ot.gaussian_wasserstein(*moments[0], *moments[1])), exact)
    return {
        "cost": cost,
        "wasserstein": exact,
        "ratio": exact / cost if cost > 0 else 1.0,
        "gaussian_wasserstein": bound,
        "gaussian_ratio": bound / cost if cost > 0 else 1.0,
        "n_cells": len(u),
    }


@torch.no_grad()
def log_likelihoods(
    module: GDEModule,
    u: torch.Tensor,
    z: np.ndarray,
    *,
    n_samples: int,
    generator: torch.Generator,
    batch_size: int | None = None,
) -> np.ndarray:
    """Log densities ``(cells, K)`` of latents ``(cells, n_latent)`` in populations with embeddings ``(K, n_embedding)``.

    In blocks of at most ``batch_size`` pairs of a cell and a population.
    """
    from tqdm.auto import tqdm

    module.eval()
    step = batch_size or _CELLS_PER_PASS
    per_block = max(step // max(len(u), 1), 1)
    values = np.empty((len(u), len(z)), dtype=np.float32)
    with tqdm(total=values.size, desc="log-likelihood", unit="pair", delay=2) as bar:
        for first in range(0, len(z), per_block):
            embedding = torch.from_numpy(np.asarray(z[first : first + per_block], dtype=np.float32)).to(module.device)
            k = len(embedding)
            for start in range(0, len(u), step):
                cells = u[start : start + step].to(module.device)
                codes = torch.arange(k, device=module.device).repeat_interleave(len(cells))
                density = module.log_prob_latent(
                    cells.repeat(k, 1), embedding, codes, n_samples=n_samples, generator=generator
                )
                values[start : start + step, first : first + k] = density.reshape(k, -1).T.cpu().numpy()
                bar.update(k * len(cells))
    return values


def check_weights(weights: object, n: int) -> np.ndarray:
    """Weights ``(n,)`` scaled to sum to one; uniform for None.

    Raises
    ------
    ValueError
        If there are not ``n`` of them, one is negative or not finite, or all are zero.
    """
    if weights is None:
        return np.full(n, 1 / n)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        message = (
            f"weights={weights!r} must be {n} finite numbers, none negative and not all zero: one for each population."
        )
        raise ValueError(message)
    return values / values.sum()
