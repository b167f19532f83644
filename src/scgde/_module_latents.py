"""Latents of cells from embeddings of populations: frames, samples, transport and densities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgde._segments import matmul_by_set

if TYPE_CHECKING:
    from scgde.generators import AffineSkeleton
    from scgde.generators.base import Generator

MIN_VARIANCE = 0.04
"""Least variance of a generator's output that is scaled up to one: less is no spread, but none learned."""


class LatentsMixin:
    """What :class:`scgde.module.GDEModule` generates."""

    skeleton: AffineSkeleton
    generator: Generator
    has_skeleton: bool

    def frame(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Origin ``(K, n_latent)`` and axes ``(K, n_latent, n_latent)`` of the generator's output for ``z`` ``(K, n_embedding)``.

        Generated ``y`` becomes the latent ``origin + axes @ y``. Nothing in a generator's loss holds it to mean zero and
        covariance one; its own moments are therefore taken out, and those of the skeleton put in: generated cells have
        the mean and the covariance that the skeleton reads off the embedding, whatever the generator.
        """
        mean, root = self.skeleton(z)
        if not self.has_skeleton:
            return mean, root
        own_mean, own_cov = self.generator.moments(self.skeleton.condition(z))
        values, vectors = torch.linalg.eigh(own_cov.double())
        inverse = (vectors * values.clamp_min(MIN_VARIANCE).rsqrt()[:, None, :]) @ vectors.mT
        axes = root @ inverse.to(root.dtype)
        return mean - torch.einsum("kij,kj->ki", axes, own_mean), axes

    def sample_latent(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One latent ``(cells, n_latent)`` for each row of ``z`` ``(cells, n_embedding)``."""
        z, codes = torch.unique(z, dim=0, return_inverse=True)
        origin, axes = self.frame(z)
        y = self.generator.sample(self.skeleton.condition(z)[codes], generator)
        return origin[codes] + matmul_by_set(y, axes.mT, codes)

    def transport_latent(self, u: Tensor, z_source: Tensor, z_target: Tensor) -> Tensor:
        r"""Latents ``(cells, n_latent)`` of cells of one population, carried to another.

        Into the frame of the source, back to noise by its flow, forward by the flow of the target and out of its
        frame. Between frames with roots :math:`R_s, R_t` alone this would be :math:`R_t R_s^{-1}`, which is no
        optimal-transport map unless the two commute. Noise may be rotated without changing its law, and the rotation
        :math:`U`, the orthogonal polar factor of :math:`R_t R_s`, makes :math:`R_t U R_s^{-1}` symmetric and positive: the
        optimal map :math:`R_s^{-1} (R_s R_t^2 R_s)^{1/2} R_s^{-1}` between Gaussians (Peyre and Cuturi 2019, remark 2.31).

        Parameters
        ----------
        u
            Latents, ``(cells, n_latent)``.
        z_source, z_target
            Embeddings, ``(n_embedding,)``.

        Raises
        ------
        TypeError
            If the generator cannot be run backwards.
        """
        z = torch.stack([z_source, z_target])
        (origin_source, origin_target), (axes_source, axes_target) = self.frame(z)
        root_source, root_target = self.skeleton(z)[1].double()
        source, target = (c.expand(len(u), -1) for c in self.skeleton.condition(z))
        y = torch.linalg.solve(axes_source.double(), (u - origin_source).double().T).T.to(u.dtype)
        noise = self.generator.invert(y, source)
        left, _, right = torch.linalg.svd(root_target @ root_source)
        noise = noise @ (left @ right).T.to(u.dtype)
        return origin_target + self.generator.push(noise, target) @ axes_target.T

    def log_prob_latent(
        self,
        u: Tensor,
        z: Tensor,
        codes: Tensor,
        *,
        n_samples: int = 64,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log density of latents ``(cells, n_latent)`` in populations with embeddings ``z`` ``(K, n_embedding)``.

        Parameters
        ----------
        u
            Latents, ``(cells, n_latent)``.
        z
            Embeddings, ``(K, n_embedding)``.
        codes
            Row of ``z`` that each cell is asked under, ``(cells,)``.
        n_samples, generator
            See :meth:`scgde.generators.Generator.log_prob`.

        Returns
        -------
        ``(cells,)``.
        """
        origin, axes = self.frame(z)
        inverse, log_det = (
            torch.linalg.inv(axes.double()).to(u.dtype),
            torch.linalg.slogdet(axes.double())[1].to(u.dtype),
        )
        y = matmul_by_set(u - origin[codes], inverse.mT, codes)
        condition = self.skeleton.condition(z)[codes]
        return self.generator.log_prob(y, condition, n_samples=n_samples, generator=generator) - log_det[codes]
