"""Axes of vectors of populations that do not depend on labels, and gains by how far two halves of a population agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

PRIOR_POPULATIONS = 100
"""Weight, in populations, of a block's reliability in that of each of its axes: few populations cannot tell axes apart."""

LEAST_GAIN = 0.3
"""Least gain of axes of moments: new populations may differ along one that training populations do not differ along."""

MAX_CLUSTERED_CELLS = 20_000
MAX_CLUSTERS = 100
CELLS_PER_CLUSTER = 20
"""Cells for each cluster that sets without labels are mixed from, at least."""

CONCENTRATION = 0.2
"""Of the Dirichlet law of their shares, for each cluster: most of a set is of a fifth of the clusters or fewer."""


@dataclass(frozen=True)
class ReliableAxes:
    """Principal axes of blocks of coordinates, and a gain for each.

    Attributes
    ----------
    basis
        Orthonormal axes, ``(m, q)``, each within one block.
    gain
        Square roots of reliabilities, ``(q,)``.
    """

    basis: Tensor
    gain: Tensor

    @classmethod
    def fit(
        cls, free: Tensor, a: Tensor, b: Tensor, blocks: list[tuple[int, int, int, float]], size_ratio: float = 1.0
    ) -> ReliableAxes:
        r"""Axes from vectors of sets that were made without labels, gains from two halves of each population.

        Axes chosen from the populations themselves would hold all of the noise that sets these very cells apart, and a part of
        that of fresh cells: populations of one law would look different, and no correction for noise could tell.

        The reliability of an axis is the share of its variance between populations that is not sampling noise. Scaled by
        its square root, an axis contributes to the squared distance of two populations as much on average as their
        noiseless vectors would: noise then makes up for what the scaling takes away. (Scaled by the reliability itself, as
        a posterior mean is, distances come out too short, and least so between populations of large spread and thus
        large noise.) Shrinking covariances towards the pooled one, in place of roots, does worse than doing nothing.

        Parameters
        ----------
        free
            Vectors of sets made without labels (:func:`sets_without_labels`), ``(P, m)``.
        a, b
            Vectors of the halves, ``(K, m)`` each, about their common mean.
        blocks
            First and last coordinate (exclusive) of each block, its number of axes, and their least gain.
        size_ratio
            Cells of the sets that will be embedded over those of the halves: noise falls with their number.
        """
        free = free - free.mean(0)
        basis = torch.zeros((a.shape[1], sum(n for _, _, n, _ in blocks)), dtype=a.dtype, device=a.device)
        gains, column = [], 0
        for start, stop, n_axes, least in blocks:
            x, y, z = a[:, start:stop], b[:, start:stop], free[:, start:stop]
            axes = torch.linalg.svd(z, full_matrices=len(z) < n_axes)[2][:n_axes].T
            basis[start:stop, column : column + n_axes] = axes
            column += n_axes
            x, y = x @ axes, y @ axes
            signal, total = (x * y).mean(0), (x.square() + y.square()).mean(0) / 2
            block = signal.sum() / total.sum().clamp_min(1e-12)
            weight = len(x) / (len(x) + PRIOR_POPULATIONS)
            own = signal / total.clamp_min(1e-12 * total.sum().clamp_min(1e-12))
            share = (weight * own + (1 - weight) * block).clamp(0.0, 1.0)
            gains.append((share / (share + (1 - share) / size_ratio)).sqrt().clamp_min(least))
        return cls(basis, torch.cat(gains))


