"""First and second moments of populations: the linear path into the embedding and the generator's skeleton."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scgde._segments import gram_by_set, segment_mean
from scgde.ot import sqrtm_psd

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PopulationMoments:
    """Moments of K populations of cell latents.

    Attributes
    ----------
    n
        Number of cells, ``(K,)``.
    mean
        Means, ``(K, d)``.
    cov
        Unbiased covariances (divisor n - 1), ``(K, d, d)``; zero for populations of one cell.
    """

    n: Tensor
    mean: Tensor
    cov: Tensor

    @classmethod
    def from_cells(cls, u: Tensor, segment: Tensor, n_sets: int) -> PopulationMoments:
        """Moments of ragged sets given as flat rows ``(cells, d)`` and codes ``(cells,)``."""
        n = torch.bincount(segment, minlength=n_sets).to(u.dtype)
        mean = segment_mean(u, segment, n_sets)
        centred = u - mean[segment]
        cov = gram_by_set(centred, centred, segment, n_sets)
        return cls(n, mean, cov / (n - 1).clamp_min(1)[:, None, None])

    def to(self, device: torch.device) -> PopulationMoments:
        """The same moments on a device."""
        return PopulationMoments(self.n.to(device), self.mean.to(device), self.cov.to(device))

    def select(self, index: Tensor) -> PopulationMoments:
        """Moments of the populations at the given positions."""
        return PopulationMoments(self.n[index], self.mean[index], self.cov[index])

    def pooled_covariance(self) -> Tensor:
        """Within-population covariance, pooled with weights n - 1, ``(d, d)``; identity without replicates."""
        weight = self.n - 1
        if weight.sum() <= 0:
            return torch.eye(self.mean.shape[1], dtype=self.mean.dtype, device=self.mean.device)
        return torch.einsum("k,kij->ij", weight, self.cov) / weight.sum()

    def shrinkage(self, set_size: float = float("inf")) -> float:
        r"""Coefficient that best shrinks every covariance towards the pooled one, between 0 and 1.

        One coefficient for all populations: the average sampling noise of a covariance over the average squared
        distance to the pooled covariance. The noise is that of Gaussian cells,
        :math:`(\mathrm{tr}(\Sigma)^2 + \mathrm{tr}(\Sigma^2)) / (n - 1)`. A coefficient for each population (Ledoit
        and Wolf) would shrink large spreads more than small ones and so reorder populations.

        Parameters
        ----------
        set_size
            Number of cells that covariances to be shrunk are computed from at most; populations themselves may be
            larger.
        """
        used = self.n > 1
        if not used.any():
            return 1.0
        pooled = self.pooled_covariance()
        spread = (self.cov[used] - pooled).square().sum((1, 2)).mean()
        scale = pooled.trace().square() + pooled.square().sum()
        noise = (scale / (self.n[used] - 1)).mean()
        signal = (spread - noise).clamp_min(0.0)
        noise = (scale / (self.n[used].clamp_max(set_size) - 1).clamp_min(1)).mean()
        return float((noise / (signal + noise).clamp_min(1e-12)).clamp(1e-3, 1.0))

    def distance_noise(self, pooled: Tensor | None = None) -> Tensor:
        r"""What sampling adds on average to the squared distance of each population to any other, ``(K,)``.

        For normal cells the mean adds :math:`\mathrm{tr}(\Sigma)/n`, and the root of the covariance about
        :math:`(d + 1)/4` times as much (its differential where variances are alike). Populations of one cell, whose spread
        is not known, have that of the ``pooled`` covariance, of these populations by default.
        """
        d = self.mean.shape[1]
        pooled = self.pooled_covariance() if pooled is None else pooled
        trace = torch.where(self.n > 1, self.cov.diagonal(dim1=1, dim2=2).sum(1), pooled.trace())
        return trace * (1 + (d + 1) / 4) / self.n.clamp_min(1)

    def shrunk(self, coefficient: float | Tensor, target: Tensor) -> PopulationMoments:
        """The same moments with covariances moved towards ``target``, wholly so for populations of one cell.

        ``coefficient`` is one number, or one for each population, ``(K,)``.
        """
        c = torch.where(self.n > 1, coefficient, 1.0)[:, None, None]
        return PopulationMoments(self.n, self.mean, (1 - c) * self.cov + c * target)

    def mixtures(self, sources: Tensor, weights: Tensor) -> PopulationMoments:
        """Moments of mixtures of populations.

        Parameters
        ----------
        sources
            Codes of the mixed populations, ``(M, c)``.
        weights
            Weight of each, ``(M, c)``, rows sum to one.
        """
        mean = torch.einsum("mc,mcd->md", weights, self.mean[sources])
        centred = self.mean[sources] - mean[:, None]
        second = self.cov[sources] + centred[..., :, None] * centred[..., None, :]
        return PopulationMoments(
            (weights * self.n[sources]).sum(1), mean, torch.einsum("mc,mcij->mij", weights, second)
        )


def few_cells(n: Tensor, d: int) -> Tensor:
    """Share of the best shrinkage that populations of ``n`` cells ``(K,)`` in ``d`` dimensions are decoded with.

    All of it up to 2.5 cells for each dimension, where their own covariance would leave most directions empty, and none from 5
    cells on, which say enough for themselves.
    """
    return (2 - n / (2.5 * d)).clamp(0.0, 1.0)


def moment_size(n_latent: int) -> int:
    """Length of a moment vector: the mean and the upper triangle of the square-root covariance."""
    return n_latent + n_latent * (n_latent + 1) // 2


def moment_features(u: Tensor) -> Tensor:
    """Entries of ``u`` ``(cells, d)`` and their products, ``(cells, m)``, whose averages are first and second moments."""
    i, j = torch.triu_indices(u.shape[1], u.shape[1], device=u.device)
    columns = u.T.contiguous()  # whole columns are copied faster than entries of rows
    return torch.cat([columns, columns[i] * columns[j]]).T


def to_vector(mean: Tensor, root: Tensor) -> Tensor:
    r"""Moment vector ``(*, m)`` of means ``(*, d)`` and symmetric roots ``(*, d, d)``.

    Off-diagonal entries are scaled by the square root of two, so that Euclidean distance between vectors is
    :math:`(\|\Delta\mu\|^2 + \|\Delta\Sigma^{1/2}\|_F^2)^{1/2}`, which bounds the Gaussian Wasserstein distance from
    above and equals it when covariances commute.
    """
    d = mean.shape[-1]
    i, j = torch.triu_indices(d, d, device=mean.device)
    scale = mean.new_full(i.shape, math.sqrt(2.0)).masked_fill(i == j, 1.0)
    return torch.cat([mean, root[..., i, j] * scale], dim=-1)


def from_vector(vector: Tensor, n_latent: int) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`to_vector`: means ``(*, d)`` and symmetric roots ``(*, d, d)``."""
    mean, flat = vector[..., :n_latent], vector[..., n_latent:]
    i, j = torch.triu_indices(n_latent, n_latent, device=vector.device)
    scale = vector.new_full(i.shape, math.sqrt(0.5)).masked_fill(i == j, 1.0)
    root = vector.new_zeros((*vector.shape[:-1], n_latent, n_latent))
    root[..., i, j] = flat * scale
    root[..., j, i] = flat * scale
    return mean, root


def moment_vector(moments: PopulationMoments) -> Tensor:
    """Moment vectors of populations, ``(K, m)``."""
    return to_vector(moments.mean, sqrtm_psd(moments.cov))
