"""Moments, and the shape of a population in its own frame: for populations of several clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgde._segments import normalised_weights, segment_mean
from scgde.encoders._axes import ReliableAxes, halves, sets_without_labels
from scgde.encoders.base import GatedEncoder
from scgde.encoders.residual import N_SETS, SET_SIZE, ResidualEncoder
from scgde.moments import moment_features
from scgde.ot import sqrtm_psd

if TYPE_CHECKING:
    from scgde.moments import PopulationMoments
    from scgde.spectrum import SpectrumShrinkage

SHAPE_SHARE = 0.03
"""Spread of all coordinates of shape over that of the moments: generators whiten embeddings and see it, distances do not."""

_CELLS_PER_BLOCK = 2**14
_MAX_POPULATIONS = 4096


class ShapeEncoder(GatedEncoder):
    r"""Coordinates of the default encoder, then coordinates of shape that generators read.

    Cells are centred and whitened by their population's own moments, :math:`y`, and averaged under waves
    :math:`\cos(s\,\omega^\top y), \sin(s\,\omega^\top y)` along fixed random directions :math:`\omega` at three lengths :math:`s`: values of the
    characteristic functions of one-dimensional projections (compare Rahimi and Recht 2007). Their principal axes over training
    populations, scaled by the square root of their reliability, are the coordinates. What a normal population of the same moments
    would have is nearly constant, so that clusters, skewness and tails stand out, wherever a population lies.

    Distances are those of the default encoder up to a thousandth. A generator has the shape before it, where it would have to find a
    pooling that shows it first.

    Parameters
    ----------
    n_latent, n_embedding, n_hidden
        See :class:`~scgde.encoders.SetEncoder`. Half of the coordinates at least are of shape.
    n_waves
        Number of waves.
    """

    waves: Tensor
    centre: Tensor
    axes: Tensor

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_waves: int = 256) -> None:
        super().__init__(n_latent, n_embedding)
        n_moments = min(n_latent + n_latent * (n_latent + 1) // 2, max(n_embedding // 2, 1))
        self.moments = ResidualEncoder(n_latent, n_moments, n_hidden)
        # few cells have shapes far from those of training sets, and no spread must be read off them
        self.n_read = n_moments
        waves = torch.randn((n_latent, n_waves), generator=torch.Generator().manual_seed(0))
        length = torch.tensor([1.0, 2.0, 4.0]).repeat(-(-n_waves // 3))[:n_waves]
        self.register_buffer("waves", waves / waves.norm(dim=0) * length)
        self.register_buffer("centre", torch.zeros(2 * n_waves))
        self.register_buffer("axes", torch.eye(2 * n_waves, n_embedding - n_moments) * SHAPE_SHARE)

    @property
    def gate(self) -> Tensor:
        return self.moments.gate

    @property
    def is_closed(self) -> bool:
        return self.moments.is_closed

    def close(self) -> None:
        self.moments.close()

    def learning_rate_factor(self, name: str) -> float:
        return self.moments.learning_rate_factor(name.removeprefix("moments."))

    def straight_and_correction(
        self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        straight, correction = self.moments.straight_and_correction(u, segment, weight, n_sets)
        shape = (self.pooled_waves(u, segment, weight, n_sets) - self.centre) @ self.axes
        return torch.cat([straight, shape], dim=1), nn.functional.pad(correction, (0, shape.shape[1]))

    def pooled_waves(self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int) -> Tensor:
        """Means of the waves over the whitened cells of each set, ``(n_sets, 2 n_waves)``."""
        moments = segment_mean(moment_features(u.double()), segment, n_sets, weight)
        mean, cov = self.moments.mean_and_cov(moments)
        inverse = torch.linalg.inv(sqrtm_psd(cov))
        share = normalised_weights(segment, n_sets, weight, torch.float64)
        pooled = torch.zeros((n_sets, 2 * self.waves.shape[1]), dtype=torch.float64, device=u.device)
        # in blocks: a matrix for every cell of a data set would fill memory
        for rows in torch.arange(len(u), device=u.device).split(_CELLS_PER_BLOCK):
            codes = segment[rows]
            y = torch.einsum("nij,nj->ni", inverse[codes], u[rows].double() - mean[codes])
            phase = y.to(u.dtype) @ self.waves
            waves = torch.cat([phase.cos(), phase.sin()], dim=1).double()
            pooled = pooled.index_add(0, codes, waves * share[rows, None])
        return pooled.to(u.dtype)

    def delete_one(self, u: Tensor, segment: Tensor, n_sets: int) -> Tensor:
        """Deletion for the coordinates of moments; for those of shape the influence to first order.

        Their bias is not removed: the shape of three cells in their own frame says nothing that extrapolates.
        """
        n = torch.bincount(segment, minlength=n_sets).to(u.dtype)[segment][:, None]
        z, psi = self.influence(u, segment, n_sets)
        shape = (z[segment] - psi / (n - 1))[:, self.n_read :]
        return torch.cat([self.moments.delete_one(u, segment, n_sets), shape], dim=1)

    def pass_cost(self, sizes: Tensor) -> Tensor:
        return sizes * (8 * self.waves.shape[1])

    def shrinkage(self) -> SpectrumShrinkage:
        return self.moments.shrinkage()

    def inverse(self) -> Tensor:
        return nn.functional.pad(self.moments.inverse(), (0, self.axes.shape[1]))

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        self.moments.fit(u, segment, moments, set_size)
        used = segment < _MAX_POPULATIONS
        u, segment = u[used], segment[used]
        split = halves(segment, set_size)
        if split is None or not self.axes.shape[1]:  # no population can be split, or one coordinate is all there is
            return
        a, b = (self._waves_of(u[rows], segment[rows]).double() for rows in split[0])
        centre = (a + b).mean(0) / 2
        n_axes = self.axes.shape[1]
        rows, sets = sets_without_labels(u, N_SETS, SET_SIZE)
        free = self._waves_of(u[rows], sets).double()
        axes = ReliableAxes.fit(free, a - centre, b - centre, [(0, len(centre), n_axes, 0.0)], split[1])
        scores = torch.cat([a - centre, b - centre]) @ axes.basis
        deviation = scores.square().mean(0).sqrt()
        # coordinates of like spread, less so the less reliable they are
        gain = axes.gain / deviation.clamp_min(1e-3 * deviation.max().clamp_min(1e-9))
        gain = gain * (SHAPE_SHARE * self.moments.scale / axes.gain.square().sum().sqrt().clamp_min(1e-9))
        self.centre.copy_(centre)
        self.axes.copy_(axes.basis * gain)

    def _waves_of(self, u: Tensor, segment: Tensor) -> Tensor:
        present, codes = torch.unique(segment, return_inverse=True)
        return self.pooled_waves(u, codes, None, len(present))
