"""Tie distances between embeddings to Wasserstein distances between populations."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scgde import ot
from scgde._distributed import Gathering, alone, share_out
from scgde.ot import pairwise_gaussian_wasserstein, sqrtm_psd
from scgde.ot.gaussian import squared_bures

if TYPE_CHECKING:
    from torch import Tensor

    from scgde.moments import PopulationMoments

logger = logging.getLogger(__name__)

MAX_EXACT_POPULATIONS = 256
"""Populations between which exact distances are computed at most; others keep Gaussian targets."""

MAX_EXACT_CELLS = 128
"""Cells of each of them at most."""

MAX_KEPT = 2000
"""Populations whose distances to each other are kept, at most."""

UNMIXED = 0.999
"""Weight from which on a mixture of populations is its first one."""

SELF_SHARE = 0.5
"""Share of the distance between two halves of a population that is taken off its squared distances to others."""


@dataclass(frozen=True)
class ExactTargets:
    """Squared W2 distances between some of the training populations, from their cells.

    Attributes
    ----------
    place
        Row of each population in ``squared``, -1 for those that are not there, ``(n_populations,)``.
    squared
        Squared distances, freed of a part of their upward bias, ``(k, k)``.
    """

    place: Tensor
    squared: Tensor

    @classmethod
    def from_cells(cls, u: Tensor, codes: Tensor, n_populations: int, seed: int = 0) -> ExactTargets:
        """Distances between populations of cell latents ``(cells, d)``, of a random choice where there are many.

        Exact transport between small samples overstates W2, between two samples of one population most of all. Taking off
        what two halves of each are apart would overcorrect for populations that differ, and reorder them; a share is a
        compromise (compare :func:`scgde.ot.debiased_wasserstein`).
        """
        rng = np.random.default_rng(seed)
        labels = codes.cpu().numpy()
        present, sizes = np.unique(labels, return_counts=True)
        present = present[sizes >= 4]
        if len(present) > MAX_EXACT_POPULATIONS:
            present = np.sort(rng.choice(present, MAX_EXACT_POPULATIONS, replace=False))
        clouds = []
        for label in present:
            rows = rng.permutation(np.flatnonzero(labels == label))[:MAX_EXACT_CELLS]
            clouds.append(u[torch.from_numpy(rows).to(u.device)].cpu().numpy())
        seconds = ot.estimate_cost([len(c) for c in clouds], n_features=u.shape[1]) if len(clouds) else 0.0
        logger.info(f"Exact Wasserstein distances of {len(clouds)} populations as targets: about {seconds:.0f} s.")
        segment = np.repeat(np.arange(len(clouds)), [len(c) for c in clouds])
        squared = np.zeros((0, 0))
        if clouds:
            squared = np.square(ot.pairwise_distances(np.concatenate(clouds), segment, progress=seconds > 20))
            apart = np.array([ot.wasserstein(c[::2], c[1::2]) ** 2 for c in clouds])
            squared = np.maximum(squared - SELF_SHARE * (apart[:, None] + apart) / 2, 0.0)
        place = torch.full((n_populations,), -1)
        place[torch.from_numpy(present)] = torch.arange(len(present))
        return cls(place.to(u.device), torch.from_numpy(squared).to(u.dtype).to(u.device))

    def pairs(self, sources: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances ``(K, K)`` of sets, and whether each is known: not for mixtures of populations."""
        place = torch.where(weights[:, 0] > UNMIXED, self.place[sources[:, 0]], -1)
        known = (place[:, None] >= 0) & (place >= 0) & (place[:, None] != place)
        return self.squared[place][:, place] if len(self.squared) else known.float(), known


