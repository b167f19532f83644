"""What every set encoder promises, and the part that pooled encoders share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from scgde._segments import count_segments, segment_mean, segment_sum

if TYPE_CHECKING:
    from torch import Tensor

    from scgde.moments import PopulationMoments
    from scgde.spectrum import SpectrumShrinkage


CLOSED = -100.0
"""Logit of a gate that is closed for good: nothing of any correction is left, and files hold finite numbers only."""

_COST_PER_PASS = 2**25
_CELLS_PER_BLOCK = 2**16


class SetEncoder(nn.Module):
    r"""Map a set of cell latents to one vector, :math:`z = \phi(P_n)`.

    An encoder is *distributionally invariant* (definition 1 of the GDE paper, arXiv 2505.18150): it depends on a set
    only through the set's empirical distribution, so permuting or duplicating cells changes nothing and any number of
    cells is accepted. Sets come ragged, as flat rows with a code per row; there is no padding and no normalisation
    across cells.

    Parameters
    ----------
    n_latent
        Width of a cell's latent ``u``.
    n_embedding
        Width of the population embedding ``z``.
    n_hidden
        Width of hidden layers, for encoders that have some.
    """

    is_linear = False
    """Whether ``z`` is a plain mean of per-cell vectors, so that it has no small-sample bias."""

    wants_exact_targets = False
    """Whether isometric training should tie distances to exact transport between cells, where that is affordable, and not
    to the closed form of normal laws."""

    n_read: int | None = None
    """Number of leading coordinates that mean and spread of a population are read off; all by default."""

    jackknife_max = 50
    """Populations of at most this many cells use delete-one values, whose cost here is the square of their size; larger
    ones use influences."""

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.n_embedding = n_embedding

    @abstractmethod
    def forward(self, u: Tensor, segment: Tensor, weight: Tensor | None = None, n_sets: int | None = None) -> Tensor:
        """Embed sets.

        Parameters
        ----------
        u
            Cell latents, ``(cells, n_latent)``.
        segment
            Code of the set each cell belongs to, ``(cells,)``, integers from 0.
        weight
            Non-negative weight of each cell, ``(cells,)``, normalised within its set; uniform by default.
        n_sets
            Number of sets; the largest code plus one by default.

        Returns
        -------
        ``(n_sets, n_embedding)``.
        """

    @torch.no_grad()
    def in_blocks(self, u: Tensor, segment: Tensor, n_sets: int) -> Tensor:
        """Embeddings ``(n_sets, n_embedding)``, some sets at a time: hidden layers of all cells at once may not fit memory.

        No set may be empty.
        """
        order = torch.argsort(segment, stable=True)
        sizes = torch.bincount(segment, minlength=n_sets)
        block = torch.cumsum(sizes, 0) // _CELLS_PER_BLOCK
        n_in_block = block.unique_consecutive(return_counts=True)[1].tolist()
        rows = order.split([int(part.sum()) for part in sizes.split(n_in_block)])
        blocks, first = [], 0
        for n, own in zip(n_in_block, rows, strict=True):
            blocks.append(self(u[own], segment[own] - first, n_sets=n))
            first += n
        return torch.cat(blocks)

    def learning_rate_factor(self, name: str) -> float:
        """Learning rate of a parameter, by its name, in units of the set encoders' learning rate."""
        return 1.0

    def fit(self, u: Tensor, segment: Tensor, moments: PopulationMoments, set_size: int) -> None:
        """Set the data-dependent starting point from the training populations; a no-op by default.

        Parameters
        ----------
        u, segment
            Training cell latents, ``(cells, n_latent)``, and their population codes.
        moments
            First and second moments of the same populations.
        set_size
            Number of cells in a training set at most.
        """

    def inverse(self) -> Tensor | None:
        """Linear map from embeddings back to moment vectors that the encoder starts from, ``(m, n_embedding)``.

        None by default: there is none.
        """
        return None

    def shrinkage(self) -> SpectrumShrinkage | None:
        """How covariances are shrunk before their root is embedded; None by default: they are not."""
        return None

    def influence(self, u: Tensor, segment: Tensor, n_sets: int) -> tuple[Tensor, Tensor]:
        r"""Embeddings and the empirical influence of every cell.

        With weights ``w`` on the cells of a set that sum to one, uniform :math:`1/n`, the influence is
        :math:`\psi_j = d\phi/dw_j - \text{mean}_i\, d\phi/dw_i`; for a plain mean of features it is a cell's features
        less their mean. It averages to zero within a set.
        This general form differentiates by the weights, one pass per coordinate.

        Returns
        -------
        ``(n_sets, n_embedding)`` embeddings and ``(cells, n_embedding)`` influences.
        """
        sizes = torch.bincount(segment, minlength=n_sets)
        z, psi = u.new_empty((n_sets, self.n_embedding)), u.new_empty((len(u), self.n_embedding))
        # the graph of a pass is held for its derivatives: not all sets at once
        passes = torch.cumsum(self.pass_cost(sizes), 0) // _COST_PER_PASS
        for number in passes.unique():
            chosen = passes == number
            rows = chosen[segment]
            codes = (torch.cumsum(chosen, 0) - 1)[segment[rows]]
            z[chosen], psi[rows] = self._influence(u[rows], codes, int(chosen.sum()))
        return z, psi

    def pass_cost(self, sizes: Tensor) -> Tensor:
        """Numbers that a pass through sets of ``sizes`` cells, ``(K,)``, holds for its derivative, about."""
        return sizes * 1000

    def _influence(self, u: Tensor, segment: Tensor, n_sets: int) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            weight = torch.ones_like(u[:, 0]).requires_grad_(True)
            z = self(u.detach(), segment, weight, n_sets)
            columns = [
                torch.autograd.grad(z[:, c].sum(), weight, retain_graph=True, allow_unused=True)[0]
                for c in range(self.n_embedding)
            ]
        derivative = torch.stack([torch.zeros_like(weight) if c is None else c for c in columns], dim=1)
        # weights are 1 here and 1/n in the definition, so that this derivative is n times smaller
        sizes = torch.bincount(segment, minlength=n_sets).to(u.dtype)
        psi = derivative * sizes[segment][:, None]
        return z.detach(), psi - segment_mean(psi, segment, n_sets)[segment]

    def weighted_influence(self, u: Tensor, weight: Tensor) -> Tensor:
        """Vectors ``z`` + influence of every cell of one weighted set, ``(cells, n_embedding)``.

        Cells of weight zero leave ``z`` alone and get the influence of adding them.
        """
        with torch.enable_grad():
            weight = (weight / weight.sum()).requires_grad_(True)
            z = self(u.detach(), torch.zeros(len(u), dtype=torch.long, device=u.device), weight, 1)[0]
            columns = [torch.autograd.grad(c, weight, retain_graph=True, allow_unused=True)[0] for c in z]
        derivative = torch.stack([torch.zeros_like(weight) if c is None else c for c in columns], dim=1)
        weight = weight.detach()
        return z.detach() + derivative - weight @ derivative

    def delete_one(self, u: Tensor, segment: Tensor, n_sets: int) -> Tensor:
        """Embedding of each cell's set without that cell, ``(cells, n_embedding)``; sets need two cells or more.

        This general form is quadratic in the size of a set; encoders that pool once override it.
        """
        out = u.new_empty((u.shape[0], self.n_embedding))
        for k in range(n_sets):
            rows = torch.nonzero(segment == k).squeeze(1)
            n = rows.numel()
            weight = 1.0 - torch.eye(n, dtype=u.dtype, device=u.device)
            codes = torch.arange(n, device=u.device).repeat_interleave(n)
            out[rows] = self(u[rows].repeat(n, 1), codes, weight.reshape(-1), n)
        return out


