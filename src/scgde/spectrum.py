"""Eigenvalues of covariances of few cells, drawn together by as much as sampling noise drives them apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOST = 0.1
"""Largest share: what is drawn together is lost to large populations, and training populations may be all alike."""

LEAST_DEVIATION = 1e-2
"""Smallest standard deviation of an axis, of the pooled covariance here and of a population's frame: less is no spread."""

_SMALLEST = 1e-12


class SpectrumShrinkage(nn.Module):
    r"""Draw the eigenvalues of a covariance towards their own mean, on a logarithmic scale.

    Eigenvalues of the covariance of n cells are spread out by sampling, the largest too large and the smallest too small,
    and more so the more dimensions there are (Ledoit and Wolf 2004). They are drawn together in units of the pooled covariance :math:`C`:
    with :math:`M = C^{-1/2} \Sigma C^{-1/2}` and a share :math:`c`, the result is
    :math:`C^{1/2} M^{1 - c} C^{1/2} (\mathrm{tr} M / d)^c`. A multiple of the pooled covariance stays as it is, so that, unlike a
    mean with it, this does not draw populations together that differ by their total spread alone. One share serves all
    populations, and the map has an inverse in closed form.

    Parameters
    ----------
    n_latent
        Width of a cell's latent.
    """

    root: Tensor
    inverse_root: Tensor
    share: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("root", torch.eye(n_latent))
        self.register_buffer("inverse_root", torch.eye(n_latent))
        self.register_buffer("share", torch.zeros(()))

    def forward(self, cov: Tensor) -> Tensor:
        """Covariances ``(*, d, d)`` with their eigenvalues drawn together."""
        share = float(self.share)
        if not share:
            return cov
        m = self._relative(cov)
        level = m.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(_SMALLEST) ** share
        return self._absolute(_Power.apply(m, 1 - share) * level[..., None, None])

    def inverse(self, cov: Tensor) -> Tensor:
        """The covariances ``(*, d, d)`` that :meth:`forward` makes ``cov`` of."""
        share = float(self.share)
        if not share:
            return cov
        power = _Power.apply(self._relative(cov), 1 / (1 - share))
        # its trace is that of the result, up to a factor that the trace of the result itself decides
        level = power.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(_SMALLEST) ** -share
        return self._absolute(power * level[..., None, None])

    @torch.no_grad()
    def fit(self, covs: list[Tensor], sizes: list[Tensor], pooled: Tensor, size_ratio: float) -> None:
        """Set the share to that of sampling noise in the spread of logarithms of eigenvalues, :data:`MOST` at most.

        Parameters
        ----------
        covs, sizes
            Covariances ``(K, d, d)`` and numbers of cells ``(K,)`` of two disjoint halves of the same populations.
        pooled
            Pooled covariance within populations, ``(d, d)``.
        size_ratio
            Cells of the sets that will be embedded over those of the halves.
        """
        values, axes = torch.linalg.eigh(pooled.double())
        root = values.clamp_min(LEAST_DEVIATION**2).sqrt()
        self.root.copy_((axes * root) @ axes.T)
        self.inverse_root.copy_((axes / root) @ axes.T)
        # columns that are constant, or a sum of others, say nothing
        seen = (axes / root)[:, values > LEAST_DEVIATION**2]
        if seen.shape[1] < 2:
            self.share.zero_()
            return
        enough = torch.minimum(*sizes) > seen.shape[1]  # the others have directions without any spread
        x, y = (log_shape(seen.T @ cov[enough].double() @ seen) for cov in covs)
        signal, total = (x * y).sum(), (x.square() + y.square()).sum() / 2
        reliability = float((signal / total.clamp_min(_SMALLEST)).clamp(0.0, 1.0))
        noise = (1 - reliability) / size_ratio
        self.share.fill_(min(noise / (reliability + noise), MOST))

    def _relative(self, cov: Tensor) -> Tensor:
        return self.inverse_root.to(cov.dtype) @ cov @ self.inverse_root.to(cov.dtype)

    def _absolute(self, cov: Tensor) -> Tensor:
        return self.root.to(cov.dtype) @ cov @ self.root.to(cov.dtype)


def log_shape(cov: Tensor) -> Tensor:
    """Logarithms of covariances ``(K, d, d)``, less that of their size."""
    values, axes = torch.linalg.eigh(cov)
    logs = values.clamp_min(1e-6).log()
    return (axes * (logs - logs.mean(-1, keepdim=True))[..., None, :]) @ axes.mT


class _Power(torch.autograd.Function):
    """Power of symmetric positive matrices, with a gradient that is finite where eigenvalues repeat.

    The derivative of a function of a matrix has divided differences of the function between eigenvalues as entries in
    the eigenbasis (Higham 2008, Functions of Matrices, theorem 3.11).
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, power: float) -> Tensor:
        values, axes = torch.linalg.eigh((matrix + matrix.mT) / 2)
        values = values.clamp_min(_SMALLEST)
        ctx.save_for_backward(values, axes)
        ctx.power = power
        return (axes * (values**power).unsqueeze(-2)) @ axes.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, axes = ctx.saved_tensors
        rows, columns = values.unsqueeze(-1), values.unsqueeze(-2)
        apart = (rows - columns).abs() > 1e-3 * torch.maximum(rows, columns)
        slope = ctx.power * ((rows + columns) / 2) ** (ctx.power - 1)
        divided = (rows**ctx.power - columns**ctx.power) / torch.where(apart, rows - columns, 1.0)
        inner = axes.mT @ ((gradient + gradient.mT) / 2) @ axes * torch.where(apart, divided, slope)
        return axes @ inner @ axes.mT, None
