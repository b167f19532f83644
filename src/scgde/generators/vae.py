"""Conditional variational autoencoder over cell latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scgde._networks import mlp
from scgde.generators.base import Generator


class VAEGenerator(Generator):
    """A conditional VAE with a summed evidence bound and learned observation noise.

    Both matter: averaging the two terms over dimensions, or decoding to means alone, gives populations that are too
    narrow. The decoder has a linear path from the code and starts as the standard normal of the population's frame.

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    """

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.n_code = n_latent
        self.encoder = mlp(n_latent + n_condition, n_hidden, 2 * self.n_code)
        self.decoder = mlp(self.n_code + n_condition, n_hidden, n_latent, zero=True)
        self.decoder_skip = nn.Linear(self.n_code, n_latent, bias=False)
        self.log_noise = nn.Parameter(torch.full((n_latent,), -0.5 * math.log(2.0)))
        with torch.no_grad():
            # half of a unit variance through the code, half as noise
            self.decoder_skip.weight.copy_(torch.eye(n_latent, self.n_code) * math.sqrt(0.5))

    def _decode(self, code: Tensor, condition: Tensor) -> Tensor:
        return self.decoder_skip(code) + self.decoder(torch.cat([code, condition], dim=1))

    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_var = self.encoder(torch.cat([y, condition], dim=1)).chunk(2, dim=1)
        log_var = log_var.clamp(-10.0, 10.0)
        noise = torch.randn(mean.shape, generator=generator, dtype=y.dtype, device=y.device)
        expected = self._decode(mean + torch.exp(0.5 * log_var) * noise, condition)
        residual = (y - expected) * torch.exp(-self.log_noise)
        reconstruction = (0.5 * residual.square() + self.log_noise + 0.5 * math.log(2 * math.pi)).sum(1)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (reconstruction + divergence) / self.n_latent

    def sample(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        def draw(width: int) -> Tensor:
            shape = (condition.shape[0], width)
            return torch.randn(shape, generator=generator, dtype=condition.dtype, device=condition.device)

        expected = self._decode(draw(self.n_code), condition)
        return expected + draw(self.n_latent) * torch.exp(self.log_noise)
