r"""Roots of shrunk covariances without one cell, from those of the whole set.

Without cell j the covariance of a set of n cells is :math:`\frac{n}{n-1} \Sigma - \frac{n}{(n-1)^2} c_j c_j^\top`, where
:math:`c_j` is the cell less the mean: a multiple of that of the set, less a product of one vector. That takes no
eigendecomposition for each cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from scgde.ot import sqrtm_psd

if TYPE_CHECKING:
    from torch import Tensor

    from scgde.spectrum import SpectrumShrinkage

MOST_LEVERAGE = 0.6
"""Share of the spread along its own direction that a cell makes up at most. Beyond, the iteration converges slowly, and takes as
long as an eigendecomposition does."""

LEAST_SPREAD = 1e-5
"""Least variance of an axis of a set, relative to that of the largest: less is lost in rounding."""

LEAST_LEFT = 1e-3
"""Share of that spread that must be left without the cell for its change to be accurate to :data:`TOLERANCE`."""

MIN_CELLS_PER_AXIS, MIN_CELLS = 2, (16, 64)
"""Sets of fewer cells than so many for each axis, within limits, gain nothing: most of their cells are beyond that share."""

TOLERANCE = 1e-4
"""Error of a change of a root, relative to its size."""

NUMBERS_PER_BLOCK = 2**16
"""Entries of roots that are changed at once: they should stay in the processor's cache."""


@dataclass(frozen=True)
class RationalPower:
    r"""The power :math:`x^p`, :math:`0 < p < 1`, as a constant and :math:`s x + \sum_q w_q / (x + t_q)` on an interval from one.

    Such a function of a matrix less a product of one vector is in closed form (Sherman and Morrison).
    """

    slope: float
    weights: Tensor
    poles: Tensor

    @classmethod
    @lru_cache(maxsize=64)
    def fit(cls, power: float, decades: int) -> RationalPower:
        """Least squares of the derivative, relative to its size, up to ``10**decades``: errors are about 1e-4."""
        largest = 10.0**decades
        poles = np.geomspace(0.2, 5 * largest, 2 + math.ceil(math.log(25 * largest, 4)))
        x = np.geomspace(1.0, largest, 40 * len(poles))[:, None]
        size = poles ** (1 + power)  # columns of like size
        columns = np.concatenate([np.ones_like(x), -size / (x + poles) ** 2], axis=1) / (power * x ** (power - 1))
        found = np.linalg.lstsq(columns, np.ones(len(x)), rcond=1e-12)[0]
        return cls(float(found[0]), torch.from_numpy(found[1:] * size), torch.from_numpy(poles))


