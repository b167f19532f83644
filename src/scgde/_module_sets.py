"""Sets of a training batch: their embeddings, what they are compared with, and the isometry of both."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scgde._distributed import Gathering
from scgde._segments import segment_mean
from scgde.encoders.base import GatedEncoder
from scgde.generators.skeleton import inverse_frames
from scgde.geometry import UNMIXED, held_out_sets, isometry_loss
from scgde.moments import PopulationMoments, few_cells

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgde.encoders.base import SetEncoder
    from scgde.generators import AffineSkeleton
    from scgde.geometry import IsometryTargets

PARSIMONY = 0.2
"""Share of the error that a correction must take away from held-out populations to be worth keeping: with a few dozen of them less
is chance, and what a correction does to sets of another size than it was trained on is not seen at all."""


@dataclass(frozen=True)
class _EmbeddedSets:
    """Embeddings ``z`` of the sets of a batch; of a gated encoder also its two terms and which sets do not train its correction."""

    z: Tensor
    held: Tensor | None = None
    straight: Tensor | None = None
    correction: Tensor | None = None

    def of_all_processes(
        self, *facts: Tensor, sizes: list[int]
    ) -> Callable[[], tuple[_EmbeddedSets, tuple[Tensor, ...]]]:
        """Ask for the sets of all processes that train together, and facts of them; what is returned waits for them."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        gathering = Gathering(*known.values(), *facts, sizes=sizes)

        def finish() -> tuple[_EmbeddedSets, tuple[Tensor, ...]]:
            joint = gathering.finish()
            return _EmbeddedSets(**dict(zip(known, joint, strict=False))), joint[len(known) :]

        return finish