class IsometryTargets:
    """W2 distances between training populations, computed when they are first asked for.

    The closed form of normal laws on the populations' moments, freed of the noise of sampling, or from their cells where ``exact``
    is given and knows them. Distances between up to :data:`MAX_KEPT` populations are kept, since each takes the eigenvalues of a matrix;
    those of batches with mixtures are not.

    Parameters
    ----------
    moments
        Moments of all populations.
    exact
        Distances that are taken in place of the closed form.

    Attributes
    ----------
    kept
        Squared distances, ``(K, K)``, NaN where they have not been asked for; None for more than :data:`MAX_KEPT` populations.
    """

    def __init__(self, moments: PopulationMoments, exact: ExactTargets | None = None) -> None:
        self.moments = moments
        self.exact = exact
        k = len(moments.n)
        self.kept = moments.mean.new_full((k, k), torch.nan) if k <= MAX_KEPT else None
        self._roots = sqrtm_psd(moments.cov) if k <= MAX_KEPT else None
        self._pooled = moments.pooled_covariance()
        self._noise = moments.distance_noise(self._pooled)

    @torch.no_grad()
    def distances(self, sources: Tensor, weights: Tensor, *, together: bool = False) -> Tensor:
        """Distances ``(K, K)`` between sets: populations, or mixtures of them (see :meth:`PopulationMoments.mixtures`).

        With ``together`` all processes ask for the same, and share the work out.
        """
        if self.kept is None or not bool((weights[:, 0] > UNMIXED).all()):
            moments = self.moments.mixtures(sources, weights)
            squared = pairwise_gaussian_wasserstein(moments.mean, moments.cov).square()
            noise = moments.distance_noise(self._pooled)
        else:
            squared, noise = self._look_up(sources[:, 0], together), self._noise[sources[:, 0]]
        target = (squared - noise[:, None] - noise).clamp_min(0).sqrt()
        if self.exact is None:
            return target
        exact, known = self.exact.pairs(sources, weights)
        return torch.where(known, exact.sqrt(), target)

    def _look_up(self, codes: Tensor, together: bool) -> Tensor:
        assert self.kept is not None
        squared = self.kept[codes][:, codes]
        p, q = torch.isnan(squared).triu(1).nonzero(as_tuple=True)
        if len(p):
            i, j = codes[p], codes[q]
            if together:
                own, sizes = share_out(len(p))
                (value,) = Gathering(self._squared(i[own], j[own]), sizes=sizes).finish()
            else:
                value = self._squared(i, j)
            if together or alone():  # what processes keep must be the same: they validate on different populations
                self.kept[i, j] = value
                self.kept[j, i] = value
            squared[p, q] = value
            squared[q, p] = value
        return squared.fill_diagonal_(0)

    def _squared(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances between populations ``i`` and ``j``, ``(pairs,)`` each."""
        assert self._roots is not None
        mean, cov = self.moments.mean, self.moments.cov
        return (mean[i] - mean[j]).square().sum(1) + squared_bures(cov[i], cov[j], self._roots[i])


def isometry_loss(z: Tensor, target: Tensor, used: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """Squared error of embedding distances against W2, relative to the mean squared W2.

    Targets belong to *whole* populations, while ``z`` comes from a minibatch of their cells. They are detached: the latent cannot
    shrink to please them.

    Parameters
    ----------
    z
        Embeddings, ``(K, n_embedding)``.
    target
        Distances of the same populations, ``(K, K)``.
    used
        Which pairs count, ``(K, K)``; all by default.
    start
        Embeddings that ``z`` corrects, ``(K, n_embedding)``. Targets are then brought to their scale. Otherwise a correction is
        rewarded for shortening all distances to the targets, whose own scale small samples leave in doubt, and kept although it
        makes distances less like W2 in every other respect.

    Returns
    -------
    A scalar; zero for a single population.
    """
    k = z.shape[0]
    i, j = torch.triu_indices(k, k, offset=1, device=z.device)
    target, distance = (
        target[i, j],
        torch.pdist(z),
    )  # has no gradient at zero, where two mixtures of the same cells may meet
    length = None if start is None else torch.pdist(start)
    if used is not None:
        chosen = used[i, j]
        target, distance = target[chosen], distance[chosen]
        length = None if length is None else length[chosen]
    if len(target) == 0:
        return z.sum() * 0.0
    if length is not None:
        target = target * (length.square().sum() / (length * target).sum().clamp_min(1e-12))
    return (distance - target).square().mean() / target.square().mean().clamp_min(1e-12)


def held_out_sets(sources: Tensor, weights: Tensor, n_populations: int) -> Tensor:
    """Sets that hold cells of a population that an encoder's correction is not trained on, ``(K,)``.

    About an eighth of the populations, by a hash of their codes; none where there are fewer than 16.
    """
    if n_populations < 16:
        return torch.zeros(len(sources), dtype=torch.bool, device=sources.device)
    held = (sources * 2654435761 % 2**32) >> 29 == 0
    return (held & (weights > 0)).any(dim=1)
