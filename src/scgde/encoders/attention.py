"""Set encoders by attention: among all cells of a set, or through a few inducing points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from scgde._networks import mlp
from scgde._segments import normalised_weights, pad_sets
from scgde.encoders.context import DeepSetEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

_PER_PASS = {1: 2**17, 2: 2**24}
"""Padded cells, or pairs of cells, in a pass at most."""


class AttentionEncoder(DeepSetEncoder):
    """Self-attention among the cells of a set, without positions, and a mean head.

    A cell attends to another in proportion to its weight times the exponential of their score, so that duplicating cells
    changes nothing. Time grows with the square of a set's size: for sets of thousands of cells use
    :class:`InducedAttentionEncoder`.

    Parameters
    ----------
    n_latent, n_embedding, n_hidden
        See :class:`~scgde.encoders.SetEncoder`.
    n_layers, n_heads
        Number of layers and of heads in each; ``n_hidden`` must be a multiple of ``n_heads``.
    """

    def __init__(
        self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_layers: int = 2, n_heads: int = 4
    ) -> None:
        super().__init__(n_latent, n_embedding, n_hidden)
        if n_hidden % n_heads:
            message = f"n_hidden={n_hidden} must be a multiple of the {n_heads} heads of attention."
            raise ValueError(message)
        self.n_heads = n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(n_hidden) for _ in range(2 * n_layers))
        self.projections = nn.ModuleList(nn.Linear(n_hidden, 3 * n_hidden) for _ in range(n_layers))
        self.outputs = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_layers))
        self.networks = nn.ModuleList(mlp(n_hidden, n_hidden, n_hidden, n_layers=1) for _ in range(n_layers))

    def mix(self, h: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        for i, (project, out, network) in enumerate(zip(self.projections, self.outputs, self.networks, strict=True)):
            q, k, v = project(self.norms[2 * i](h)).chunk(3, dim=1)
            h = h + out(self.attend(q, k, v, segment, n_sets, weight))
            h = h + network(self.norms[2 * i + 1](h))
        return h

    def pass_cost(self, sizes: Tensor) -> Tensor:
        return sizes.square() * (2 * self.n_heads * len(self.outputs))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        """Attention within every set, ``(cells, n_hidden)``."""
        pieces = []
        for rows in _groups_of_sets(segment, n_sets, 2):
            _, codes = torch.unique(segment[rows], return_inverse=True)
            index, present = pad_sets(codes)

            def heads(x: Tensor, rows: Tensor = rows, index: Tensor = index) -> Tensor:
                return x[rows][index].unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

            if weight is None:
                mixed = scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=present[:, None, None, :])
            else:
                mixed = weighted_attention(heads(q), heads(k), heads(v), weight[rows][index] * present)
            pieces.append((rows[index[present]], mixed.transpose(1, 2).flatten(2)[present]))
        order = torch.cat([rows for rows, _ in pieces])
        return torch.empty_like(q).index_copy(0, order, torch.cat([mixed for _, mixed in pieces]))


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Attention ``(sets, heads, cells, width)`` in which a cell counts by its weight, ``(sets, cells)``.

    Weights multiply; as logarithms added to scores they would have no derivative at zero.
    """
    scores = q @ k.mT * q.shape[-1] ** -0.5
    # cells of weight zero must not set the scale, or all others could underflow
    top = scores.detach().masked_fill(weight[:, None, None, :] == 0, -torch.inf).amax(-1, keepdim=True)
    mass = (scores - top.clamp_min(-1e30)).clamp_max(50.0).exp() * weight[:, None, None, :]
    return mass @ v / mass.sum(-1, keepdim=True).clamp_min(1e-30)


