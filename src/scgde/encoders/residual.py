"""The default set encoder: an isometric projection of two moments plus a learned residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scgde._networks import mlp
from scgde._segments import gram_by_set, normalised_weights, segment_mean, segment_sum
from scgde.encoders._axes import LEAST_GAIN, ReliableAxes, halves, principal_axes, sets_without_labels
from scgde.encoders._delete_one import DeletedRoots, blocks_of_sets, least_size
from scgde.encoders.base import GatedEncoder, PooledEncoder
from scgde.moments import PopulationMoments, from_vector, moment_features, moment_size, to_vector
from scgde.ot import sqrtm_psd
from scgde.spectrum import SpectrumShrinkage

N_SETS, SET_SIZE = 500, 300
"""Sets without labels that axes are chosen from, and cells in each."""


class ResidualEncoder(PooledEncoder, GatedEncoder):
    """Project mean and square-root covariance, then add a learned correction.

    The pooled features of a set are its first and second moments and a learned summary ``g``. Mean and root of the covariance
    are laid out as one vector ``v`` whose Euclidean distance approximates Wasserstein-2, and
    ``z = P'(v - centre) + gate r(v, g)``. The columns of ``P`` are the mean in full and the leading axes of the spread of sets that
    are made without labels: the mean scaled by the square root of its reliability, the spread by a power of its reliability between
    that and one (:class:`~scgde.encoders._axes.ReliableAxes`). ``r`` starts
    at zero. In isometric geometry it stays there: it did not help populations that it was not trained on. Before any
    training the encoder is thus the strongest of the free baselines, and better than it where populations are small. Eigenvalues of
    the covariance are drawn together first (:class:`~scgde.spectrum.SpectrumShrinkage`).

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

    #: Share of the pooled covariance added to each: the root of a singular matrix would magnify rounding without bound.
    floor = 0.004

    #: Whether the spread weighs less than distances ask for where means say more; see :meth:`fit`.
    draws_in_spread = True

    has_fixed_start = True
    pooled_cov: Tensor
    centre: Tensor
    projection: Tensor
    back: Tensor
    scale: Tensor

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128, n_summary: int = 32) -> None:
        super().__init__(n_latent, n_embedding)
        m = moment_size(n_latent)
        self.summary = mlp(n_latent, n_hidden, n_summary, n_layers=1)
        self.residual = mlp(n_embedding + n_summary, n_hidden, n_embedding, n_layers=1, zero=True)
        self.gate_logit = nn.Parameter(torch.zeros(()))
        self.spectrum = SpectrumShrinkage(n_latent)
        self.register_buffer("pooled_cov", torch.eye(n_latent))
        self.register_buffer("centre", torch.zeros(m))
        self.register_buffer("projection", torch.eye(m, n_embedding))
        self.register_buffer("back", torch.eye(m, n_embedding))
        self.register_buffer("scale", torch.ones(()))

    def features(self, u: Tensor) -> Tensor:
        return torch.cat([moment_features(u), self.summary(u)], dim=1)

    def head(self, pooled: Tensor) -> Tensor:
        m = moment_size(self.n_latent)
        straight, correction = self._terms(pooled[..., :m], pooled[..., m:])
        return straight + self.gate * correction

    def straight_and_correction(
        self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        summary = segment_mean(self.summary(u), segment, n_sets, weight)
        if known is None:
            return self._terms(self._moments(u, segment, weight, n_sets), summary)
        missing = known[:, 0].isnan()
        straight = known.clone()
        if missing.any():
            rows, codes = missing[segment], torch.cumsum(missing, 0) - 1
            weight = None if weight is None else weight[rows]
            straight[missing] = self._straight(self._moments(u[rows], codes[segment[rows]], weight, int(missing.sum())))
        return straight, self._correction(straight, summary)

    def pool(self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int) -> Tensor:
        summary = segment_mean(self.summary(u), segment, n_sets, weight)
        return torch.cat([self._moments(u, segment, weight, n_sets), summary], dim=1)

    def _moments(self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int) -> Tensor:
        """First and second moments, ``(n_sets, m)``."""
        # second moments as products of whole sets: of 100 dimensions a cell has 5,000 features
        w = normalised_weights(segment, n_sets, weight, torch.float64)[:, None] * u.double()
        i, j = torch.triu_indices(self.n_latent, self.n_latent, device=u.device)
        second = gram_by_set(w, u.double(), segment, n_sets)[:, i, j]
        return torch.cat([segment_sum(w, segment, n_sets), second], dim=1).to(u.dtype)

    def _terms(self, moments: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        straight = self._straight(moments)
        return straight, self._correction(straight, summary)

    def _straight(self, moments: Tensor) -> Tensor:
        return (self.vector(*self.mean_and_cov(moments)) - self.centre) @ self.projection

    def _correction(self, straight: Tensor, summary: Tensor) -> Tensor:
        return self.residual(torch.cat([straight / self.scale, summary], dim=-1)) * self.scale

    @torch.no_grad()
    def delete_one(self, u: Tensor, segment: Tensor, n_sets: int) -> Tensor:
        n = torch.bincount(segment, minlength=n_sets)[segment].to(u.dtype)[:, None]
        summary = self.summary(u)
        without = (n * segment_mean(summary, segment, n_sets)[segment] - summary) / (n - 1)
        straight = self._straight_without(u, segment, self._moments(u, segment, None, n_sets))
        return straight + self.gate * self._correction(straight, without)

    def _straight_without(self, u: Tensor, segment: Tensor, pooled: Tensor) -> Tensor:
        """The straight term of each cell's set without that cell, ``(cells, n_embedding)``, for pooled moments ``(n_sets, m)``."""
        d = self.n_latent
        sizes = torch.bincount(segment, minlength=len(pooled))
        straight, anew = u.new_empty((len(u), self.n_embedding)), torch.ones_like(segment, dtype=torch.bool)
        large = (sizes >= least_size(d)).nonzero()[:, 0]
        if len(large):
            mean, cov = self.mean_and_cov(pooled[large].double())
            added = self.floor * self.pooled_cov
            roots = DeletedRoots(sizes[large], cov - added, added, self.spectrum)
            start = to_vector(mean, (roots.frame * roots.roots[:, None]) @ roots.frame.mT) - self.centre
            start = (start @ self.projection.double()).to(u.dtype)
            along = self._projected_entries().double()
            rows_of = torch.argsort(segment, stable=True).split(sizes.tolist())
            regular = roots.regular.nonzero()[:, 0]
            for block in blocks_of_sets(sizes[large[regular]], d):
                chosen = regular[block]
                n = sizes[large[chosen]][:, None]
                rows = [rows_of[k] for k in large[chosen].tolist()]
                present = torch.arange(int(n.max()), device=u.device) < n
                index = nn.utils.rnn.pad_sequence(rows, batch_first=True)
                centred = (u[index] - mean[chosen][:, None].to(u.dtype)) * present[..., None]
                change, good = roots.changes(chosen, centred)
                frame = roots.frame[chosen][:, None]
                own = (frame.mT @ along @ frame).flatten(2).mT.to(u.dtype)
                moved = centred @ self.projection[:d] / (n[..., None] - 1)
                z = start[chosen][:, None] + torch.baddbmm(moved, change.flatten(2), own, beta=-1)
                members = index[present]
                straight[members], anew[members] = z[present], ~good[present]
        if anew.any():
            codes = segment[anew]
            n = sizes[codes, None].to(u.dtype)
            straight[anew] = self._straight((n * pooled[codes] - moment_features(u[anew])) / (n - 1))
        return straight

    def _projected_entries(self) -> Tensor:
        """What the projection multiplies the entries of a root by, ``(n_embedding, d, d)``."""
        return from_vector(self.projection.T, self.n_latent)[1]

    def vector(self, mean: Tensor, cov: Tensor) -> Tensor:
        """Mean and root of the shrunk covariance as one vector, ``(*, m)``."""
        return to_vector(mean, sqrtm_psd(self.spectrum(cov)))

    def mean_and_cov(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(*, d)`` and covariance ``(*, d, d)``, from pooled first and second moments ``(*, m)``."""
        d = self.n_latent
        mean, second = pooled[..., :d], pooled[..., d:]
        i, j = torch.triu_indices(d, d, device=pooled.device)
        full = pooled.new_zeros((*pooled.shape[:-1], d, d))
        full[..., i, j] = second
        full[..., j, i] = second
        return mean, full - mean[..., :, None] * mean[..., None, :] + self.floor * self.pooled_cov

    def shrinkage(self) -> SpectrumShrinkage:
        return self.spectrum

    def inverse(self) -> Tensor:
        return self.back

    @torch.no_grad()
    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        d, m = self.n_latent, moment_size(self.n_latent)
        self.pooled_cov.copy_(moments.pooled_covariance())
        self.spectrum.share.zero_()
        whole = PopulationMoments.from_cells(u.double(), segment, len(moments.n))
        split = halves(segment, set_size)
        # where no population can be split, each counts as its own other half: axes are not scaled
        parts, ratio = [whole, whole], 1.0
        if split:
            parts, ratio = [_moments_of(u[rows], segment[rows]) for rows in split[0]], split[1]
            self.spectrum.fit([self._cov(part) for part in parts], [part.n for part in parts], self.pooled_cov, ratio)
        a, b = (self.vector(part.mean, self._cov(part)) for part in parts)
        common = (a + b).mean(0) / 2
        a, b = a - common, b - common
        # without labels: axes chosen from the populations would hold the noise of their very cells
        rows, sets = sets_without_labels(u, N_SETS, SET_SIZE)
        loose = PopulationMoments.from_cells(u[rows].double(), sets, N_SETS)
        free = self.vector(loose.mean, self._cov(loose))
        n_spread = min(m - d, self.n_embedding)
        axes = ReliableAxes.fit(free, a, b, [(0, d, d, LEAST_GAIN), (d, m, n_spread, LEAST_GAIN)], ratio)
        gain = axes.gain.clone()
        # The root of its reliability keeps distances as long as they are without noise. But beside means that say more, the noise of
        # the spread only hides them: it is drawn in up to the reliability itself, the more the larger the means' share of differences.
        if self.draws_in_spread:
            signal = [(a * b)[:, block].sum().clamp_min(0.0) for block in (slice(0, d), slice(d, m))]
            gain[d:] **= 1 + float(signal[0] / (signal[0] + signal[1]).clamp_min(1e-12))
        # shrunk roots are shorter, and distances would be
        roots = [sqrtm_psd(self._cov(part)).flatten(1) for part in parts]
        longer = length_ratio(roots[0], roots[1], a[:, d:], b[:, d:])
        gain[d:] *= min(longer, 1 / (1 - float(self.spectrum.share)))
        # the mean in full, and as many axes of the spread as there is room for
        chosen = torch.eye(len(gain), self.n_embedding, dtype=gain.dtype, device=gain.device)
        if self.n_embedding <= d:
            chosen = principal_axes((free - free.mean(0)) @ axes.basis * gain, d, self.n_embedding)
        vectors = self.vector(whole.mean, self._cov(whole))
        self.centre.copy_(vectors.mean(0))
        self.projection.copy_((axes.basis * gain) @ chosen)
        self.back.copy_((axes.basis / gain) @ chosen)
        straight = (vectors - vectors.mean(0)) @ self.projection.double()
        self.scale.copy_(straight.square().sum(1).mean().sqrt().clamp_min(1e-6))

    def _cov(self, moments: PopulationMoments) -> Tensor:
        """Covariances as the encoder sees them: with divisor n, and a share of the pooled one added."""
        return moments.cov * (1 - 1 / moments.n)[:, None, None] + self.floor * self.pooled_cov


def _moments_of(u: Tensor, segment: Tensor) -> PopulationMoments:
    present, codes = torch.unique(segment, return_inverse=True)
    return PopulationMoments.from_cells(u.double(), codes, len(present))


def length_ratio(a: Tensor, b: Tensor, a_shrunk: Tensor, b_shrunk: Tensor) -> float:
    """Noiseless length of vectors ``(K, m)`` over that of shrunk ones, from two halves of each population; at least 1."""
    signal, shrunk = (
        ((x - x.mean(0)) * (y - y.mean(0))).sum().clamp_min(0.0) for x, y in ((a, b), (a_shrunk, b_shrunk))
    )
    return float((signal / shrunk.clamp_min(1e-12)).sqrt().clamp_min(1.0))
