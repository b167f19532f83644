"""Mean latent and shares of cell states: linear in the population, for many small ones."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from scgde._segments import segment_mean
from scgde.components import subsample
from scgde.encoders._axes import LEAST_GAIN, ReliableAxes, halves, principal_axes, sets_without_labels
from scgde.encoders.base import PooledEncoder

if TYPE_CHECKING:
    from scgde.moments import PopulationMoments

MAX_CELLS = 20_000
"""Cells that states are fitted to, at most."""

CELLS_PER_STATE = 100
"""Cells for each state, at least, since each has a covariance of its own: with fewer cells there are fewer states."""

_CELLS_PER_BLOCK = 2**14


N_SETS, SET_SIZE = 500, 100
"""Sets without labels that axes are chosen from, and cells in each."""


class StatesEncoder(PooledEncoder):
    """Project the mean latent of cells and the mean of their soft assignment to states, both laid side by side.

    States are the components of a mixture of normal laws, fitted to the cells of training populations. A clone of three cells has no covariance to
    speak of, and a mean alone mixes cells of two fates into cells of a third. How often its cells are in which state needs no
    more than a count, and ``z``, a plain mean of what is known of each cell, has no small-sample bias. Both parts have the same variance
    over cells, and their principal axes are scaled by the square root of their reliability
    (:class:`~scgde.encoders._axes.ReliableAxes`). Only the overall scale is trained: distances of small samples are a poor teacher.

    Parameters
    ----------
    n_latent, n_embedding, n_hidden
        See :class:`~scgde.encoders.SetEncoder`.
    n_states
        Number of states at most; ``n_embedding`` by default.
    """

    is_linear = True

    centres: Tensor
    whitening: Tensor
    log_share: Tensor
    offset: Tensor
    weight_of_states: Tensor
    projection: Tensor

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_states: int | None = None) -> None:
        super().__init__(n_latent, n_embedding)
        self.n_states = n_states = n_embedding if n_states is None else n_states
        width = n_latent + n_states
        self.log_scale = nn.Parameter(torch.zeros(()))
        # unit normal laws until they are fitted
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("centres", torch.randn((n_states, n_latent), generator=generator))
        self.register_buffer("whitening", torch.eye(n_latent).repeat(n_states, 1, 1))
        self.register_buffer("log_share", torch.zeros(n_states))
        self.register_buffer("offset", torch.zeros(width))
        self.register_buffer("weight_of_states", torch.ones(()))
        self.register_buffer("projection", torch.eye(width, n_embedding))

    def assignment(self, u: Tensor) -> Tensor:
        """Probability of each state, ``(cells, n_states)``."""
        shift = torch.einsum("kd,kde->ke", self.centres, self.whitening)
        parts = []
        for block in u.split(_CELLS_PER_BLOCK):
            white = torch.einsum("nd,kde->nke", block, self.whitening) - shift
            # log_share holds the logarithms of the determinants, too
            parts.append(torch.softmax(self.log_share - white.square().sum(-1) / 2, dim=1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def features(self, u: Tensor) -> Tensor:
        return torch.cat([u, self.assignment(u) * self.weight_of_states], dim=1) - self.offset

    def head(self, pooled: Tensor) -> Tensor:
        return pooled @ self.projection * torch.exp(self.log_scale)

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        if len(u) < 2:
            return
        self._fit_states(u)
        n_sets, d, width = len(moments.n), self.n_latent, self.n_latent + self.n_states
        self.weight_of_states.fill_(1.0)
        self.offset.zero_()
        features = self.features(u).double()
        variance = features.var(0)
        self.weight_of_states.copy_((variance[:d].sum() / variance[d:].sum().clamp_min(1e-12)).sqrt())
        features[:, d:] *= self.weight_of_states.double()
        pooled = segment_mean(features, segment, n_sets)
        self.offset.copy_(pooled.mean(0))
        pooled -= pooled.mean(0)
        split, ratio = halves(segment, set_size) or (None, 1.0)
        parts = [pooled, pooled] if split is None else [_means_of(features[rows], segment[rows]) for rows in split]
        common = (parts[0] + parts[1]).mean(0) / 2
        a, b = (part - common for part in parts)
        blocks = [(0, d, d, LEAST_GAIN), (d, width, width - d, LEAST_GAIN)]
        rows, sets = sets_without_labels(u, N_SETS, SET_SIZE)
        free = segment_mean(features[rows], sets, N_SETS)
        axes = ReliableAxes.fit(free, a, b, blocks, ratio)
        chosen = principal_axes((free - free.mean(0)) @ axes.basis * axes.gain, d, self.n_embedding)
        self.projection.copy_((axes.basis * axes.gain) @ chosen)
        means = moments.mean - moments.mean.mean(0)
        spread_u, spread_z = (
            v.double().square().sum(1).mean().sqrt() for v in (means, pooled @ self.projection.double())
        )
        self.log_scale.copy_((spread_u.clamp_min(1e-6) / spread_z.clamp_min(1e-6)).log())

    def _fit_states(self, u: Tensor) -> None:
        """Mixture of normal laws with covariances of their own, by expectation maximisation."""
        rows = subsample(np.arange(len(u)), MAX_CELLS, 0)
        x = u[torch.from_numpy(rows).to(u.device)].double().cpu().numpy()
        count = max(min(self.n_states, len(x) // CELLS_PER_STATE), 1)
        variance = float(x.var(0).mean())
        mixture = GaussianMixture(count, reg_covar=1e-3 * max(variance, 1e-9), max_iter=50, random_state=0)
        with warnings.catch_warnings():
            # states are a basis and need not be the best mixture
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(x)
        self.log_share.fill_(-torch.inf)
        root = torch.from_numpy(mixture.precisions_cholesky_)
        share = torch.from_numpy(mixture.weights_).log() + torch.diagonal(root, dim1=1, dim2=2).log().sum(1)
        self.log_share[:count] = (share - share.max()).to(self.log_share)
        self.centres[:count] = torch.from_numpy(mixture.means_).to(self.centres)
        self.whitening[:count] = root.to(self.whitening)


def _means_of(features: Tensor, segment: Tensor) -> Tensor:
    present, codes = torch.unique(segment, return_inverse=True)
    return segment_mean(features, codes, len(present))
