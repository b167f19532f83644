"""Draws of counts, most of which are zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_MEAN = 3.0
"""Means up to which counts are drawn by going through their probabilities."""

LARGEST_RATIO = 0.97
"""Largest ratio of the probabilities of one count and the one before it for which that is done, far from zero."""

LOW = 2.0**-16
"""Uniform numbers below it are drawn to more digits."""

GRID = 2.0**-24
"""Distance of uniform numbers in single precision."""

MOST_STEPS = 2000
"""Counts that are gone through at most; the probability of more is below what double precision tells from zero."""


def draw_counts(
    mu: Tensor, theta: Tensor | None = None, extra_zero: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw from Poisson laws of means ``mu`` or, given inverse dispersions, from negative binomial ones.

    Whether a count is zero takes one uniform number and the probability of zero,
    :math:`(1 + \mu / \theta)^{-\theta}`. Only for those that are not is the count looked for, by inverting the distribution function. A
    gamma and a Poisson variable for each entry, the usual way, cost more; they serve large means.

    Parameters
    ----------
    mu
        Means, ``(cells, genes)``.
    theta
        Inverse dispersions, of a shape that broadcasts with ``mu``.
    extra_zero
        Probability of a zero beside the law's own, of such a shape.
    generator
        Source of randomness.
    """
    uniform = torch.rand(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    # uniform numbers lie on a grid, next to zero too coarse for what hardly ever happens
    low = (uniform < LOW).nonzero(as_tuple=True)
    uniform[low] += GRID * torch.rand(len(low[0]), generator=generator, dtype=mu.dtype, device=mu.device)
    log_zero = -mu if theta is None else -theta * torch.log1p(mu / theta)
    positive = -torch.expm1(log_zero)
    if extra_zero is not None:
        positive *= 1 - extra_zero
    large = mu > LARGEST_MEAN
    if theta is not None:
        large |= mu > LARGEST_RATIO / (1 - LARGEST_RATIO) * theta
    counts = torch.zeros_like(mu)

    def at(values: Tensor | None, rows: tuple[Tensor, ...]) -> Tensor | None:
        return None if values is None else values.expand_as(mu)[rows]

    rows = ((uniform < positive) & ~large).nonzero(as_tuple=True)
    counts[rows] = _positive_counts(mu[rows], at(theta, rows), log_zero[rows], generator).to(mu.dtype)
    rows = large.nonzero(as_tuple=True)
    rate, own = mu[rows], at(theta, rows)
    if own is not None:
        rate = torch._standard_gamma(own, generator=generator) * (rate / own)
    drawn = torch.poisson(rate, generator=generator)
    # whether such a count is an added zero is what its uniform number has been kept for
    added = at(extra_zero, rows)
    counts[rows] = drawn if added is None else torch.where(uniform[rows] < 1 - added, drawn, 0.0)
    return counts


def _positive_counts(mu: Tensor, theta: Tensor | None, log_zero: Tensor, generator: torch.Generator | None) -> Tensor:
    """Counts, given that they are not zero, by inversion of their distribution function, ``(n,)``."""
    # in double precision: single precision knows nothing of what is rarer than one in ten million
    mu, log_zero = mu.double(), log_zero.double()
    left = torch.rand(len(mu), generator=generator, dtype=torch.float64, device=mu.device) * -torch.expm1(log_zero)
    if theta is None:
        probability, base, step = log_zero.exp() * mu, mu, torch.zeros_like(mu)
    else:
        theta = theta.double()
        step = mu / (mu + theta)
        base = step * theta
        probability = log_zero.exp() * base
    # of one count and the one before: p(k + 1) / p(k) = (base + step * k) / (k + 1)
    counts = torch.ones_like(mu)
    active = torch.arange(len(mu), device=mu.device)
    for k in range(1, MOST_STEPS):
        left = left - probability
        on = (left > 0).nonzero()[:, 0]
        if len(on) == 0:
            break
        active, left, base, step = active[on], left[on], base[on], step[on]
        probability = probability[on] * (base + step * k) / (k + 1)
        counts[active] = k + 1
    return counts
