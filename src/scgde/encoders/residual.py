"""The default set encoder: an isometric projection of two moments plus a learned residual."""

from __future__ import annotations

import torch
from torch import Tensor

from scgde._networks import mlp
from scgde.encoders.base import PooledEncoder
from scgde.moments import PopulationMoments, moment_features, moment_size, moment_vector, to_vector
from scgde.ot import sqrtm_psd


class ResidualEncoder(PooledEncoder):
    """Project mean and square-root covariance isometrically, then add a learned correction.

    The pooled features of a set are its first and second moments and a learned summary ``g``. Its covariance is moved
    towards the pooled covariance of the training populations by one coefficient (a duplicated set must give the same
    vector, so the coefficient cannot depend on the number of cells). Mean and root are laid out as one vector ``v``
    whose Euclidean distance approximates Wasserstein-2, and ``z = P'(v - centre) + r(v, g)``, where the columns of
    ``P`` are the leading principal axes of the training populations and ``r`` starts at zero. Before any training the
    encoder is thus the strongest of the free baselines.

    Parameters
    ----------
    n_latent
        Width of a cell's latent.
    n_embedding
        Width of the embedding.
    n_hidden
        Width of the residual's hidden layers.
    n_summary
        Width of the learned summary ``g``.
    """

    shrinkage: Tensor
    pooled_cov: Tensor
    centre: Tensor
    projection: Tensor
    scale: Tensor

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_summary: int = 32) -> None:
        super().__init__(n_latent, n_embedding)
        m = moment_size(n_latent)
        self.summary = mlp(n_latent, n_hidden, n_summary, n_layers=1)
        self.residual = mlp(n_embedding + n_summary, n_hidden, n_embedding, n_layers=1, zero=True)
        self.register_buffer("shrinkage", torch.tensor(0.1))
        self.register_buffer("pooled_cov", torch.eye(n_latent))
        self.register_buffer("centre", torch.zeros(m))
        self.register_buffer("projection", torch.eye(m, n_embedding))
        self.register_buffer("scale", torch.ones(()))

    def features(self, u: Tensor) -> Tensor:
        return torch.cat([moment_features(u), self.summary(u)], dim=1)

    def head(self, pooled: Tensor) -> Tensor:
        d, m = self.n_latent, moment_size(self.n_latent)
        mean, second, summary = pooled[..., :d], pooled[..., d:m], pooled[..., m:]
        i, j = torch.triu_indices(d, d, device=pooled.device)
        full = pooled.new_zeros((*pooled.shape[:-1], d, d))
        full[..., i, j] = second
        full[..., j, i] = second
        cov = full - mean[..., :, None] * mean[..., None, :]
        cov = (1 - self.shrinkage) * cov + self.shrinkage * self.pooled_cov
        vector = to_vector(mean, sqrtm_psd(cov)) - self.centre
        straight = vector @ self.projection
        return straight + self.residual(torch.cat([straight / self.scale, summary], dim=-1)) * self.scale

    def inverse(self) -> Tensor:
        return self.projection

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        self.pooled_cov.copy_(moments.pooled_covariance())
        self.shrinkage.fill_(moments.shrinkage(set_size))
        shrunk = moments.shrunk(float(self.shrinkage), self.pooled_cov)
        vectors = moment_vector(shrunk)
        self.centre.copy_(vectors.mean(0))
        self.projection.copy_(principal_axes(vectors - self.centre, self.n_latent, self.n_embedding))
        straight = (vectors - self.centre) @ self.projection
        self.scale.copy_(straight.square().sum(1).mean().sqrt().clamp_min(1e-6))


def principal_axes(centred: Tensor, n_first: int, n_axes: int) -> Tensor:
    """Orthonormal axes of greatest spread, ``(m, n_axes)``, zero-padded beyond ``m``.

    With few populations most axes have no spread. A small isotropic term then decides, larger on the first ``n_first``
    coordinates (the mean), so that the mean is always represented in full and new populations are told apart by it.
    """
    m = centred.shape[1]
    cov = centred.T @ centred / max(centred.shape[0] - 1, 1)
    jitter = torch.full((m,), 1e-6, dtype=cov.dtype, device=cov.device)
    jitter[:n_first] = 1e-3
    _, axes = torch.linalg.eigh(cov + torch.diag(jitter) * cov.trace().clamp_min(1e-12) / m)
    axes = axes.flip(1)[:, :n_axes]
    return torch.nn.functional.pad(axes, (0, n_axes - axes.shape[1]))
