"""The module: the one place where the four parts meet in one loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scgde._constants import BATCH_KEYS
from scgde._module_latents import LatentsMixin
from scgde._segments import segment_mean
from scgde.encoders import ENCODERS
from scgde.encoders.base import GatedEncoder
from scgde.generators import GENERATORS, AffineSkeleton
from scgde.generators.skeleton import N_FOLDS, fold_of, into_frame, inverse_frames, shared_frame
from scgde.geometry import UNMIXED, ExactTargets, IsometryTargets, held_out_sets, isometry_loss
from scgde.moments import PopulationMoments, few_cells, moment_size
from scgde.observations import Context, ObservationModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.distributions import Distribution

MAX_KEPT_NUMBERS = 20_000_000
"""Numbers of moment vectors of populations that are kept, at most."""

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


class GDEModule(LatentsMixin, BaseModuleClass):
    """Observation model, set encoder, generator and geometry.

    Training has two phases. First the observation model learns the cell latent ``u`` from single cells; it sets the
    ceiling of everything above it. Then, with ``u`` fixed, the set encoder and the generator learn from sets of cells:
    the encoder by the generator's loss (the GDE principle) and, for ``geometry="isometric"``, by Wasserstein distances.

    Parameters
    ----------
    observation
        Observation model.
    n_embedding, n_hidden
        Widths of the population embedding and of hidden layers.
    encoder, generator
        Names in :data:`scgde.encoders.ENCODERS` and :data:`scgde.generators.GENERATORS`.
    geometry
        ``"isometric"`` or ``"emergent"``.
    skeleton
        Whether generators work in the frame of each population, and not in one that all share.
    isometry_weight, generator_weight
        Weights of the terms of the population phase. A generator of weight zero is not trained.
    """

    def __init__(
        self,
        observation: ObservationModel,
        *,
        n_embedding: int = 64,
        n_hidden: int = 128,
        encoder: str = "residual",
        generator: str = "flow",
        geometry: str = "isometric",
        skeleton: bool = True,
        isometry_weight: float = 1.0,
        generator_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.observation = observation
        self.set_encoder = ENCODERS[encoder](observation.n_latent, n_embedding, n_hidden)
        self.skeleton = AffineSkeleton(observation.n_latent, n_embedding)
        self.generator = GENERATORS[generator](observation.n_latent, n_embedding, n_hidden)
        self.geometry = geometry
        self.has_skeleton = skeleton
        self.isometry_weight = isometry_weight
        self.generator_weight = generator_weight
        # moments of the training populations: targets of the population phase, not part of the model
        self.embedding_moments: PopulationMoments | None = None
        self.frame_moments: PopulationMoments | None = None
        self.shrinkage: tuple[float, Tensor] | None = None
        self.frame_inverse: Tensor | None = None
        self.frame_vectors: Tensor | None = None
        self.isometry_targets: IsometryTargets | None = None
        # straight terms of whole populations, and the moments of the latent that they belong to
        self._starts: tuple[PopulationMoments, Tensor] | None = None

    # ------------------------------------------------------------------ cells

    def _get_inference_input(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": tensors[BATCH_KEYS.X]}

    @auto_move_data
    def inference(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Any]:
        """Latent of rows ``(cells, n_vars)``: its law ``qu``, a draw ``u`` and the observed ``library``."""
        mean, sd = self.observation.encode(x)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return {"mean": mean, "sd": sd, "u": mean + sd * noise, "library": self.observation.library(x)}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Any]) -> dict[str, Any]:
        library = inference_outputs["library"]
        if BATCH_KEYS.SIZE_FACTOR in tensors:
            library = tensors[BATCH_KEYS.SIZE_FACTOR] * self.observation.size_factor_gain
        context = Context(
            library=library,
            batch=tensors[BATCH_KEYS.BATCH],
            categorical=tensors.get(BATCH_KEYS.CATEGORICAL),
            continuous=tensors.get(BATCH_KEYS.CONTINUOUS),
        )
        return {"u": inference_outputs["u"], "context": context}

    @auto_move_data
    def generative(self, u: Tensor, context: Context) -> dict[str, Distribution]:
        """Law of rows given latents ``(cells, n_latent)``."""
        return {"px": self.observation.decode(u, context)}

    def cell_loss(
        self, tensors: dict[str, Tensor], kl_weight: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[LossOutput, Tensor]:
        """Evidence bound of single cells, the loss of the cell phase, and the draws of latents it was computed with.

        That of :meth:`loss`, by :meth:`ObservationModel.log_likelihood` and not by a distribution: a law of every count takes more
        time than the rest of training.
        """
        inference = self.inference(**self._get_inference_input(tensors), generator=generator)
        context = self._get_generative_input(tensors, inference)["context"]
        log_likelihood = self.observation.log_likelihood(tensors[BATCH_KEYS.X], inference["u"], context)
        return self._bound(log_likelihood, inference, kl_weight), inference["u"]

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Evidence bound of single cells."""
        log_likelihood = generative_outputs["px"].log_prob(tensors[BATCH_KEYS.X]).sum(dim=1)
        return self._bound(log_likelihood, inference_outputs, kl_weight)

    def _bound(self, log_likelihood: Tensor, inference_outputs: dict[str, Any], kl_weight: float) -> LossOutput:
        reconstruction = -log_likelihood
        posterior = Normal(inference_outputs["mean"], inference_outputs["sd"])
        divergence = kl_divergence(posterior, Normal(0.0, self.observation.latent_scale)).sum(dim=1)
        return LossOutput(
            loss=(reconstruction + kl_weight * divergence).mean(),
            reconstruction_loss=reconstruction,
            kl_local=divergence,
        )

    # ------------------------------------------------------------ populations

    @torch.no_grad()
    def fit_populations(
        self, mean: Tensor, sd: Tensor, codes: Tensor, is_training: Tensor, set_size: int, *, further: bool = False
    ) -> None:
        """Targets and closed-form start of the population phase.

        Parameters
        ----------
        mean, sd
            Posterior mean and standard deviation of cell latents, ``(cells, n_latent)``.
        codes
            Population codes of the same cells, ``(cells,)``, none negative.
        is_training
            Whether each population trains, ``(n_populations,)``; the others only serve validation.
        set_size
            Number of cells in a training set at most.
        further
            Keep encoder and skeleton as they are: they have been trained on this latent.
        """
        k = is_training.shape[0]
        raw = PopulationMoments.from_cells(mean, codes, k)
        rows = is_training[codes]
        labels, dense = torch.unique(codes[rows], return_inverse=True)
        training = raw.select(labels)
        if not further:
            self.set_encoder.fit(mean[rows], dense, training, set_size)
        pooled, coefficient = training.pooled_covariance(), training.shrinkage()
        self.embedding_moments, self.shrinkage = raw, (coefficient, pooled)
        if self.geometry == "isometric":
            exact = None
            if self.set_encoder.wants_exact_targets:
                exact = ExactTargets.from_cells(mean[rows], codes[rows], k)
            self.isometry_targets = IsometryTargets(raw, exact)
        # cells are generated from their posterior, which is wider than its mean: law of total variance
        extra = torch.diag_embed(segment_mean(sd.square(), codes, k))
        # the frames that generators learn in: shrunk, since a few cells span no frame
        self.frame_moments = PopulationMoments(raw.n, raw.mean, raw.shrunk(coefficient, pooled).cov + extra)
        if not self.has_skeleton:
            self.frame_moments = shared_frame(mean[rows], sd[rows], k)
        self.frame_inverse = inverse_frames(self.frame_moments)
        if further:
            self._keep_frame_vectors()
            return
        shrinkage = self.set_encoder.shrinkage()
        if shrinkage is not None:
            self.skeleton.spectrum.load_state_dict(shrinkage.state_dict())
        z = self.set_encoder.in_blocks(mean[rows], dense, len(labels))
        self.skeleton.whiten(z)
        moments, inverse = self.frame_moments, None
        if self.has_skeleton:
            inverse = self.set_encoder.inverse()
            if self.geometry == "isometric":  # see _set_vectors
                shrunk = raw.shrunk(coefficient * few_cells(raw.n, mean.shape[1]), pooled)
                moments = PopulationMoments(raw.n, raw.mean, shrunk.cov + extra)
        self._keep_frame_vectors()
        vectors = self.skeleton.vector(moments.mean[labels], moments.cov[labels])
        self.skeleton.fit(z, vectors, inverse, n_read=self.set_encoder.n_read)

    def _keep_frame_vectors(self) -> None:
        """Compute the moment vectors of all populations, which emergent geometry learns from, unless there are too many."""
        assert self.frame_moments is not None
        mean, cov = self.frame_moments.mean, self.frame_moments.cov
        few = len(mean) * moment_size(mean.shape[1]) <= MAX_KEPT_NUMBERS
        self.frame_vectors = self.skeleton.vector(mean, cov) if self.geometry == "emergent" and few else None

    @torch.no_grad()
    def fit_skeleton(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Fit the skeleton in closed form to the embeddings of sets ``batches``, as they have become in training.

        Steps of an optimiser leave moments with an error that is small beside the differences of means and large beside those of
        spreads. In isometric geometry nothing else depends on the skeleton, so that it may be replaced at the end.
        """
        if not self.has_skeleton or self.geometry == "emergent":
            return
        z, vectors, folds = [], [], []
        for batch in batches:
            mean, segment, sources = batch[BATCH_KEYS.U_MEAN], batch[BATCH_KEYS.SEGMENT], batch[BATCH_KEYS.SOURCES]
            z.append(self.set_encoder(mean, segment, n_sets=len(sources)))
            vectors.append(
                self._set_vectors(mean, batch[BATCH_KEYS.U_SD], segment, sources, batch[BATCH_KEYS.SOURCE_WEIGHTS])
            )
            present = batch[BATCH_KEYS.SOURCE_WEIGHTS] > 0
            folds.append(torch.stack([((fold_of(sources) == f) & present).any(1) for f in range(N_FOLDS)], dim=1))
        encoder = self.set_encoder
        self.skeleton.fit(torch.cat(z), torch.cat(vectors), encoder.inverse(), torch.cat(folds), encoder.n_read)

    def population_loss(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Loss of the population phase on K ragged sets.

        Returns
        -------
        ``loss`` and its terms (``generator``, and ``moments`` or ``isometry``), scalars.
        """
        assert self.embedding_moments is not None and self.frame_moments is not None
        mean, sd, segment = batch[BATCH_KEYS.U_MEAN], batch[BATCH_KEYS.U_SD], batch[BATCH_KEYS.SEGMENT]
        sources, weights = batch[BATCH_KEYS.SOURCES], batch[BATCH_KEYS.SOURCE_WEIGHTS]
        scored = batch.get(BATCH_KEYS.SCORED)
        encoded = slice(None) if scored is None else ~scored
        whole = self._whole_populations(segment, sources, weights) if scored is None and self.training else None
        sets = self._embed_training_sets(mean[encoded], segment[encoded], sources, weights, whole)
        z = sets.z

        target = self.frame_moments.mixtures(sources, weights)
        moments = z.new_zeros(())
        if self.has_skeleton and self.geometry == "emergent":
            # the encoder learns to tell the law of the whole population from a part of it; where nothing but decoding depends
            # on the skeleton, it is fitted at the end (fit_skeleton)
            moments = self.skeleton.loss(z, self._frame_vectors(target, sources, weights))

        generated = z.new_zeros(())
        if self.generator_weight:
            rows = torch.ones_like(segment, dtype=torch.bool) if scored is None else scored
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            u, codes = (mean + sd * noise)[rows], segment[rows]
            y = into_frame(u, target, codes, self._inverse_frames(target, sources, weights))
            generated = self.generator.loss(y, self.skeleton.condition(z)[codes], codes, generator)
            # a population of one cell has no shape to learn; sets weigh alike whatever their size
            has_shape = (target.n > 1.5)[codes]
            generated = (generated * has_shape).sum() / has_shape.sum().clamp_min(1)

        loss = self.generator_weight * generated + moments
        terms = {"generator": generated.detach()}
        if self.geometry == "emergent":
            terms["moments"] = moments.detach()
        if self.geometry == "isometric":
            assert self.isometry_targets is not None
            isometry, of_gate = self._isometry(sets, self.isometry_targets.distances(sources, weights))
            loss = loss + self.isometry_weight * isometry + of_gate
            terms["isometry"] = isometry.detach()
        return {"loss": loss, **terms}

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
        if self.geometry != "isometric" or not isinstance(encoder, GatedEncoder):
            return _EmbeddedSets(encoder(u, segment, n_sets=k))
        assert self.embedding_moments is not None
        held = held_out_sets(sources, weights, len(self.embedding_moments.n))
        straight, correction = self._terms_of_sets(encoder, u, segment, sources[:, 0], whole)
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
