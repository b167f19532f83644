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

    def _encode(self, y: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(torch.cat([y, condition], dim=1)).chunk(2, dim=1)
        return mean, log_var.clamp(-10.0, 10.0)

    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_var = self._encode(y, condition)
        noise = torch.randn(mean.shape, generator=generator, dtype=y.dtype, device=y.device)
        expected = self._decode(mean + torch.exp(0.5 * log_var) * noise, condition)
        residual = (y - expected) * torch.exp(-self.log_noise)
        reconstruction = (0.5 * residual.square() + self.log_noise + 0.5 * math.log(2 * math.pi)).sum(1)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (reconstruction + divergence) / self.n_latent

    @property
    def n_noise(self) -> int:
        return self.n_code + self.n_latent

    def push(self, noise: Tensor, condition: Tensor) -> Tensor:
        code, rest = noise.tensor_split([self.n_code], dim=1)
        return self._decode(code, condition) + rest * torch.exp(self.log_noise)

    def log_prob(
        self, y: Tensor, condition: Tensor, *, n_samples: int = 64, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Importance-weighted lower bound on the log density at ``y``, ``(cells,)``; see :meth:`Generator.log_prob`.

        Burda et al. 2016 (arXiv 1509.00519), equation 8, with :math:`K` draws :math:`c_k` from the encoder:
        :math:`\log \frac{1}{K} \sum_k p(y \mid c_k) p(c_k) / q(c_k \mid y)`. Its expectation rises with the number of
        draws to the log density.
        """
        mean, log_var = self._encode(y, condition)
        # constants of the code's two normal laws cancel
        constant = -self.log_noise.sum() - 0.5 * self.n_latent * math.log(2 * math.pi)
        total = y.new_full((len(y),), -math.inf)
        for _ in range(n_samples):  # one draw at a time: memory does not grow with their number
            noise = torch.randn(mean.shape, generator=generator, dtype=y.dtype, device=y.device)
            code = mean + torch.exp(0.5 * log_var) * noise
            residual = (y - self._decode(code, condition)) * torch.exp(-self.log_noise)
            ratio = 0.5 * (noise.square() + log_var - code.square()).sum(1)
            total = torch.logaddexp(total, ratio - 0.5 * residual.square().sum(1))
        return total + constant - math.log(n_samples)