class GatedEncoder(SetEncoder):
    """An encoder with a start in closed form and a learned correction: ``z = straight + gate * correction``.

    Populations are few against what a network can learn by heart. The gate, a number between 0 and 1, is therefore trained
    on populations that the correction is not trained on (:meth:`scgde.module.GDEModule.population_loss`), and closes where the
    correction does not help them.
    """

    gate_logit: nn.Parameter

    has_fixed_start = False
    """Whether training leaves the straight term of a set alone, so that it need be computed only once."""

    @abstractmethod
    def straight_and_correction(
        self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two terms, ``(n_sets, n_embedding)`` each, before the gate.

        ``known`` are straight terms that have been computed before, of the same shape, and NaN for other sets. They are of no use
        to encoders without a fixed start.
        """

    def forward(self, u: Tensor, segment: Tensor, weight: Tensor | None = None, n_sets: int | None = None) -> Tensor:
        n_sets = count_segments(segment) if n_sets is None else n_sets
        straight, correction = self.straight_and_correction(u, segment, weight, n_sets)
        return straight + self.gate * correction

    @property
    def gate(self) -> Tensor:
        """Share of the correction that is kept."""
        return torch.sigmoid(self.gate_logit)

    @property
    def is_closed(self) -> bool:
        """Whether the correction is left out for good."""
        return not self.gate_logit.requires_grad

    def close(self) -> None:
        """Leave the correction out for good: nothing that is trained could tell whether it helps."""
        with torch.no_grad():
            self.gate_logit.fill_(CLOSED)
        self.gate_logit.requires_grad_(False)

    def learning_rate_factor(self, name: str) -> float:
        return 20.0 if name == "gate_logit" else 1.0


class PooledEncoder(SetEncoder):
    """An encoder of the form head(mean over cells of features(u)).

    One pooled vector per set is all the state there is, so that populations of any size are embedded in one pass,
    influences are the head's Jacobian times a cell's features, and delete-one embeddings need no second pass.
    """

    jackknife_max = 300

    @abstractmethod
    def features(self, u: Tensor) -> Tensor:
        """Per-cell features to average, ``(cells, F)``."""

    @abstractmethod
    def head(self, pooled: Tensor) -> Tensor:
        """Embedding of pooled features, ``(*, F)`` to ``(*, n_embedding)``."""

    def forward(self, u: Tensor, segment: Tensor, weight: Tensor | None = None, n_sets: int | None = None) -> Tensor:
        n_sets = count_segments(segment) if n_sets is None else n_sets
        return self.head(self.pool(u, segment, weight, n_sets))

    def pool(self, u: Tensor, segment: Tensor, weight: Tensor | None, n_sets: int) -> Tensor:
        """Mean features of each set, ``(n_sets, F)``."""
        return segment_mean(self.features(u), segment, n_sets, weight)

    def head_jacobian(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding ``(K, n_embedding)`` and Jacobian ``(K, n_embedding, F)`` of the head at ``pooled``, ``(K, F)``."""
        with torch.enable_grad():
            pooled = pooled.detach().requires_grad_(True)
            z = self.head(pooled)
            rows = [
                torch.autograd.grad(z[:, c].sum(), pooled, retain_graph=True, allow_unused=True)[0]
                for c in range(self.n_embedding)
            ]
        return z.detach(), torch.stack([torch.zeros_like(pooled) if r is None else r for r in rows], dim=1)

    def influence(self, u: Tensor, segment: Tensor, n_sets: int) -> tuple[Tensor, Tensor]:
        sizes = torch.bincount(segment, minlength=n_sets)
        whole = len(u) <= _CELLS_PER_BLOCK
        # features of a population of a million cells would fill memory: some at a time, twice
        features = self.features(u) if whole else None
        if features is not None:
            pooled = segment_mean(features, segment, n_sets)
        else:
            blocks = torch.arange(len(u), device=u.device).split(_CELLS_PER_BLOCK)
            total = sum(segment_sum(self.features(u[rows]).double(), segment[rows], n_sets) for rows in blocks)
            pooled = (total / sizes.clamp_min(1)[:, None]).to(u.dtype)
        z, jacobian = self.head_jacobian(pooled)
        psi = z.new_empty((len(u), z.shape[1]))
        # set by set: Jacobians gathered for all cells would be (cells, n_embedding, F)
        for k, own in enumerate(torch.argsort(segment, stable=True).split(sizes.tolist())):
            for rows in own.split(_CELLS_PER_BLOCK):
                values = self.features(u[rows]) if features is None else features[rows]
                psi[rows] = (values - pooled[k]) @ jacobian[k].T
        return z, psi

    def delete_one(self, u: Tensor, segment: Tensor, n_sets: int) -> Tensor:
        features = self.features(u)
        sizes = torch.bincount(segment, minlength=n_sets).to(u.dtype)
        pooled = segment_mean(features, segment, n_sets)
        n = sizes[segment][:, None]
        return self.head((n * pooled[segment] - features) / (n - 1))
