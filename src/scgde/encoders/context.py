"""Encoders of the paper's form: cells that see their population's pooled context, layer by layer."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgde._networks import mlp
from scgde._segments import count_segments, segment_mean
from scgde.encoders.base import SetEncoder

if TYPE_CHECKING:
    from scgde.moments import PopulationMoments


class DeepSetEncoder(SetEncoder):
    """Cells to hidden states, layers that mix them within a set, a mean and a linear head.

    Subclasses say how a layer mixes. Everything of a cell is normalised by itself (LayerNorm), nothing across cells or sets,
    and pooling sees weights, so that the encoder is distributionally invariant. The head is linear: a squashing one would
    bend distances.
    """

    centre: Tensor
    scale: Tensor
    z_scale: Tensor

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128) -> None:
        super().__init__(n_latent, n_embedding)
        self.lift = nn.Linear(n_latent, n_hidden)
        self.head = nn.Linear(n_hidden, n_embedding, bias=False)
        self.register_buffer("centre", torch.zeros(n_latent))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("z_scale", torch.ones(()))

    @abstractmethod
    def mix(self, h: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        """Hidden states after all layers, ``(cells, n_hidden)``."""

    def forward(self, u: Tensor, segment: Tensor, weight: Tensor | None = None, n_sets: int | None = None) -> Tensor:
        n_sets = count_segments(segment) if n_sets is None else n_sets
        h = self.lift((u - self.centre) / self.scale)
        h = self.mix(h, segment, n_sets, weight)
        return self.head(segment_mean(h, segment, n_sets, weight)) * self.z_scale

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        self.centre.copy_(u.mean(0))
        self.scale.copy_((u - self.centre).square().mean().sqrt().clamp_min(1e-6))
        # start with the spread between populations that their means have, so that distances are in units of u
        z = self.in_blocks(u, segment, moments.mean.shape[0])
        spread_z, spread_u = ((a - a.mean(0)).square().sum(1).mean().sqrt() for a in (z, moments.mean))
        self.z_scale.mul_(spread_u.clamp_min(1e-6) / spread_z.clamp_min(1e-6))


class MeanPoolEncoder(DeepSetEncoder):
    """Deep sets with a pooled context: each layer shows every cell the mean of its set ("GNN" in the GDE paper).

    Parameters
    ----------
    n_latent, n_embedding, n_hidden
        See :class:`~scgde.encoders.SetEncoder`.
    n_layers
        Number of mixing layers.
    """

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_layers: int = 2) -> None:
        super().__init__(n_latent, n_embedding, n_hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(n_hidden) for _ in range(n_layers))
        self.layers = nn.ModuleList(mlp(2 * n_hidden, n_hidden, n_hidden, n_layers=1) for _ in range(n_layers))

    def mix(self, h: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            normed = norm(h)
            context = self.pool(normed, segment, n_sets, weight)
            h = h + layer(torch.cat([normed, context[segment]], dim=1))
        return h

    def pool(self, h: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        """Context of each set, ``(n_sets, n_hidden)``."""
        return segment_mean(h, segment, n_sets, weight)


class MedianPoolEncoder(MeanPoolEncoder):
    r"""Deep sets whose context is a smoothed median, which a few outlying cells cannot move far.

    The median of a set along a feature is smoothed by a logistic kernel of width ``bandwidth``: the root ``m`` of
    :math:`\sum_j w_j\,\sigma((m - x_j) / b) = 1/2`. Unlike the sample median it has an influence function at every law, so that
    standard errors exist. The last pooling is a mean, as in the paper.

    Parameters
    ----------
    n_latent, n_embedding, n_hidden, n_layers
        See :class:`MeanPoolEncoder`.
    bandwidth
        Width of the kernel, in units of a layer-normalised feature.
    """

    def __init__(
        self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_layers: int = 2, bandwidth: float = 0.2
    ) -> None:
        super().__init__(n_latent, n_embedding, n_hidden, n_layers)
        self.bandwidth = bandwidth

    def pool(self, h: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        return smoothed_median(h, segment, n_sets, weight, self.bandwidth)


def smoothed_median(x: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None, bandwidth: float) -> Tensor:
    """Smoothed median of each column of each set, ``(cells, F)`` to ``(n_sets, F)``; see :class:`MedianPoolEncoder`.

    Differentiable by points and weights: the root is found without a graph, and one Newton step from it, whose derivative
    is that of the implicit function, carries the gradient.
    """

    def excess(m: Tensor, points: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid((m[segment] - points) / bandwidth)
        slope = segment_mean((share * (1 - share)).detach() / bandwidth, segment, n_sets, w)
        return segment_mean(share, segment, n_sets, w) - 0.5, slope

    with torch.no_grad():
        fixed = None if weight is None else weight.detach()
        rows = segment[:, None].expand_as(x)
        empty = x.new_zeros((n_sets, x.shape[1]))
        low = empty.scatter_reduce(0, rows, x.detach(), "amin", include_self=False)
        high = empty.scatter_reduce(0, rows, x.detach(), "amax", include_self=False)
        for _ in range(18):  # halvings to 1e-5 of the range; Newton's method then doubles the digits
            middle = 0.5 * (low + high)
            above = excess(middle, x.detach(), fixed)[0] > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        m = 0.5 * (low + high)
        for _ in range(2):
            value, slope = excess(m, x.detach(), fixed)
            m = torch.minimum(torch.maximum(m - value / slope.clamp_min(1e-6), low), high)
    value, slope = excess(m, x, weight)
    return m - value / slope.detach().clamp_min(1e-6)
