"""Kernel mean embedding by random Fourier features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgde.encoders.base import PooledEncoder

if TYPE_CHECKING:
    from scgde.moments import PopulationMoments


class KernelMeanEncoder(PooledEncoder):
    """Mean of random Fourier features of a Gaussian kernel (Rahimi and Recht 2007), scaled by one learned number.

    Euclidean distance between embeddings approximates the kernel's maximum mean discrepancy. The bandwidth is the
    median distance between training cells, kept on a log scale and trained.
    """

    is_linear = True
    waves: Tensor

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128) -> None:
        super().__init__(n_latent, n_embedding)
        n_waves = (n_embedding + 1) // 2
        # drawn from a generator of its own: a model is the same whatever was drawn before it was built
        waves = torch.randn((n_latent, n_waves), generator=torch.Generator().manual_seed(0))
        self.register_buffer("waves", waves)
        self.log_bandwidth = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def features(self, u: Tensor) -> Tensor:
        angle = u @ self.waves * torch.exp(-self.log_bandwidth)
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)[:, : self.n_embedding]

    def head(self, pooled: Tensor) -> Tensor:
        n_waves = self.waves.shape[1]
        return pooled * torch.exp(self.log_scale) * n_waves**-0.5

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        if u.shape[0] < 2:
            return
        step = max(u.shape[0] // 1000, 1)
        self.log_bandwidth.copy_(torch.pdist(u[::step][:1000]).median().clamp_min(1e-6).log())
        # start with the spread between populations that their means have, so that distances are in units of u
        z = self.in_blocks(u, segment, moments.mean.shape[0])
        spread_z, spread_u = ((a - a.mean(0)).square().sum(1).mean().sqrt() for a in (z, moments.mean))
        self.log_scale.add_((spread_u.clamp_min(1e-6) / spread_z.clamp_min(1e-6)).log())