def sets_without_labels(u: Tensor, n_sets: int, set_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sets of cells as populations might be, made without their labels: random mixtures of clusters of cells.

    Populations mostly differ in how many of their cells are in which state. Nothing about which cells belong together is used.

    Parameters
    ----------
    u
        Cell latents, ``(cells, n_latent)``.
    n_sets, set_size
        Number of sets, and of cells in each, drawn with replacement.
    seed
        Seed.

    Returns
    -------
    Row of ``u`` and set of each drawn cell, ``(n_sets * set_size,)`` each.
    """
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng([seed, 37])
    rows = np.sort(rng.permutation(len(u))[:MAX_CLUSTERED_CELLS])
    x = u[torch.from_numpy(rows).to(u.device)].double().cpu().numpy()
    x = x / max(float(x.std()), 1e-12)
    n_clusters = max(min(MAX_CLUSTERS, len(x) // CELLS_PER_CLUSTER), 1)
    cluster = np.zeros(len(x), dtype=np.int64)
    if n_clusters > 1 and x.any():
        cluster = MiniBatchKMeans(n_clusters, random_state=seed, n_init=1).fit(x).labels_
    _, cluster, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    order = rows[np.argsort(cluster, kind="stable")]
    starts = np.cumsum(sizes) - sizes
    shares = rng.dirichlet(np.maximum(CONCENTRATION * sizes / sizes.mean(), 1e-3), size=n_sets)
    drawn = np.concatenate([rng.choice(len(sizes), set_size, p=p) for p in shares])
    chosen = order[starts[drawn] + (rng.random(len(drawn)) * sizes[drawn]).astype(np.int64)]
    segment = torch.arange(n_sets, device=u.device).repeat_interleave(set_size)
    return torch.from_numpy(chosen).to(u.device), segment


def halves(segment: Tensor, set_size: int) -> tuple[list[Tensor], float] | None:
    """Rows of two disjoint halves, of at most ``set_size`` cells, of every set of four cells or more.

    Returns
    -------
    The rows of each half, sets in the order of their codes, and the mean size of the sets that will be embedded (at most
    ``set_size`` cells) over that of the halves. None with fewer than two sets to split.
    """
    order = torch.argsort(torch.rand(len(segment), generator=torch.Generator().manual_seed(0)).to(segment.device))
    order = order[torch.argsort(segment[order], stable=True)]
    codes = segment[order]
    sizes = torch.bincount(codes)
    rank = torch.arange(len(codes), device=codes.device) - (torch.cumsum(sizes, 0) - sizes)[codes]
    half = (sizes // 2).clamp_max(set_size)
    large = sizes >= 4
    if int(large.sum()) < 2:
        return None
    ratio = float(sizes[large].clamp_max(set_size).double().mean() / half[large].double().mean())
    used, half = large[codes], half[codes]
    return [order[used & (rank < half)], order[used & (rank >= half) & (rank < 2 * half)]], ratio


def principal_axes(centred: Tensor, n_first: int, n_axes: int) -> Tensor:
    """Orthonormal axes of greatest spread, ``(m, n_axes)``, zero-padded beyond ``m``.

    With few populations most axes have no spread. A small isotropic term then decides, larger on the first ``n_first``
    coordinates (the mean), so that the mean is always represented in full and new populations are told apart by it.
    """
    k, m = centred.shape
    least = torch.full((m,), 1e-6, dtype=centred.dtype, device=centred.device)
    least[:n_first] = 1e-3
    if n_first + k >= m or n_first + k < n_axes:
        axes = _leading_axes(centred, torch.diag(least), n_axes)
        return torch.nn.functional.pad(axes, (0, n_axes - axes.shape[1]))
    # the rows span few of the many other coordinates; along all axes that they do not span there is the same small term
    basis = torch.linalg.qr(centred[:, n_first:].T)[0]
    inner = torch.cat([centred[:, :n_first], centred[:, n_first:] @ basis], dim=1)
    # the small term is relative to the mean over all m coordinates
    axes = _leading_axes(inner, torch.diag(least[: n_first + k]) * ((n_first + k) / m), n_axes)
    return torch.cat([axes[:n_first], basis @ axes[n_first:]])


def _leading_axes(centred: Tensor, least: Tensor, n_axes: int) -> Tensor:
    m = centred.shape[1]
    cov = centred.T @ centred / max(centred.shape[0] - 1, 1)
    _, axes = torch.linalg.eigh(cov + least * cov.trace().clamp_min(1e-12) / m)
    return axes.flip(1)[:, :n_axes]