class DeletedRoots:
    r"""Roots of the shrunk covariances of K sets, and their changes when one cell is left out.

    Powers of covariances in units of the pooled one are found in closed form (:class:`RationalPower`). Where they are drawn
    together, the root of the result is another function of another matrix: the change E of a root X whose square changes
    by D solves :math:`X E + E X = D - E^2`, which is iterated in the eigenbasis of X.

    Parameters
    ----------
    n
        Numbers of cells, two or more, ``(K,)``.
    cov
        Covariances with divisor n, ``(K, d, d)``.
    added
        What is added to every covariance, ``(d, d)``.
    spectrum
        How they are shrunk.

    Attributes
    ----------
    roots, frame
        Eigenvalues ``(K, d)`` and eigenvectors ``(K, d, d)`` of the roots from which changes are counted.
    regular
        Sets with spread along all axes, ``(K,)``; changes of the others are not accurate.
    """

    def __init__(self, n: Tensor, cov: Tensor, added: Tensor, spectrum: SpectrumShrinkage) -> None:
        n, cov = n.double(), cov.double()
        self.share = float(spectrum.share)
        self.power = 1 - self.share if self.share else 0.5
        eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        outer, inner = (spectrum.root.double(), spectrum.inverse_root.double()) if self.share else (eye, eye)
        inflated = (n / (n - 1))[:, None, None] * cov + added.double()
        self.removed = n / (n - 1).square()
        # cells times `into` are in the axes of the covariance
        self.values, axes = torch.linalg.eigh(inner @ inflated @ inner)
        self.into = inner @ axes
        self.regular = self.values[:, 0] > LEAST_SPREAD * self.values[:, -1]
        if not self.share:
            self.roots, self.frame = self.values.clamp_min(0.0).sqrt(), axes
            return
        self.level = self.values.mean(1) ** self.share
        # without one cell there is as much spread on average as with all
        self.start = (n - 1) / n
        out_of = outer @ axes
        whole = (out_of * self.values.clamp_min(0.0)[:, None] ** self.power) @ out_of.mT
        squares, self.frame = torch.linalg.eigh(whole * (self.level * self.start)[:, None, None])
        self.regular &= squares[:, 0] > LEAST_SPREAD * squares[:, -1]
        self.roots = squares.clamp_min(0.0).sqrt()
        self.turn = self.frame.mT @ out_of

    def changes(self, sets: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of the roots of some sets without each of their cells.

        Parameters
        ----------
        sets
            Which sets, all regular, ``(S,)``.
        centred
            Their cells, less the mean of their set, ``(S, n, d)``; zeros where there are fewer.

        Returns
        -------
        Changed roots, in the axes ``frame`` and less ``roots``, ``(S, n, d, d)``, and which are accurate, ``(S, n)``.
        """
        dtype, (n_sets, n, d) = centred.dtype, centred.shape
        values, removed = self.values[sets], self.removed[sets, None]
        along = centred.double() @ self.into[sets]
        squares = along.square()
        left = 1 - removed * (squares @ (1 / values)[..., None])[..., 0]
        good = left > LEAST_LEFT
        least = torch.where(good, left, 1.0).amin(1)
        low = values[:, :1]
        rational = RationalPower.fit(self.power, max(math.ceil((values[:, -1] / (low[:, 0] * least)).max().log10()), 1))
        poles = rational.poles.to(low.device) * low
        resolvent = 1 / (values[..., None] + poles[:, None])
        factors = torch.empty((n_sets, n, poles.shape[1] + 1), dtype=low.dtype, device=low.device)
        weights = rational.weights.to(low.device) * low ** (1 + self.power)
        torch.div(weights[:, None], 1 - removed[..., None] * (squares @ resolvent), out=factors[..., 1:])
        factors[..., 0] = -rational.slope * low ** (self.power - 1)
        factors *= removed[..., None]
        # a cell's vector, plain and times each resolvent: their products add up to the change of the power
        resolvent = torch.cat([torch.ones_like(resolvent[..., :1]), resolvent], dim=2).to(dtype)
        vectors = along.mT.to(dtype)[..., None] * resolvent[:, :, None]
        if self.share:
            vectors = (self.turn[sets].to(dtype) @ vectors.flatten(2)).view(vectors.shape)
            level = (values.mean(1, keepdim=True) - removed * squares.mean(2)).clamp_min(1e-12) ** self.share
            factors *= level[..., None]
        vectors = vectors.transpose(1, 2).reshape(n_sets * n, d, -1)
        change = (vectors * factors.to(dtype).view(n_sets * n, 1, -1)) @ vectors.mT
        if not self.share:
            return change.view(n_sets, n, d, d), good
        roots = self.roots[sets]
        ratio = level / (self.level * self.start)[sets, None]
        change = change.view(n_sets, n, d, d)
        change.diagonal(dim1=2, dim2=3).add_(((ratio - 1)[..., None] * roots.square()[:, None]).to(dtype))
        inverse = (1 / (roots[:, None] + roots[..., None])).to(dtype)[:, None]
        step = change * inverse
        light = left > 1 - MOST_LEVERAGE
        shrinks = 1 - math.sqrt(float(torch.where(light, left, 1.0).min()))
        for _ in range(math.ceil(math.log(TOLERANCE) / math.log(max(shrinks, 0.01))) if light.any() else 0):
            flat = step.view(n_sets * n, d, d)
            step = torch.baddbmm(change.view(n_sets * n, d, d), flat, flat, alpha=-1).view(step.shape).mul_(inverse)
        heavy = (good & ~light).nonzero(as_tuple=True)
        if len(heavy[0]):
            diagonal = torch.diag_embed(roots.to(dtype))[heavy[0]]
            step[heavy] = sqrtm_psd(diagonal.square() + change[heavy]) - diagonal
        return step, good


def least_size(d: int) -> int:
    """Number of cells from which on sets in ``d`` dimensions have changes computed, and not roots anew."""
    return min(max(MIN_CELLS_PER_AXIS * d, MIN_CELLS[0]), MIN_CELLS[1])


def blocks_of_sets(sizes: Tensor, d: int) -> list[Tensor]:
    """Positions of the sets, of similar size, that are worked on at once."""
    order = torch.argsort(sizes, stable=True)
    block = torch.cumsum(sizes[order], 0) * d * d // NUMBERS_PER_BLOCK
    return list(order.split(block.unique_consecutive(return_counts=True)[1].tolist()))
