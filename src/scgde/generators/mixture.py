"""Mixture of normal laws whose parameters are read off the embedding."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scgde._networks import mlp
from scgde._segments import pad_sets
from scgde.generators.base import Generator


class Components(NamedTuple):
    """Parameters of K mixtures of C components.

    Attributes
    ----------
    log_weight
        Logarithms of weights, ``(K, C)``.
    mean
        Means, ``(K, C, d)``.
    precision_root
        Lower triangular ``R`` with precision ``R'R``, ``(K, C, d, d)``.
    """

    log_weight: Tensor
    mean: Tensor
    precision_root: Tensor


class MixtureGenerator(Generator):
    """A mixture density network (Bishop 1994): one network gives the weights, means and covariances of a normal mixture.

    Trained by maximum likelihood. The network runs once for a population and not once for a cell, its density is exact,
    and a population of several clusters is learned in far fewer steps than by a map that has to tear a normal law apart.
    What clusters cannot express, like a curved ridge, takes many components.

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    n_components
        Number of components.
    """

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128, n_components: int = 8) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.n_components = n_components
        triangle = n_latent * (n_latent + 1) // 2
        self.network = mlp(n_condition, n_hidden, n_components * (1 + n_latent + triangle), zero=True)
        # components start apart, or all would learn the same: their centres have half of the unit variance of the frame
        # along as many axes as there are centres for, and the components the rest
        noise = torch.randn((n_components, n_latent), generator=torch.Generator().manual_seed(0))
        left, _, right = torch.linalg.svd(noise - noise.mean(0), full_matrices=False)
        rank = min(n_components - 1, n_latent)
        centre = left[:, :rank] @ right[:rank] * math.sqrt(0.5 * n_components)
        root = torch.linalg.inv(torch.linalg.cholesky(torch.eye(n_latent) - 0.5 * right[:rank].T @ right[:rank]))
        i, j = torch.tril_indices(n_latent, n_latent)
        flat = torch.where(i == j, root[i, j].abs().log(), root[i, j])
        bias = torch.cat([torch.zeros(n_components, 1), centre, flat.expand(n_components, -1)], dim=1)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.copy_(bias.flatten())

    @property
    def n_noise(self) -> int:
        # the last one chooses a component
        return self.n_latent + 1

    def components(self, condition: Tensor) -> Components:
        """Parameters of the mixtures of populations with whitened embeddings ``condition`` ``(K, n_condition)``."""
        d = self.n_latent
        out = self.network(condition).unflatten(1, (self.n_components, -1))
        i, j = torch.tril_indices(d, d, device=out.device)
        root = out.new_zeros((*out.shape[:2], d, d))
        flat = out[:, :, 1 + d :]
        root[:, :, i, j] = torch.where(i == j, flat.clamp(-3.0, 3.0).exp(), flat)
        return Components(out[:, :, 0].log_softmax(1), out[:, :, 1 : 1 + d], root)

    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        present, codes = torch.unique(segment, return_inverse=True)
        first = torch.full((len(present),), len(codes), device=codes.device).scatter_reduce(
            0, codes, torch.arange(len(codes), device=codes.device), "amin"
        )
        return -self._log_density(y, self.components(condition[first]), codes) / self.n_latent

    def log_prob(
        self, y: Tensor, condition: Tensor, *, n_samples: int = 64, generator: torch.Generator | None = None
    ) -> Tensor:
        rows, codes = torch.unique(condition, dim=0, return_inverse=True)
        return self._log_density(y, self.components(rows), codes)

    def _log_density(self, y: Tensor, parts: Components, codes: Tensor) -> Tensor:
        index, present = pad_sets(codes, len(parts.mean))
        # set by set: parameters gathered for every cell would be (cells, C, d, d)
        centred = y[index][:, None] - parts.mean[:, :, None]
        residual = torch.einsum("kcij,kcnj->kcni", parts.precision_root, centred)
        log_det = parts.precision_root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = parts.log_weight + log_det - 0.5 * self.n_latent * math.log(2 * math.pi)
        log_density = (constant[:, :, None] - 0.5 * residual.square().sum(-1)).logsumexp(1)
        return torch.empty_like(y[:, 0]).index_copy(0, index[present], log_density[present])

    def push(self, noise: Tensor, condition: Tensor) -> Tensor:
        rows, codes = torch.unique(condition, dim=0, return_inverse=True)
        parts = self.components(rows)
        level = torch.special.ndtr(noise[:, -1:])
        chosen = (level > parts.log_weight.exp().cumsum(1)[codes, :-1]).sum(1)
        root = parts.precision_root[codes, chosen]
        step = torch.linalg.solve_triangular(root, noise[:, :-1, None], upper=False)[:, :, 0]
        return parts.mean[codes, chosen] + step

    def moments(self, condition: Tensor, n: int = 512) -> tuple[Tensor, Tensor]:
        """Means and covariances in closed form; see :meth:`Generator.moments`."""
        parts = self.components(condition)
        weight = parts.log_weight.exp()
        mean = torch.einsum("kc,kcd->kd", weight, parts.mean)
        centred = parts.mean - mean[:, None]
        eye = torch.eye(self.n_latent, dtype=mean.dtype, device=mean.device)
        root = torch.linalg.solve_triangular(parts.precision_root, eye.expand_as(parts.precision_root), upper=False)
        second = root @ root.mT + centred[..., :, None] * centred[..., None, :]
        return mean, torch.einsum("kc,kcij->kij", weight, second)
