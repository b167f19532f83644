"""One-pass generators trained by a distance between generated and observed sets."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgde import ot
from scgde._networks import mlp
from scgde._segments import count_segments, is_even, matmul_by_set, pad_sets, segment_mean
from scgde.generators.base import Generator

if TYPE_CHECKING:
    from collections.abc import Callable


class DirectGenerator(Generator):
    """Noise to cells in one pass: an affine map that starts as the identity, plus a network that starts at zero.

    The affine map depends on the condition, linearly: that spread changes from population to population is a product of
    noise and condition, which a network of sums learns slowly.

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    """

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.skip = nn.Linear(n_latent, n_latent, bias=False)
        # noise beyond the width of a cell lets one pass choose among clusters
        self.n_extra = 4
        self.network = mlp(n_latent + self.n_extra + n_condition, n_hidden, n_latent, zero=True)
        self.modulation = nn.Linear(n_condition, n_latent * (n_latent + 1), bias=False)
        with torch.no_grad():
            self.skip.weight.copy_(torch.eye(n_latent))
            self.modulation.weight.zero_()

    def learning_rate_factor(self, name: str) -> float:
        # a step changes it by as many entries as the condition has
        return 0.2 if name.startswith("modulation.") else 1.0

    @property
    def n_noise(self) -> int:
        return self.n_latent + self.n_extra

    def push(self, noise: Tensor, condition: Tensor) -> Tensor:
        return self.push_sets(noise, condition, torch.arange(len(noise), device=noise.device))

    def push_sets(self, noise: Tensor, condition: Tensor, segment: Tensor) -> Tensor:
        """The same with one condition for each set, ``(n_sets, n_condition)``: its affine map is computed once."""
        straight = noise[:, : self.n_latent]
        change = self.modulation(condition).unflatten(1, (self.n_latent, self.n_latent + 1))
        affine = self.skip(straight) + matmul_by_set(straight, change[:, :, 1:].mT, segment) + change[:, :, 0][segment]
        return affine + self.network(torch.cat([noise, condition[segment]], dim=1))


class SetLossGenerator(DirectGenerator):
    """A one-pass generator trained by a distance between sets: as many cells are generated for each set as it has."""

    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n_sets = count_segments(segment)
        # all cells of a set have one condition
        first = torch.zeros(n_sets, dtype=torch.long, device=segment.device)
        first[segment.flip(0)] = torch.arange(len(segment) - 1, -1, -1, device=segment.device)
        noise = torch.randn((len(y), self.n_noise), generator=generator, dtype=y.dtype, device=y.device)
        generated = self.push_sets(noise, condition[first], segment)
        return self.distance(generated, y, segment, n_sets, generator)[segment]

    @abstractmethod
    def distance(
        self, x: Tensor, y: Tensor, segment: Tensor, n_sets: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Discrepancy of generated ``x`` and observed ``y``, each ``(cells, n_latent)``, set by set: ``(n_sets,)``."""


class SlicedWassersteinGenerator(SetLossGenerator):
    """Squared sliced Wasserstein distance over random directions, drawn anew at each step (Bonneel et al. 2015).

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    n_directions
        Directions at each step.
    """

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128, n_directions: int = 64) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.n_directions = n_directions

    def distance(
        self, x: Tensor, y: Tensor, segment: Tensor, n_sets: int, generator: torch.Generator | None = None
    ) -> Tensor:
        directions = torch.randn(
            (self.n_latent, self.n_directions), generator=generator, dtype=y.dtype, device=y.device
        )
        directions = directions / directions.norm(dim=0)
        a, b = (sort_within(points @ directions, segment) for points in (x, y))
        codes = segment.sort(stable=True).values
        return segment_mean((a - b).square().mean(1, keepdim=True), codes, n_sets)[:, 0]


class EnergyGenerator(SetLossGenerator):
    """Energy distance (Székely and Rizzo 2013), without the bias of pairs of a cell with itself."""

    def distance(
        self, x: Tensor, y: Tensor, segment: Tensor, n_sets: int, generator: torch.Generator | None = None
    ) -> Tensor:
        def kernel(squared: Tensor) -> Tensor:
            # the square root has no gradient at zero
            return -(squared + 1e-8).sqrt()

        return kernel_discrepancy(x, y, segment, kernel)


class MMDGenerator(SetLossGenerator):
    """Squared maximum mean discrepancy (Gretton et al. 2012), unbiased, summed over Gaussian kernels of five widths.

    In a population's frame cells have unit variance, so that the median distance between them is about the square root of
    twice the dimension; widths go from a quarter of it to four times it.
    """

    def distance(
        self, x: Tensor, y: Tensor, segment: Tensor, n_sets: int, generator: torch.Generator | None = None
    ) -> Tensor:
        def kernel(squared: Tensor) -> Tensor:
            unit = squared / (2.0 * self.n_latent)
            return torch.stack([torch.exp(-unit / (2 * factor**2)) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]).sum(0)

        return kernel_discrepancy(x, y, segment, kernel)


class SinkhornGenerator(SetLossGenerator):
    """Debiased Sinkhorn divergence (Genevay et al. 2018; Feydy et al. 2019) of the squared distance.

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    blur
        Regularisation as a length, in units of a cell's standard deviation in the frame of its population.
    """

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128, blur: float = 0.3) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.blur = blur

    def distance(
        self, x: Tensor, y: Tensor, segment: Tensor, n_sets: int, generator: torch.Generator | None = None
    ) -> Tensor:
        index, present = pad_sets(segment)
        weights = present.to(y.dtype)
        divergence = ot.sinkhorn_divergence(
            x[index], y[index], weights_x=weights, weights_y=weights, blur=self.blur, tolerance=0.02, squared=True
        )
        return divergence / self.n_latent


def sort_within(values: Tensor, segment: Tensor) -> Tensor:
    """Sort every column of ``values`` ``(cells, F)`` within each set; sets come in the order of their codes."""
    n_sets = count_segments(segment)
    if is_even(segment, n_sets):
        index, present = pad_sets(segment, n_sets)
        padded = values[index].masked_fill(~present[..., None], torch.inf)
        # sets that end early have their padding, which is largest, last
        return padded.mT.contiguous().sort(dim=2).values.mT[present]
    values, order = values.sort(dim=0)
    by_set = segment[order].sort(dim=0, stable=True).indices
    return values.gather(0, by_set)


def kernel_discrepancy(x: Tensor, y: Tensor, segment: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """Unbiased squared discrepancy under a kernel of squared distances, set by set, less the term of ``y`` alone.

    The term left out does not depend on the generator. Sets of one cell have none of their own; they give zero.
    """
    index, present = pad_sets(segment)
    a, b = x[index], y[index]
    both = present[:, :, None] & present[:, None, :]
    n = present.sum(1).to(x.dtype)
    cross = (kernel(squared_distances(a, b)) * both).sum((1, 2)) / n.square()
    apart = both & ~torch.eye(index.shape[1], dtype=torch.bool, device=x.device)
    own = (kernel(squared_distances(a, a)) * apart).sum((1, 2)) / (n * (n - 1)).clamp_min(1)
    return (own - 2 * cross) * (n > 1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``(sets, n, m)`` of points ``(sets, n, d)`` and ``(sets, m, d)``."""
    cross = a @ b.mT
    return (a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None, :] - 2 * cross).clamp_min(0)