class InducedAttentionEncoder(DeepSetEncoder):
    """Attention through inducing points (Lee et al. 2019, arXiv 1810.00825): cost linear in a set's size.

    Learned queries gather summaries of a set, each a weighted mean of its cells, and every cell then attends to the
    summaries.

    Parameters
    ----------
    n_latent, n_embedding, n_hidden, n_layers, n_heads
        See :class:`AttentionEncoder`.
    n_points
        Number of inducing points.
    """

    def __init__(
        self,
        n_latent: int,
        n_embedding: int,
        n_hidden: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        n_points: int = 16,
    ) -> None:
        super().__init__(n_latent, n_embedding, n_hidden)
        if n_hidden % n_heads:
            message = f"n_hidden={n_hidden} must be a multiple of the {n_heads} heads of attention."
            raise ValueError(message)
        self.n_heads = n_heads
        self.points = nn.ParameterList(torch.randn(n_points, n_hidden) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(n_hidden) for _ in range(2 * n_layers))
        self.gathers = nn.ModuleList(nn.Linear(n_hidden, 2 * n_hidden) for _ in range(n_layers))
        self.queries = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_layers))
        self.returns = nn.ModuleList(nn.Linear(n_hidden, 2 * n_hidden) for _ in range(n_layers))
        self.outputs = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(n_layers))
        self.networks = nn.ModuleList(mlp(n_hidden, n_hidden, n_hidden, n_layers=1) for _ in range(n_layers))

    def mix(self, h: Tensor, segment: Tensor, n_sets: int, weight: Tensor | None) -> Tensor:
        share = normalised_weights(segment, n_sets, weight, torch.float64)
        pieces = []
        for rows in _groups_of_sets(segment, n_sets, 1):
            _, codes = torch.unique(segment[rows], return_inverse=True)
            index, present = pad_sets(codes)
            mixed = self._mix_padded(h[rows][index], share[rows][index] * present)
            pieces.append((rows[index[present]], mixed[present]))
        order = torch.cat([rows for rows, _ in pieces])
        return torch.empty_like(h).index_copy(0, order, torch.cat([mixed for _, mixed in pieces]))

    def _mix_padded(self, h: Tensor, share: Tensor) -> Tensor:
        """Hidden states ``(sets, cells, n_hidden)`` after all layers; ``share`` ``(sets, cells)`` is zero where a set has ended."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)

        for i, network in enumerate(self.networks):
            normed = self.norms[2 * i](h)
            keys, values = (heads(x) for x in self.gathers[i](normed).chunk(2, dim=-1))
            summary = self._gather(heads(self.points[i]), keys, values, share)
            back_keys, back_values = (heads(x) for x in self.returns[i](summary).chunk(2, dim=-1))
            mixed = scaled_dot_product_attention(heads(self.queries[i](normed)), back_keys, back_values)
            h = h + self.outputs[i](mixed.transpose(1, 2).flatten(2))
            h = h + network(self.norms[2 * i + 1](h))
        return h

    @staticmethod
    def _gather(points: Tensor, keys: Tensor, values: Tensor, share: Tensor) -> Tensor:
        """Summaries ``(sets, n_points, n_hidden)``: means of values weighted by share times exponential score."""
        scores = points @ keys.mT * keys.shape[-1] ** -0.5
        absent = share[:, None, None, :] == 0
        # subtract each set's largest score: softmax over a set without overflow
        top = scores.detach().masked_fill(absent, -torch.inf).amax(-1, keepdim=True).clamp_min(-1e30)
        # sums in double precision, as for every mean of a set
        mass = (scores - top).clamp_max(50.0).exp().double() * share[:, None, None, :]
        summary = mass @ values.double() / mass.sum(-1, keepdim=True).clamp_min(1e-300)
        return summary.to(values.dtype).transpose(1, 2).flatten(2)


def _groups_of_sets(segment: Tensor, n_sets: int, power: int) -> Iterator[Tensor]:
    """Rows of the sets, in groups of sets of like size that fit a pass, where a set's cost is its size to a power."""
    sizes = torch.bincount(segment, minlength=n_sets)
    by_size = torch.argsort(sizes, descending=True)
    place = torch.empty_like(by_size)
    place[by_size] = torch.arange(n_sets, device=segment.device)
    rows = torch.argsort(place[segment], stable=True)
    ordered = sizes[by_size].tolist()
    start_row = start = 0
    while start < n_sets and ordered[start] > 0:
        count = max(_PER_PASS[power] // ordered[start] ** power, 1)
        group = [n for n in ordered[start : start + count] if n > 0]
        yield rows[start_row : start_row + sum(group)]
        start_row += sum(group)
        start += len(group)
