"""Layer shapes of the GDE paper's public models, written anew in plain torch: what a step of ours is timed against.

The encoder is its residual network with mean pooling, the generators its denoising diffusion model and its one-pass network under the
sliced Wasserstein distance (arXiv 2505.18150). Sets are of equal size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


def network(n_in: int, width: int, n_out: int, layers: int) -> nn.Sequential:
    """``layers`` hidden layers with SELU."""
    parts: list[nn.Module] = [nn.Linear(n_in, width), nn.SELU()]
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), nn.SELU()]
    return nn.Sequential(*parts, nn.Linear(width, n_out))


class ResNetEncoder(nn.Module):
    """Blocks of ``h <- LayerNorm(MLP([h, mean h]) + h + W h)`` over a set, mean, linear map, SELU."""

    def __init__(self, d: int, n_embedding: int, width: int = 128, n_blocks: int = 2) -> None:
        super().__init__()
        self.first, self.first_skip = network(d, width, width, 2), nn.Linear(d, width)
        self.blocks = nn.ModuleList(network(2 * width, width, width, 2) for _ in range(n_blocks))
        self.skips = nn.ModuleList(nn.Linear(width, width) for _ in range(n_blocks))
        self.head = nn.Linear(width, n_embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Sets ``(K, M, d)`` to ``(K, n_embedding)``."""
        h = layer_norm(self.first(x) + self.first_skip(x), (self.head.in_features,))
        for block, skip in zip(self.blocks, self.skips, strict=True):
            pooled = h.mean(1, keepdim=True).expand_as(h)
            h = layer_norm(block(torch.cat([h, pooled], -1)) + h + skip(h), (self.head.in_features,))
        return torch.selu(self.head(h.mean(1)))


class Diffusion(nn.Module):
    """Noise prediction at one of 400 steps."""

    n_steps = 400

    def __init__(self, d: int, n_embedding: int, width: int = 128) -> None:
        super().__init__()
        self.network = network(d + n_embedding + 1, width, d, 4)
        beta = torch.linspace(1e-4, 0.02, self.n_steps + 1)
        self.register_buffer("kept", torch.cumprod(1 - beta, 0))

    def loss(self, x: Tensor, z: Tensor) -> Tensor:
        """Of sets ``(K, M, d)`` and codes ``(K, n_embedding)``."""
        t = torch.randint(1, self.n_steps + 1, (*x.shape[:2], 1))
        kept, noise = self.kept[t], torch.randn_like(x)
        here = kept.sqrt() * x + (1 - kept).sqrt() * noise
        codes = z[:, None].expand(-1, x.shape[1], -1)
        return (self.network(torch.cat([here, codes, t / self.n_steps], -1)) - noise).square().mean()

    @torch.no_grad()
    def sample(self, z: Tensor) -> Tensor:
        """One point for each code ``(n, n_embedding)``, by all steps."""
        x = torch.randn(len(z), self.network[-1].out_features)
        for t in range(self.n_steps, 0, -1):
            kept, before = self.kept[t], self.kept[t - 1]
            beta = 1 - kept / before
            time = torch.full((len(z), 1), t / self.n_steps)
            noise = self.network(torch.cat([x, z, time], -1))
            x = (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()
            if t > 1:
                x = x + beta.sqrt() * torch.randn_like(x)
        return x


class SlicedWasserstein(nn.Module):
    """One pass from noise, and the sliced Wasserstein distance over 100 directions."""

    def __init__(self, d: int, n_embedding: int, width: int = 128, n_directions: int = 100) -> None:
        super().__init__()
        self.network, self.n_directions = network(2 * n_embedding, width, d, 4), n_directions

    def loss(self, x: Tensor, z: Tensor) -> Tensor:
        """Of sets ``(K, M, d)`` and codes ``(K, n_embedding)``."""
        codes = z[:, None].expand(-1, x.shape[1], -1)
        made = self.network(torch.cat([codes, torch.randn_like(codes)], -1))
        directions = torch.randn(x.shape[2], self.n_directions)
        directions = directions / directions.norm(dim=0)
        a, b = ((points @ directions).sort(1).values for points in (made, x))
        return (a - b).square().mean()
