"""The affine part of every generator: mean and spread of a population, read off its embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scgde._segments import matmul_by_set
from scgde.moments import PopulationMoments, from_vector, moment_size, to_vector
from scgde.ot import sqrtm_psd
from scgde.spectrum import LEAST_DEVIATION, SpectrumShrinkage

RIDGES = (1e-7, 1e-5, 1e-3, 1e-1, 10.0)
"""Penalties to choose from, in units of the largest variance of an embedding; spreads have a ten-thousandth of that of means."""

N_FOLDS = 5


class AffineSkeleton(nn.Module):
    """Mean and square-root covariance of a population as a linear function of its embedding.

    Where an encoder shrinks the spectrum of covariances, what is linear is the root of the shrunk one, and the shrinkage is undone.

    Also whitens the embedding before it conditions a generator: an isometric ``z`` carries spread at a hundredth of
    the scale at which it carries the mean, and a network would not look at it.

    Parameters
    ----------
    n_latent
        Width of a cell's latent.
    n_embedding
        Width of the population embedding.
    """

    #: Smallest standard deviation of a frame's axis; keeps the frame invertible.
    floor = LEAST_DEVIATION

    z_mean: Tensor
    whitening: Tensor
    spread: Tensor

    def __init__(self, n_latent: int, n_embedding: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.spectrum = SpectrumShrinkage(n_latent)
        self.linear = nn.Linear(n_embedding, moment_size(n_latent))
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.zero_()
            i, j = torch.triu_indices(n_latent, n_latent)
            self.linear.bias[n_latent:] = (i == j).float()
        self.register_buffer("z_mean", torch.zeros(n_embedding))
        self.register_buffer("whitening", torch.eye(n_embedding))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(K, n_latent)`` and symmetric positive root ``(K, n_latent, n_latent)`` for ``z`` ``(K, n_embedding)``."""
        mean, root = from_vector(self.linear(z), self.n_latent)
        root = _clamped(root.double(), 0.0 if self.spectrum.share else self.floor)
        if self.spectrum.share:
            root = _clamped(sqrtm_psd(self.spectrum.inverse(root @ root)), self.floor)
        return mean, root.to(z.dtype)

    def vector(self, mean: Tensor, cov: Tensor) -> Tensor:
        """Moment vector ``(*, m)`` of means ``(*, d)`` and covariances ``(*, d, d)``, as it is read off an embedding."""
        return to_vector(mean, sqrtm_psd(self.spectrum(cov)))

    def condition(self, z: Tensor) -> Tensor:
        """Whitened embedding that conditions the generator, ``(K, n_embedding)``."""
        return (z - self.z_mean) @ self.whitening

    def loss(self, z: Tensor, vector: Tensor) -> Tensor:
        """Squared error of the predicted moment vectors, relative to the spread it started from: a scalar."""
        return (self.linear(z) - vector).square().sum(1).mean() / self.spread

    @torch.no_grad()
    def fit(
        self,
        z: Tensor,
        vectors: Tensor,
        inverse: Tensor | None = None,
        folds: Tensor | None = None,
        n_read: int | None = None,
    ) -> None:
        """Ridge regression of moment vectors ``(K, m)`` on embeddings ``(K, n_embedding)``.

        With the encoder's own linear ``inverse`` ``(m, n_embedding)``, the regression corrects it: along axes that training
        populations do not differ in, a new population is decoded by it alone, where a plain regression would lose it.

        Parameters
        ----------
        z, vectors
            Embeddings and what is to be read off them.
        inverse
            Where the regression starts; zero by default.
        folds
            Whether each row has cells of populations of each fold, ``(K, folds)``; by default each row is a population. The penalty is
            the one that serves populations best that are left out: without an inverse, a small one carries new populations far
            off along axes that few differ in.
        n_read
            Number of leading coordinates that are read; all by default.
        """
        z, v = z.double()[:, :n_read], vectors.double()
        start = v.new_zeros((v.shape[1], z.shape[1])) if inverse is None else inverse.double()[:, :n_read]
        if folds is None:
            folds = fold_of(torch.arange(len(z), device=z.device))[:, None] == torch.arange(N_FOLDS, device=z.device)
        splits = [held for held in folds.T if held.any() and (~held).sum() > 1]
        parts = []
        # means and roots apart: errors of means would decide for both
        for block in (slice(0, self.n_latent), slice(self.n_latent, None)):
            own, begin = v[:, block], start[block]
            errors = [0.0] * len(RIDGES)
            for held in splits:
                for i, ridge in enumerate(RIDGES):
                    weight, bias = ridge_regression(z[~held], own[~held], begin, ridge)
                    errors[i] += float((z[held] @ weight.T + bias - own[held]).square().sum())
            best = RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)]
            parts.append(ridge_regression(z, own, begin, best))
        weight, bias = (torch.cat(x) for x in zip(*parts, strict=True))
        self.linear.weight.zero_()
        self.linear.weight[:, : z.shape[1]] = weight.to(self.linear.weight.dtype)
        self.linear.bias.copy_(bias)
        self.spread.copy_((v - v.mean(0)).square().sum(1).mean().clamp_min(1e-8))

    @torch.no_grad()
    def whiten(self, z: Tensor, least: float = 1e-5) -> None:
        """Set the whitening of embeddings ``(K, n_embedding)``.

        Axes with less than a share ``least`` of the largest variance are not blown up as far: they may be noise.
        """
        centred = z.double() - z.double().mean(0)
        values, axes = torch.linalg.eigh(centred.T @ centred / max(len(z) - 1, 1))
        self.z_mean.copy_(z.double().mean(0))
        self.whitening.copy_((axes * (values.clamp_min(0) + least * values[-1].clamp_min(1e-12)).rsqrt()) @ axes.T)


