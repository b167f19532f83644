"""Conditional flow matching with optimal-transport coupling inside each set."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from scgde._networks import mlp, with_trace
from scgde.generators.base import Generator

MAX_COUPLED = 256
"""Cells of a set that are assigned to noise at once, at most."""


class FlowGenerator(Generator):
    """A velocity field that carries a standard normal to a population, trained by flow matching.

    Lipman et al. 2023 (arXiv 2210.02747), with the noise of each set matched to its cells by exact optimal transport
    (Tong et al. 2024, arXiv 2302.00482): paths are then nearly straight, few steps suffice, and the map between two
    populations is close to an optimal-transport map.

    Cells arrive centred and whitened, so the velocity is that of a standard normal population, known but for one number
    (how closely noise is matched to cells), plus a network whose last layer starts at zero. An untrained flow thus keeps
    a standard normal, and training is left with the shape of populations.

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    n_steps
        Midpoint steps of the integration, two evaluations each.
    """

    can_invert = True

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128, n_steps: int = 8) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.n_steps = n_steps
        self.velocity_net = mlp(n_latent + n_condition + 3, n_hidden, n_latent, zero=True)
        self.mismatch_logit = nn.Parameter(torch.zeros(()))

    def velocity(self, y: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity at ``y`` ``(cells, n_latent)`` and time ``t`` ``(cells, 1)``."""
        return self._normal_rate(t) * y + self.velocity_net(self._inputs(y, t, condition))

    def _velocity_and_trace(self, y: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity and the trace of its Jacobian in ``y``, ``(cells,)``."""
        residual, trace = with_trace(self.velocity_net, self._inputs(y, t, condition))
        rate = self._normal_rate(t)
        return rate * y + residual, self.n_latent * rate[:, 0] + trace

    def _normal_rate(self, t: Tensor) -> Tensor:
        # the best velocity where cells and their noise are standard normal with correlation 1 - mismatch
        mismatch = torch.sigmoid(self.mismatch_logit)
        return (2 * t - 1) * mismatch / (1 - 2 * t * (1 - t) * mismatch)

    @staticmethod
    def _inputs(y: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return torch.cat([y, condition, t, torch.cos(torch.pi * t), torch.sin(torch.pi * t)], dim=1)

    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
        noise = couple(noise, y, segment)
        t = torch.rand((y.shape[0], 1), generator=generator, dtype=y.dtype, device=y.device)
        predicted = self.velocity((1 - t) * noise + t * y, t, condition)
        return (predicted - (y - noise)).square().mean(dim=1)

    def push(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self._integrate(noise, condition, 0.0, 1.0)

    def invert(self, y: Tensor, condition: Tensor) -> Tensor:
        return self._integrate(y, condition, 1.0, 0.0)

    def log_prob(
        self, y: Tensor, condition: Tensor, *, n_samples: int = 64, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Log density at ``y``, ``(cells,)``; see :meth:`Generator.log_prob`. Nothing is drawn.

        Along the flow :math:`\frac{d}{dt} \log p(y_t) = -\mathrm{tr}\, \nabla v(y_t, t)` (Chen et al. 2018, arXiv
        1806.07366, equation 8). The exact trace is integrated with the cell by the same midpoint steps, from ``y`` back
        to its noise, whose density is normal.
        """
        log_det = y.new_zeros(len(y))
        with torch.no_grad():
            for start, step in self._steps(1.0, 0.0):
                here = torch.full_like(y[:, :1], start)
                half = y + 0.5 * step * self.velocity(y, here, condition)
                velocity, trace = self._velocity_and_trace(half, here + 0.5 * step, condition)
                y = y + step * velocity
                log_det += step * trace
        return log_det - 0.5 * (y.square() + math.log(2 * math.pi)).sum(1)

    def _integrate(self, y: Tensor, condition: Tensor, begin: float, finish: float) -> Tensor:
        for start, step in self._steps(begin, finish):
            here = torch.full_like(y[:, :1], start)
            half = y + 0.5 * step * self.velocity(y, here, condition)
            y = y + step * self.velocity(half, here + 0.5 * step, condition)
        return y

    def _steps(self, begin: float, finish: float) -> list[tuple[float, float]]:
        """Start and signed length of each step."""
        grid = torch.linspace(begin, finish, self.n_steps + 1).tolist()
        return [(start, end - start) for start, end in zip(grid[:-1], grid[1:], strict=True)]


def couple(noise: Tensor, y: Tensor, segment: Tensor) -> Tensor:
    """Reorder ``noise`` within each set so that its total squared distance to ``y`` is least.

    Rows of a set need not be adjacent. The assignment carries no gradient. Its cost is cubic in the size of a set, so that
    large sets are coupled in parts of at most ``MAX_COUPLED`` cells; any coupling teaches the right law.
    """
    codes = segment.cpu().numpy()
    order = np.argsort(codes, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    targets, sources = y.detach().cpu().numpy(), noise.detach().cpu().numpy()
    matched = np.empty(len(codes), dtype=np.int64)
    for rows in (part for s in sets for part in np.array_split(s, max(-(-len(s) // MAX_COUPLED), 1))):
        # the squared norms are the same for every assignment: the inner product alone decides
        gain = targets[rows] @ sources[rows].T
        matched[rows] = rows[linear_sum_assignment(gain, maximize=True)[1]]
    return noise[torch.from_numpy(matched).to(noise.device)]
