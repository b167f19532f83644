"""Counts of moved cells that keep what the latent does not know about each cell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

from scgde.generation import RowContexts, expected_library, make_context

if TYPE_CHECKING:
    from scgde.module import GDEModule


@torch.no_grad()
def move_counts(
    module: GDEModule,
    x: np.ndarray,
    u: np.ndarray,
    moved: np.ndarray,
    before: RowContexts,
    after: RowContexts,
    generator: torch.Generator,
    effects: dict[int, float] | None = None,
    chunk: int = 2048,
) -> np.ndarray:
    """Counts of cells whose latents were moved, coupled with the counts ``x`` that were observed before.

    Parameters
    ----------
    module
        Trained module with a count likelihood.
    x
        Observed counts, ``(cells, n_vars)``.
    u, moved
        Latents before and after, ``(cells, n_latent)``.
    before, after
        What cells were observed and are decoded under. Library sizes after are those of ``after`` times the change that the latents
        foresee.
    effects
        Natural logarithm of the change of a gene's share of the counts, by column, for genes of which it is known; the latents have
        no say in these.

    Returns
    -------
    ``(cells, n_vars)``, integers.
    """
    growth = expected_library(module, moved) / np.maximum(expected_library(module, u), 1e-6)
    library = after.library * growth
    rows = []
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        laws: list[Any] = []
        for latent, context, size in ((u, before, before.library), (moved, after, library)):
            decoder = make_context(
                size[part], context.batch[part], context.categorical[part], context.continuous[part], module.device
            )
            laws.append(module.observation.decode(torch.from_numpy(latent[part]).to(module.device), decoder))
        observed = torch.from_numpy(x[part]).to(module.device)
        low, high = (law.rate if isinstance(law, Poisson) else law.mu for law in laws)
        high = high.clone()
        growth_here = torch.from_numpy(library[part] / np.maximum(before.library[part], 1e-6)).to(high)
        for gene, ratio in (effects or {}).items():
            high[:, gene] = low[:, gene] * math.exp(ratio) * growth_here
        rows.append(couple_counts(observed, laws[0], high, generator).cpu().numpy())
    return np.concatenate(rows)


def couple_counts(x: torch.Tensor, before: Any, high: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    r"""Draw counts with means ``high`` that differ from counts ``x`` of the law ``before`` only where means do.

    A negative binomial count is Poisson with mean :math:`\lambda \mu`, the factor :math:`\lambda` being gamma-distributed with mean
    one. The factor is drawn given the count, :math:`\lambda | x \sim \Gamma(\theta + x, \theta + \mu)`. If the mean falls from
    :math:`\mu` to :math:`\mu'` each molecule stays with probability :math:`\mu' / \mu`; if it rises, a Poisson number with mean
    :math:`\lambda (\mu' - \mu)` comes in. Counts of the law ``before`` become counts of the same law with other means,
    a gene that does not change keeps its count, and a cell that has more of a gene than its latent knows goes on having
    more. Zeros that zero inflation explains stay, by their probability.

    Parameters
    ----------
    x
        Counts, ``(cells, genes)``.
    before
        Law of scvi-tools: Poisson, negative binomial or zero-inflated.
    high
        Means after, ``(cells, genes)``; before zero inflation.
    generator
        Source of randomness.
    """
    low = before.rate if isinstance(before, Poisson) else before.mu
    kept = _thin(x, (high / low.clamp_min(1e-12)).clamp(max=1.0), generator)
    arriving = (high - low).clamp_min(0)
    if isinstance(before, NegativeBinomial | ZeroInflatedNegativeBinomial):
        theta = before.theta
        gamma = torch._standard_gamma(theta + x, generator=generator) / (theta + low)
        arriving = arriving * gamma
    if isinstance(before, ZeroInflatedNegativeBinomial):
        inflated = torch.sigmoid(before.zi_logits)
        zero = torch.exp(before.theta * (torch.log(before.theta) - torch.log(before.theta + low)))
        lost = (x == 0) & (
            torch.rand(x.shape, generator=generator, device=x.device) < inflated / (inflated + (1 - inflated) * zero)
        )
        arriving = arriving.masked_fill(lost, 0.0)
    return kept + torch.poisson(arriving, generator=generator)


def _thin(x: torch.Tensor, probability: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Binomial draws; only where there is something to lose."""
    kept = x.clone()
    where = (x > 0) & (probability < 1)
    if where.any():
        kept[where] = torch.binomial(x[where], probability[where].to(x.dtype), generator=generator)
    return kept
