r"""Log-likelihood of counts: a logarithm for each gene, and gamma functions only where something was counted.

Most counts are zero, and the probability of a zero needs no gamma function. With means :math:`\mu = \ell \operatorname{softmax}(a)`,
library :math:`\ell` and inverse dispersion :math:`\theta`,

.. math::

    \log NB(0) = -\theta \log(1 + \mu / \theta), \quad
    \log NB(x) = \log NB(0) + \log \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!} + x \log \frac{\mu}{\theta + \mu}.

The first is summed over all genes, what is added to it over those that were counted. Values are those of ``scvi.distributions``;
gradients are written down, since automatic ones keep and pass over a dozen matrices of cells and genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from scgde._sparse import Entries, entries

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-8
"""Added to means before their logarithm, as in scvi-tools."""

LARGEST_LOGIT = 80.0
"""Bound of logits of zero inflation: their exponential must be finite."""

TABLE_ROWS = 32
"""Counts up to this one have their gamma functions looked up in a table."""


def poisson_log_likelihood(x: Tensor, logits: Tensor, library: Tensor) -> Tensor:
    """Log-likelihood of rows under Poisson laws, ``(cells,)``; arguments as in :func:`negative_binomial_log_likelihood`."""
    return _Poisson.apply(logits, library, entries(x.to(logits.dtype)))


def negative_binomial_log_likelihood(
    x: Tensor,
    logits: Tensor,
    library: Tensor,
    log_theta: Tensor,
    group: Tensor | None = None,
    zero_logits: Tensor | None = None,
) -> Tensor:
    """Log-likelihood of rows under negative binomial laws, ``(cells,)``, zero-inflated where ``zero_logits`` are given.

    Parameters
    ----------
    x
        Integer counts, ``(cells, genes)``, dense or CSR without stored zeros.
    logits
        Logits of the shares of genes, ``(cells, genes)``.
    library
        Library sizes, ``(cells, 1)``. They carry no gradient.
    log_theta
        Log inverse dispersions, ``(groups, genes)``.
    group
        Which of them a cell has, ``(cells,)``; the first by default.
    zero_logits
        Logits of the probability of a zero beside the law's own, ``(genes,)``.
    """
    if zero_logits is not None:
        zero_logits = zero_logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    if group is None:
        group = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return _NegativeBinomial.apply(logits, log_theta.exp(), zero_logits, library, group, entries(x.to(logits.dtype)))


class _Poisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, library: Tensor, found: Entries) -> Tensor:
        share = torch.softmax(logits, dim=1)
        mu_at = found.of(share).mul_(library[:, 0].index_select(0, found.row))
        ctx.save_for_backward(share, mu_at)
        ctx.found = found
        # the shares of a row add up to one, and its means to its library
        return found.row_sums(found.value * torch.log(mu_at + EPS) - _log_factorial(found.value)) - library[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        share, mu_at = ctx.saved_tensors
        found, grad = ctx.found, grads[0]
        at = found.value * (mu_at / (mu_at + EPS)) * grad.index_select(0, found.row)
        flow = share * -found.row_sums(at)[:, None]
        flow.view(-1).scatter_add_(0, found.flat, at)
        return flow, None, None


class _NegativeBinomial(torch.autograd.Function):
    """Takes inverse dispersions in place of their logarithm."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        theta: Tensor,
        zero_logits: Tensor | None,
        library: Tensor,
        group: Tensor,
        found: Entries,
    ) -> Tensor:
        theta_of_cells = theta if len(theta) == 1 else theta[group]
        mu = torch.softmax(logits, dim=1).mul_(library)
        rest = (mu / theta_of_cells).log1p_()
        place = found.col if len(theta) == 1 else group[found.row] * theta.shape[1] + found.col
        mu_at, theta_at = found.of(mu), theta.reshape(-1).index_select(0, place)
        terms, slope = _coefficients(found.value, theta, place, theta_at)
        share_at = mu_at / (mu_at + theta_at)
        terms += found.value * (torch.log(mu_at + EPS) - torch.log(mu_at + theta_at))
        odds = None
        if zero_logits is None:
            total = -(rest @ theta[0] if len(theta) == 1 else (rest * theta_of_cells).sum(1))
        else:
            # odds of the law's own zero against the added one
            odds = torch.addcmul(-zero_logits, rest, theta_of_cells, value=-1)
            log_odds_at = found.of(odds)
            odds.exp_()
            # gene by gene: sums of the two are large, and next to equal where there are few added zeros
            total = (torch.log1p(odds) - F.softplus(-zero_logits)).sum(1)
            terms += log_odds_at - F.softplus(log_odds_at)
        ctx.save_for_backward(mu, rest, odds, theta, zero_logits, library, group)
        ctx.at = (found, place, mu_at, theta_at, share_at, slope)
        return total + found.row_sums(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        mu, rest, odds, theta, zero_logits, library, group = ctx.saved_tensors
        found, place, mu_at, theta_at, share_at, slope = ctx.at
        grad, shared = grads[0], len(theta) == 1
        theta_of_cells = theta if shared else theta[group]
        share = mu + theta_of_cells
        share = torch.div(mu, share, out=share)
        weight, grad_zero = None, None
        if odds is not None:
            # how far a zero is an added one, small numbers that must not be found as a difference from one; what was counted is not
            added = (odds + 1).reciprocal_()
            weight = odds * added
            added.view(-1).scatter_(0, found.flat, 0.0)
            weight.view(-1).scatter_(0, found.flat, 1.0)
            grad_zero = grad @ added - torch.sigmoid(zero_logits) * grad.sum()
        grad_theta = None
        if ctx.needs_input_grad[1]:
            part = share - rest if weight is None else (share - rest).mul_(weight)
            at = (slope - found.value / (mu_at + theta_at)) * grad.index_select(0, found.row)
            if shared:
                grad_theta = (grad @ part)[None]
            else:
                grad_theta = torch.zeros_like(theta).index_add_(0, group, part.mul_(grad[:, None]))
            grad_theta.view(-1).scatter_add_(0, place, at)
        flow = share.mul_(-theta_of_cells)
        if weight is not None:
            flow.mul_(weight)
        flow.view(-1).scatter_add_(0, found.flat, found.value * (mu_at / (mu_at + EPS) - share_at))
        # through the softmax
        flow.addcmul_(mu, flow.sum(1, keepdim=True) / library.clamp_min(EPS), value=-1)
        return flow.mul_(grad[:, None]), grad_theta, grad_zero, None, None, None


def _coefficients(value: Tensor, theta: Tensor, place: Tensor, theta_at: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithm of :math:`\Gamma(x + \theta) / (\Gamma(\theta)\, x!)` for each entry, and its derivative in :math:`\theta`.

    Sums of as many terms as were counted. Small counts find them in a table of genes, at less cost than gamma functions, and
    without the loss of digits that the difference of two of them has where :math:`\theta` is large.
    """
    if theta.numel() * TABLE_ROWS > 4 * len(value):
        return _coefficients_of(value, theta_at)
    counts = torch.arange(TABLE_ROWS, dtype=theta.dtype, device=theta.device)[:, None]
    steps = theta.reshape(1, -1) + counts
    index = (value.clamp_max(TABLE_ROWS).long() - 1) * theta.numel() + place
    tables = (torch.log(steps / (counts + 1)), steps.reciprocal())
    log, slope = (t.cumsum(0).reshape(-1).index_select(0, index) for t in tables)
    large = (value > TABLE_ROWS).nonzero()[:, 0]
    if len(large):
        log[large], slope[large] = _coefficients_of(value[large], theta_at[large])
    return log, slope


def _coefficients_of(value: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    x, t = value.double(), theta.double()
    log = torch.lgamma(x + t) - torch.lgamma(t) - torch.lgamma(x + 1)
    return log.to(value.dtype), (torch.digamma(x + t) - torch.digamma(t)).to(value.dtype)


def _log_factorial(value: Tensor) -> Tensor:
    counts = torch.arange(TABLE_ROWS + 1, dtype=value.dtype, device=value.device)
    log = torch.lgamma(counts + 1).index_select(0, value.clamp_max(TABLE_ROWS).long())
    large = (value > TABLE_ROWS).nonzero()[:, 0]
    if len(large):
        log[large] = torch.lgamma(value[large] + 1)
    return log