class SetsMixin:
    """What :meth:`scgde.module.GDEModule.population_loss` needs of each set."""

    set_encoder: SetEncoder
    skeleton: AffineSkeleton
    geometry: str
    embedding_moments: PopulationMoments | None
    isometry_targets: IsometryTargets | None
    shrinkage: tuple[float, Tensor] | None
    frame_inverse: Tensor | None
    frame_vectors: Tensor | None
    _starts: tuple[PopulationMoments, Tensor] | None

    def _frame_vectors(self, target: PopulationMoments, sources: Tensor, weights: Tensor) -> Tensor:
        """Moment vectors of the frames of the sets of a batch, ``(K, m)``."""
        if self.frame_vectors is None or (weights[:, 0] <= UNMIXED).any():
            return self.skeleton.vector(target.mean, target.cov)
        return self.frame_vectors[sources[:, 0]]

    def _inverse_frames(self, target: PopulationMoments, sources: Tensor, weights: Tensor) -> Tensor:
        """Inverse frames of the sets of a batch, ``(K, d, d)``; those of populations have been computed before training."""
        assert self.frame_inverse is not None
        mixed = weights[:, 0] <= UNMIXED
        inverse = self.frame_inverse[sources[:, 0]]
        if mixed.any():
            inverse[mixed] = inverse_frames(target.select(mixed))
        return inverse

    def _set_vectors(self, mean: Tensor, sd: Tensor, segment: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        """Moment vectors of the cells of each set, which are what the skeleton reads off the set's embedding, ``(K, m)``.

        Those of whole populations, of which sets are parts, would teach it to pull spreads towards the average as far as a
        part asks for, and it would go on to do so where a whole population is embedded. Embeddings do not know the number of cells:
        shrinkage is as whole populations ask for.
        """
        assert self.embedding_moments is not None and self.shrinkage is not None
        k, (coefficient, pooled) = len(sources), self.shrinkage
        moments = PopulationMoments.from_cells(mean, segment, k)
        n = self.embedding_moments.mixtures(sources, weights).n
        # an embedding sees covariances with divisor n, and mostly is freed of that bias by the jackknife before it is decoded
        factor = (moments.n - 1) / moments.n
        moments = PopulationMoments(moments.n, moments.mean, moments.cov * factor[:, None, None])
        cov = moments.shrunk(coefficient * few_cells(n, mean.shape[1]), pooled).cov
        return self.skeleton.vector(moments.mean, cov + torch.diag_embed(segment_mean(sd.square(), segment, k)))

    def _whole_populations(self, segment: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        """Which sets are all training cells of one population, ``(K,)``."""
        assert self.embedding_moments is not None
        sizes = torch.bincount(segment, minlength=len(sources))
        return (weights[:, 0] > UNMIXED) & (sizes == self.embedding_moments.n[sources[:, 0]])

    def _embed_training_sets(
        self, u: Tensor, segment: Tensor, sources: Tensor, weights: Tensor, whole: Tensor | None
    ) -> _EmbeddedSets:
        k, encoder = len(sources), self.set_encoder
        if not isinstance(encoder, GatedEncoder):
            return _EmbeddedSets(encoder(u, segment, n_sets=k))
        assert self.embedding_moments is not None
        straight, correction = self._terms_of_sets(encoder, u, segment, sources[:, 0], whole)
        if encoder.is_closed:
            return _EmbeddedSets(straight)
        if self.geometry != "isometric":
            return _EmbeddedSets(straight + encoder.gate * correction)
        held = held_out_sets(sources, weights, len(self.embedding_moments.n))
        correction = torch.where(held[:, None], correction.detach(), correction)
        return _EmbeddedSets(straight + encoder.gate.detach() * correction, held, straight, correction)

    def _terms_of_sets(
        self, encoder: GatedEncoder, u: Tensor, segment: Tensor, codes: Tensor, whole: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Terms of a gated encoder; the straight ones of whole populations are computed once where training leaves them alone."""
        if whole is None or not encoder.has_fixed_start:
            return encoder.straight_and_correction(u, segment, None, len(codes))
        moments = self.embedding_moments
        assert moments is not None
        if self._starts is None or self._starts[0] is not moments:
            self._starts = moments, u.new_full((len(moments.n), encoder.n_embedding), torch.nan)
        kept = self._starts[1]
        known = torch.where(whole[:, None], kept[codes], torch.nan)
        straight, correction = encoder.straight_and_correction(u, segment, None, len(codes), known)
        kept[codes[whole]] = straight.detach()[whole]
        return straight, correction

    def kept_state(self) -> dict[str, Tensor | None]:
        """What steps have computed once and use again, for a checkpoint: computed anew in other batches it is rounded in another way."""
        targets = self.isometry_targets
        return {
            "starts": None if self._starts is None else self._starts[1],
            "distances": None if targets is None else targets.kept,
        }

    def restore_kept(self, state: dict[str, Tensor | None]) -> None:
        """Inverse of :meth:`kept_state`, after :meth:`scgde.module.GDEModule.fit_populations`."""
        assert self.embedding_moments is not None
        device = self.embedding_moments.mean.device
        if state["starts"] is not None:
            self._starts = self.embedding_moments, state["starts"].to(device)
        if state["distances"] is not None and self.isometry_targets is not None:
            self.isometry_targets.kept = state["distances"].to(device)

    def _isometry(self, sets: _EmbeddedSets, target: Tensor) -> tuple[Tensor, Tensor]:
        """Isometry loss of the embeddings, and that of the gate, on populations that its correction is not trained on.

        The correction is trained as if the gate were open. Were it trained behind the gate, it would grow as the gate closes.
        """
        if sets.correction is None:
            return isometry_loss(sets.z, target), sets.z.new_zeros(())
        assert sets.straight is not None and sets.held is not None and isinstance(self.set_encoder, GatedEncoder)
        apart = sets.held[:, None] | sets.held
        start = sets.straight.detach()
        loss = isometry_loss(start + sets.correction, target, ~apart, start)
        if sets.straight.requires_grad:
            loss = loss + isometry_loss(sets.straight, target, ~apart)
        gate = self.set_encoder.gate
        error = isometry_loss(start + gate * sets.correction.detach(), target, apart, start)
        without = isometry_loss(start, target, apart, start)
        return loss, error + PARSIMONY * gate * without
