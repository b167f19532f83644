"""Latents that do not depend on how deeply a cell was sequenced."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from scgde.observations.thinning import thin_counts
from scgde.ot import sqrtm_psd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEVELS = np.arange(-10, 5) / 2
"""Depths that maps are fitted at: binary logarithms of their ratio to the reference."""

MIN_ROWS = 8000
"""Rows that are thinned, about: fewer cells are thinned several times."""

MAX_COPIES = 8
"""Times that a cell is thinned, at most."""

MIN_CELLS = 30
"""Cells that a map is fitted to, at least."""

MIN_READS = 10.0
"""Counts of a cell at the lowest depth that a map is fitted at, at least."""


class DepthMap(nn.Module):
    r"""Carry latents of cells of any depth to where the same cells lie at a reference depth.

    A posterior mean is drawn towards the prior, and :math:`\log(1 + x)` bent, by as much as counts are few: cells of
    one law get latents of another law where they have fewer reads. Cells thinned binomially say by how much, since
    they are the same cells. Between two neighbouring depths the latents are carried by the optimal transport map
    between normal laws with the mean and covariance that the same cells have at both (Peyre and Cuturi 2019, remark
    2.31),

    .. math::

        T(u) = m_1 + S_0^{-1/2} (S_0^{1/2} S_1 S_0^{1/2})^{1/2} S_0^{-1/2} (u - m_0),

    maps are chained up to the reference depth, and between depths gains and shifts are interpolated linearly in the
    logarithm. Posterior variances are scaled by their average ratio, axis by axis. What a cell becomes depends on
    its own counts alone.

    Parameters
    ----------
    n_latent
        Width of the latent.
    """

    gain: Tensor
    shift: Tensor
    log_sd: Tensor
    log_reference: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        n = len(LEVELS)
        self.register_buffer("gain", torch.eye(n_latent).repeat(n, 1, 1))
        self.register_buffer("shift", torch.zeros(n, n_latent))
        self.register_buffer("log_sd", torch.zeros(n, n_latent))
        self.register_buffer("log_reference", torch.zeros(()))

    def forward(self, mean: Tensor, sd: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Carry posterior means and sds ``(cells, d)`` of cells with total counts ``depth`` ``(cells, 1)``."""
        step = math.log(2) * (LEVELS[1] - LEVELS[0])
        place = (torch.log(depth) - self.log_reference) / step - LEVELS[0] / (LEVELS[1] - LEVELS[0])
        place = place.clamp(0, len(LEVELS) - 1)
        level = torch.arange(len(LEVELS), dtype=place.dtype, device=place.device)
        weight = (1 - (place - level).abs()).clamp_min(0)
        moved = torch.einsum("cl,cd,lde->ce", weight, mean, self.gain) + weight @ self.shift
        return moved, sd * torch.exp(weight @ self.log_sd)

    @torch.no_grad()
    def reset(self) -> None:
        """Leave latents as they are."""
        self.gain.copy_(torch.eye(self.gain.shape[1]).expand_as(self.gain))
        self.shift.zero_()
        self.log_sd.zero_()

    @torch.no_grad()
    def fit(
        self, counts: sp.csr_matrix, encode: Callable[[sp.csr_matrix], tuple[Tensor, Tensor]], seed: int = 0
    ) -> None:
        """Fit the maps to cells.

        Parameters
        ----------
        counts
            Counts of a sample of cells, ``(cells, n_vars)``.
        encode
            Gives posterior means and standard deviations of counts, with no map applied.
        seed
            Seed of the thinning.
        """
        self.reset()
        total = np.asarray(counts.sum(axis=1)).reshape(-1)
        if not (total > 0).any():
            return
        reference = float(np.median(total[total > 0]))
        self.log_reference.fill_(math.log(reference))
        # that cells are few is the same at both depths, but not what happens to be thinned away
        copies = min(max(MIN_ROWS // len(total), 1), MAX_COPIES)
        counts = sp.vstack([counts] * copies, format="csr")
        n, middle = len(LEVELS), int(np.flatnonzero(LEVELS == 0)[0])
        d = self.gain.shape[1]
        identity = np.eye(d), np.zeros(d), np.zeros(d)
        up: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        down: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for level, upper, lower in _neighbouring(counts, reference * 2.0**LEVELS, encode, MIN_CELLS * copies, seed):
            (up if level < middle else down)[level] = (
                _step(lower, upper, copies) if level < middle else _step(upper, lower, copies)
            )
        maps = [identity] * n
        for level in range(middle - 1, -1, -1):
            maps[level] = _chain(up[level], maps[level + 1]) if level in up else maps[level + 1]
        for level in range(middle + 1, n):
            maps[level] = _chain(down[level - 1], maps[level - 1]) if level - 1 in down else maps[level - 1]
        for buffer, values in zip((self.gain, self.shift, self.log_sd), zip(*maps, strict=True), strict=True):
            buffer.copy_(torch.from_numpy(np.stack(values)))


def _neighbouring(
    counts: sp.csr_matrix,
    depths: np.ndarray,
    encode: Callable[[sp.csr_matrix], tuple[Tensor, Tensor]],
    least: int,
    seed: int,
) -> Iterator[tuple[int, list[np.ndarray], list[np.ndarray]]]:
    """Latents of the same cells at neighbouring depths, from the largest on: lower level, those above it, those at it."""
    rng = np.random.default_rng([seed, 37])
    counts = counts.copy()
    total = np.asarray(counts.sum(axis=1)).reshape(-1)
    upper: list[np.ndarray] | None = None
    reach = np.zeros(len(total), dtype=bool)
    for level in range(len(depths) - 1, -1, -1):
        if depths[level] < MIN_READS:
            return
        before = reach
        reach = total >= depths[level]
        # cells of the level above have been thinned to about its depth
        reach |= before
        now = np.asarray(counts.sum(axis=1)).reshape(-1)
        keep = np.where(reach, np.minimum(depths[level] / np.maximum(now, 1.0), 1.0), 1.0)
        counts = thin_counts(counts, keep, rng)
        if reach.sum() < least:
            upper = None
            continue
        current = [part.double().cpu().numpy() for part in encode(counts[reach])]
        if upper is not None:
            yield level, upper, [part[before[reach]] for part in current]
        upper = current


def _step(source: list[np.ndarray], target: list[np.ndarray], copies: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gain, shift and log ratio of sds from latents of cells to those of the same cells at another depth."""
    (mean, sd), (aim, aim_sd) = source, target
    n, d = mean.shape
    cov, aim_cov = (np.cov(u.T).reshape(d, d) for u in (mean, aim))
    # few cells leave directions empty: both are pulled towards the same multiple of the identity
    floor = (d * copies / n + 1e-4) * np.trace(cov + aim_cov) / (2 * d) + 1e-12
    cov, aim_cov = cov + floor * np.eye(d), aim_cov + floor * np.eye(d)
    root = sqrtm_psd(cov)
    inverse = np.linalg.inv(root)
    gain = inverse @ sqrtm_psd(root @ aim_cov @ root) @ inverse
    ratio = 0.5 * np.log(np.square(aim_sd).mean(0) / np.square(sd).mean(0))
    return gain, aim.mean(0) - mean.mean(0) @ gain, ratio


def _chain(
    first: tuple[np.ndarray, np.ndarray, np.ndarray], then: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return first[0] @ then[0], first[1] @ then[0] + then[1], first[2] + then[2]
