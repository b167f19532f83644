"""Continuous rows (principal components, markers, features): the identity after standardising."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Normal

from scgde.observations.base import Context, ObservationModel

if TYPE_CHECKING:
    from torch.distributions import Distribution


class ContinuousModel(ObservationModel):
    """The row itself is the latent, centred and divided by one common scale: the GDE of the paper, in data space.

    One scale for all columns, and not one for each: distances between populations then are those of the data up to
    that number, and columns of little spread (late principal components) stay little.

    Parameters
    ----------
    n_vars
        Width of a row, and of the latent.
    """

    is_learned = False
    is_count = False
    centre: Tensor
    scale: Tensor

    def __init__(self, n_vars: int) -> None:
        super().__init__(n_vars)
        self.register_buffer("centre", torch.zeros(n_vars))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, mean: Tensor, variance: Tensor, size_factor_gain: float) -> None:
        self.centre.copy_(mean)
        self.scale.copy_(variance.mean().sqrt().clamp_min(1e-12))

    @property
    def n_components(self) -> int:
        return self.n_latent

    def components(self, x: Tensor) -> Tensor:
        return self.encode(x)[0]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = (x - self.centre) / self.scale
        return u, torch.zeros_like(u)

    def decode(self, u: Tensor, context: Context) -> Distribution:
        # no observation noise: the generator models the whole spread of the rows
        return Normal(u * self.scale + self.centre, 1e-6 * self.scale)

    def draw(self, law: Distribution, generator: torch.Generator) -> Tensor:
        return law.mean
