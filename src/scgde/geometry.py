"""Tie distances between embeddings to Wasserstein distances between populations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scgde.ot import pairwise_gaussian_wasserstein

if TYPE_CHECKING:
    from torch import Tensor

    from scgde.moments import PopulationMoments


def isometry_loss(z: Tensor, moments: PopulationMoments) -> Tensor:
    """Squared error of embedding distances against Gaussian W2, relative to the mean squared W2.

    The target is the closed form on each population's *whole* (shrunk) moments, while ``z`` comes from a minibatch of
    its cells, and it is detached: the latent cannot shrink to please it.

    Parameters
    ----------
    z
        Embeddings, ``(K, n_embedding)``.
    moments
        Moments of the same populations.

    Returns
    -------
    A scalar; zero for a single population.
    """
    k = z.shape[0]
    if k < 2:
        return z.sum() * 0.0
    i, j = torch.triu_indices(k, k, offset=1, device=z.device)
    with torch.no_grad():
        target = pairwise_gaussian_wasserstein(moments.mean, moments.cov)[i, j]
    # the square root has no gradient at zero, where two mixtures of the same cells may meet
    distance = ((z[i] - z[j]).square().sum(1) + 1e-12).sqrt()
    return (distance - target).square().mean() / target.square().mean().clamp_min(1e-12)
