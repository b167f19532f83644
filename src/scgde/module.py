"""The module: the one place where the four parts meet in one loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from scgde._constants import BATCH_KEYS
from scgde._distributed import Counts
from scgde._module_latents import LatentsMixin
from scgde._module_sets import SetsMixin
from scgde.encoders import ENCODERS
from scgde.encoders.base import GatedEncoder
from scgde.generators import GENERATORS, AffineSkeleton
from scgde.generators.skeleton import N_FOLDS, fold_of, into_frame, inverse_frames, shared_frame
from scgde.geometry import ExactTargets, IsometryTargets, held_out_sets
from scgde.moments import PopulationMoments, few_cells, moment_size
from scgde.observations import Context, ObservationModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.distributions import Distribution

MAX_KEPT_NUMBERS = 20_000_000
"""Numbers of moment vectors of populations that are kept, at most."""


class GDEModule(SetsMixin, LatentsMixin, BaseModuleClass):
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
        exact = self.set_encoder.wants_exact_targets
        if isinstance(self.set_encoder, GatedEncoder) and geometry == "isometric" and not exact:
            # the targets are what the straight term has already, and their noise
            self.set_encoder.close()
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
        self,
        raw: PopulationMoments,
        extra: Tensor,
        mean: Tensor,
        sd: Tensor,
        codes: Tensor,
        is_training: Tensor,
        set_size: int,
        *,
        further: bool = False,
    ) -> None:
        """Targets and closed-form start of the population phase.

        Parameters
        ----------
        raw
            Moments of the latents' posterior means in every population, held-out ones included.
        extra
            Mean posterior variance of the latents in every population, ``(n_populations, n_latent)``.
        mean, sd
            Posterior mean and standard deviation of the latents of training cells, ``(cells, n_latent)``: of all populations that
            train, or where there are too many cells of some of them.
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
        labels, dense = torch.unique(codes, return_inverse=True)
        training = raw.select(is_training.nonzero()[:, 0])
        if not further:
            self.set_encoder.fit(mean, dense, raw.select(labels), set_size)
        if self.geometry == "isometric" and isinstance(self.set_encoder, GatedEncoder):
            everyone = torch.arange(k, device=codes.device)[:, None]
            if not held_out_sets(everyone, torch.ones_like(everyone), k).any():
                self.set_encoder.close()
        pooled, coefficient = training.pooled_covariance(), training.shrinkage()
        self.embedding_moments, self.shrinkage = raw, (coefficient, pooled)
        if self.geometry == "isometric":
            exact = None
            if self.set_encoder.wants_exact_targets:
                exact = ExactTargets.from_cells(mean, codes, k)
            self.isometry_targets = IsometryTargets(raw, exact)
        # cells are generated from their posterior, which is wider than its mean: law of total variance
        extra = torch.diag_embed(extra)
        # the frames that generators learn in: shrunk, since a few cells span no frame
        self.frame_moments = PopulationMoments(raw.n, raw.mean, raw.shrunk(coefficient, pooled).cov + extra)
        if not self.has_skeleton:
            self.frame_moments = shared_frame(mean, sd, k)
        self.frame_inverse = inverse_frames(self.frame_moments)
        if further:
            self._keep_frame_vectors()
            return
        shrinkage = self.set_encoder.shrinkage()
        if shrinkage is not None:
            self.skeleton.spectrum.load_state_dict(shrinkage.state_dict())
        z = self.set_encoder.in_blocks(mean, dense, len(labels))
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

    def population_loss(
        self, batch: dict[str, Tensor], generator: torch.Generator | None = None, *, together: bool = False
    ) -> dict[str, Tensor]:
        """Loss of the population phase on K ragged sets.

        Parameters
        ----------
        batch
            Sets.
        generator
            Source of noise.
        together
            Whether the batch is one process's part of a joint batch. The average over processes then is the loss of the joint batch,
            whose sets are all compared with each other.

        Returns
        -------
        ``loss`` and its terms (``generator``, and ``moments`` or ``isometry``), scalars.
        """
        assert self.embedding_moments is not None and self.frame_moments is not None
        mean, sd, segment = batch[BATCH_KEYS.U_MEAN], batch[BATCH_KEYS.U_SD], batch[BATCH_KEYS.SEGMENT]
        sources, weights = batch[BATCH_KEYS.SOURCES], batch[BATCH_KEYS.SOURCE_WEIGHTS]
        scored = batch.get(BATCH_KEYS.SCORED)
        encoded = slice(None) if scored is None else ~scored
        target = self.frame_moments.mixtures(sources, weights)
        rows = torch.ones_like(segment, dtype=torch.bool) if scored is None else scored
        has_shape = (target.n > 1.5)[segment[rows]]  # a population of one cell has no shape to learn
        counts = Counts(len(sources), has_shape.sum(), device=mean.device) if together else None
        whole = self._whole_populations(segment, sources, weights) if scored is None and self.training else None
        sets = self._embed_training_sets(mean[encoded], segment[encoded], sources, weights, whole)
        z = sets.z
        joint = None
        if counts is not None and self.geometry == "isometric":  # on their way while the generator is trained
            joint = sets.of_all_processes(sources, weights, sizes=counts.of_all(0).tolist())

        moments = z.new_zeros(())
        if self.has_skeleton and self.geometry == "emergent":
            # the encoder learns to tell the law of the whole population from a part of it; where nothing but decoding depends
            # on the skeleton, it is fitted at the end (fit_skeleton)
            moments = self.skeleton.loss(z, self._frame_vectors(target, sources, weights))
            if counts is not None:
                moments = moments * counts.share(0)

        generated = z.new_zeros(())
        if self.generator_weight:
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
            u, codes = (mean + sd * noise)[rows], segment[rows]
            y = into_frame(u, target, codes, self._inverse_frames(target, sources, weights))
            generated = self.generator.loss(y, self.skeleton.condition(z)[codes], codes, generator)
            # sets weigh alike whatever their size
            generated = (generated * has_shape).sum() / has_shape.sum().clamp_min(1)
            if counts is not None:
                generated = generated * counts.share(1)

        loss = self.generator_weight * generated + moments
        terms = {"generator": generated.detach()}
        if self.geometry == "emergent":
            terms["moments"] = moments.detach()
        if self.geometry == "isometric":
            assert self.isometry_targets is not None
            if joint is not None:
                sets, (sources, weights) = joint()
            wanted = self.isometry_targets.distances(sources, weights, together=together)
            isometry, of_gate = self._isometry(sets, wanted)
            loss = loss + self.isometry_weight * isometry + of_gate
            terms["isometry"] = isometry.detach()
        return {"loss": loss, **terms}