def _clamped(root: Tensor, least: float) -> Tensor:
    values, axes = torch.linalg.eigh(root)
    return (axes * values.clamp_min(least)[..., None, :]) @ axes.mT


def fold_of(population: Tensor) -> Tensor:
    """Fold of each population in the choice of a penalty."""
    return population % N_FOLDS


def ridge_regression(z: Tensor, v: Tensor, start: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight ``(m, n)`` and bias ``(m,)`` of ``v`` ``(K, m)`` on ``z`` ``(K, n)``, the weight being drawn to ``start``."""
    z_mean, v_mean = z.mean(0), v.mean(0)
    centred = z - z_mean
    gram = centred.T @ centred / max(len(z) - 1, 1)
    top = torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-12)
    cross = centred.T @ (v - v_mean - centred @ start.T) / max(len(z) - 1, 1)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = start + torch.linalg.solve(gram + ridge * top * eye, cross).T
    return weight, v_mean - weight @ z_mean


def shared_frame(mean: Tensor, sd: Tensor, n_populations: int) -> PopulationMoments:
    """Moments of all cells together, as those of every population."""
    everything = PopulationMoments.from_cells(mean, torch.zeros(len(mean), dtype=torch.long, device=mean.device), 1)
    cov = everything.cov + torch.diag(sd.square().mean(0))
    return PopulationMoments(
        # so many that no correction for the number of cells applies
        everything.n.new_full((n_populations,), 1e9),
        everything.mean.expand(n_populations, -1),
        cov.expand(n_populations, -1, -1),
    )


def inverse_frames(moments: PopulationMoments) -> Tensor:
    """Inverse roots of covariances, ``(K, d, d)``."""
    values, axes = torch.linalg.eigh(moments.cov)
    return (axes * values.clamp_min(AffineSkeleton.floor**2).rsqrt()[:, None, :]) @ axes.mT


def into_frame(u: Tensor, moments: PopulationMoments, codes: Tensor, inverse: Tensor) -> Tensor:
    """Centre and whiten cells ``(cells, d)`` by the moments and the inverse frames ``(K, d, d)`` of their population.

    Centred on their own mean, n cells have (n - 1) / n of the variance; the factor undoes it, so that small
    populations are not taught to be narrow.
    """
    n = moments.n.clamp_min(2)[codes][:, None]
    centred = (u - moments.mean[codes]) * (n / (n - 1)).sqrt()
    return matmul_by_set(centred, inverse, codes)  # inverse frames are symmetric
