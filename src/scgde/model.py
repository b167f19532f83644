"""The model: what the user touches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scvi import settings
from scvi.model.base import BaseModelClass

from scgde._model_embedding import EmbeddingMixin
from scgde._model_files import ModelFilesMixin
from scgde._model_generation import GenerationMixin
from scgde._model_groups import GroupsMixin
from scgde._model_paths import PathsMixin
from scgde._model_setup import SetupMixin
from scgde._model_training import TrainingMixin, check_choice
from scgde.data.cells import check_counts, locate_matrix
from scgde.data.streaming import StreamedCells, as_cells, check_stored_counts
from scgde.encoders import ENCODERS
from scgde.generators import GENERATORS
from scgde.module import GDEModule
from scgde.observations import COUNT_LIKELIHOODS, ContinuousModel, CountModel

if TYPE_CHECKING:
    from anndata import AnnData

MAX_CONTINUOUS = 128
"""Widest continuous row: the latent is the row itself, and its covariance must be decomposed for every set."""


class GDEModel(
    SetupMixin, TrainingMixin, ModelFilesMixin, EmbeddingMixin, GroupsMixin, GenerationMixin, PathsMixin, BaseModelClass
):
    """Generative distribution embeddings of populations of cells.

    Groups the cells of an AnnData into populations (clones, perturbations, samples, time points), learns a cell latent
    ``u`` from their counts, encodes the set of a population's cells into one vector ``z`` and learns a generator that
    reproduces the population from it. Euclidean distance between vectors approximates the 2-Wasserstein distance
    between populations of ``u``. Implements Fishman et al. 2025 (arXiv 2505.18150) with a count likelihood.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`, or what :meth:`setup_zarr` returned.
    registry
        Registry of a saved model, in place of ``adata``.
    n_latent
        Width of the cell latent ``u``; continuous rows are their own latent and ignore it. Populations differ along more
        axes than cells mostly vary along, so that it should not be too narrow.
    n_embedding
        Width of the population embedding ``z``.
    n_hidden
        Width of hidden layers.
    n_layers
        Hidden layers of the cell encoder.
    encoder
        Set encoder: ``"residual"`` (the default; starts as an isometric projection of moments), ``"shape"`` (adds what generators need
        for populations of several clusters), ``"transport"`` (starts as linearised optimal transport), ``"states"`` (mean and
        shares of cell states, for many small populations such as clones), ``"mean"``, ``"kernel_mean"``, ``"mean_pool"``, ``"median_pool"``, ``"attention"`` (quadratic in the size of a population) or
        ``"induced_attention"`` (linear).
    generator
        Generator: ``"flow"`` (the default; the fastest to train among those that can transport cells), ``"diffusion"``,
        ``"mixture"``, ``"vae"``, ``"gan"``, or one trained by a distance between sets: ``"sliced_wasserstein"``, ``"sinkhorn"``, ``"mmd"``,
        ``"energy"``.
    gene_likelihood
        ``"zinb"``, ``"nb"`` or ``"poisson"`` for counts, ``"normal"`` for continuous rows. By default ``"zinb"``, and
        ``"normal"`` if the model was set up with ``obsm_key``.
    geometry
        ``"isometric"`` ties distances between embeddings to Wasserstein distances; ``"emergent"`` leaves them to the
        generator's loss, as the paper does.
    skeleton
        Whether mean and spread of a population are read off its embedding in closed form, so that the generator has only
        its shape to learn. Without, the generator learns all of it, as in the paper; for comparison.
    dispersion
        ``"gene"`` or ``"gene-batch"``.
    expression_weight
        How axes of ``u``, and with them distances, weigh: 0 all alike, 1 by what they change in log-normalised expression.
        The larger, the closer distances are to those of decoded expression; the smaller, the more often a real population
        is found again by its other half. Continuous rows ignore it.
    generator_weight
        Weight of the generator's loss in what the set encoder learns from, against moments and, for
        ``geometry="isometric"``, distances. Under a small weight the embedding is for moments and distances first, and the
        generator learns all the same: its steps do not depend on the scale of its loss. With 0 it is not trained.

    Examples
    --------
    >>> import scgde
    >>> adata = scgde.datasets.simulate_populations(12, cells_per_population=(10, 30), n_genes=50)
    >>> scgde.GDEModel.setup_anndata(adata)
    >>> model = scgde.GDEModel(adata)
    >>> model.train(max_epochs=2)  # doctest: +SKIP
    >>> model.get_population_embedding()  # doctest: +SKIP
    """

    def __init__(
        self,
        adata: AnnData | StreamedCells | None = None,
        registry: dict | None = None,
        *,
        n_latent: int = 20,
        n_embedding: int = 64,
        n_hidden: int = 128,
        n_layers: int = 2,
        encoder: str = "residual",
        generator: str = "flow",
        gene_likelihood: str | None = None,
        geometry: Literal["isometric", "emergent"] = "isometric",
        skeleton: bool = True,
        dispersion: Literal["gene", "gene-batch"] = "gene",
        expression_weight: float = 0.5,
        generator_weight: float = 1.0,
    ) -> None:
        self._cells: StreamedCells | None = None
        if isinstance(adata, str | os.PathLike):
            message = f"A model needs cells that are set up: GDEModel(GDEModel.setup_zarr({os.fspath(adata)!r}, ...))."
            raise TypeError(message)
        if isinstance(adata, StreamedCells):
            if adata.registry is None:
                message = "Set the folder up first: cells = GDEModel.setup_zarr(path, ...)."
                raise ValueError(message)
            self._cells, registry = adata, adata.registry
        super().__init__(None if self._cells is not None else adata, registry)
        args = self.registry_["setup_args"]
        if gene_likelihood is None:
            is_real = args["obsm_key"] is not None or (self._cells is not None and not self._cells.are_counts)
            gene_likelihood = "normal" if is_real else "zinb"
        check_choice("encoder", encoder, ENCODERS)
        check_choice("generator", generator, GENERATORS)
        check_choice("geometry", geometry, ("isometric", "emergent"))
        check_choice("dispersion", dispersion, ("gene", "gene-batch"))
        check_choice("gene_likelihood", gene_likelihood, (*COUNT_LIKELIHOODS, "normal"))
        for name, value in (("n_latent", n_latent), ("n_embedding", n_embedding), ("n_hidden", n_hidden)):
            if not isinstance(value, int | np.integer) or value < 1:
                message = f"{name}={value!r} must be a positive integer."
                raise ValueError(message)
        if not _is_number(expression_weight) or not 0 <= expression_weight <= 1:
            message = f"expression_weight={expression_weight!r} must be a number between 0 and 1."
            raise ValueError(message)
        if not _is_number(generator_weight) or not 0 <= generator_weight < np.inf:
            message = f"generator_weight={generator_weight!r} must be a finite number of at least 0."
            raise ValueError(message)
        if not generator_weight and not skeleton and geometry == "emergent":
            message = "With generator_weight=0, skeleton=False and geometry='emergent' there is nothing to learn from."
            raise ValueError(message)
        expression_weight, generator_weight = float(expression_weight), float(generator_weight)
        if args["obsm_key"] is not None and gene_likelihood in COUNT_LIKELIHOODS:
            message = (
                f"gene_likelihood={gene_likelihood!r} is for counts, and the rows are obsm[{args['obsm_key']!r}]; use "
                "'normal', or set up the counts with layer=."
            )
            raise ValueError(message)
        self.gene_likelihood_ = gene_likelihood
        self._check_rows()
        if self.summary_stats.n_population < 2:
            message = (
                "There is only one population; embeddings compare populations, so at least two are needed. Check "
                f"population_key={args['population_key']!r}."
            )
            raise ValueError(message)
        self._module_options: dict[str, Any] = {
            "n_latent": n_latent,
            "n_layers": n_layers,
            "n_embedding": n_embedding,
            "n_hidden": n_hidden,
            "encoder": encoder,
            "generator": generator,
            "geometry": geometry,
            "dispersion": dispersion,
            "expression_weight": expression_weight,
            "skeleton": bool(skeleton),
            "generator_weight": generator_weight,
        }
        self.module = self._build_module(settings.seed)
        self._model_summary_string = (
            f"GDEModel with {self.summary_stats.n_population} populations, n_latent: {self.module.observation.n_latent}, "
            f"n_embedding: {n_embedding}, encoder: {encoder}, generator: {generator}, gene_likelihood: "
            f"{gene_likelihood}, geometry: {geometry}"
        )
        self.init_params_ = self._get_init_params(locals())

    @property
    def adata(self) -> Any:
        """The AnnData, or the cells on disk, that the model is attached to; None without."""
        return self._adata if self._cells is None else self._cells

    @adata.setter
    def adata(self, adata: Any) -> None:
        if adata is None:
            message = "adata cannot be None."
            raise ValueError(message)
        adata = as_cells(adata)
        if isinstance(adata, StreamedCells):
            self._attach(adata)
            return
        self._attach(self._validate_anndata(adata))

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Names of the model's variables.

        Parameters
        ----------
        legacy_mudata_format
            Of no meaning here; a parameter of scvi-tools.
        """
        return np.asarray(self._variables())

    def _attach(self, adata: AnnData | StreamedCells) -> None:
        """Make a registered AnnData, or cells on disk, the model's own; the registry, and so the order of genes, stays the model's."""
        if isinstance(adata, StreamedCells):
            check_stored_counts(adata, self.gene_likelihood_)
            self._cells = adata
            return
        self._cells, self._adata = None, adata
        self._adata_manager = self._get_most_recent_anndata_manager(adata, required=True)
        self._register_manager_for_instance(self._adata_manager)
        self._check_rows()

    def _check_rows(self) -> None:
        args = self.registry_["setup_args"]
        if self.gene_likelihood_ in COUNT_LIKELIHOODS:
            if self._cells is not None:
                check_stored_counts(self._cells, self.gene_likelihood_)
            elif self.adata is not None:
                check_counts(locate_matrix(self.adata, args["layer"], args["obsm_key"]), self.gene_likelihood_)
            return
        if self.summary_stats.n_vars > MAX_CONTINUOUS:
            message = (
                f"Continuous rows have {self.summary_stats.n_vars} columns; at most {MAX_CONTINUOUS} are supported. "
                "Reduce them first, for example to 50 principal components in obsm."
            )
            raise ValueError(message)
        if args["batch_key"] or args["categorical_covariate_keys"] or args["continuous_covariate_keys"]:
            message = (
                "Continuous rows are their own latent, from which no batch or covariate can be removed: set up without "
                "batch_key and covariate keys, on rows that are corrected already."
            )
            raise ValueError(message)

    def _build_module(self, seed: int | None) -> GDEModule:
        o, stats = self._module_options, self.summary_stats
        with torch.random.fork_rng(devices=[]):  # initial weights must not move the user's random state
            torch.manual_seed(seed) if seed is not None else torch.seed()
            if self.gene_likelihood_ == "normal":
                observation: Any = ContinuousModel(stats.n_vars)
            else:
                categories = self.registry_["field_registries"]["extra_categorical_covs"]["state_registry"]
                observation = CountModel(
                    stats.n_vars,
                    o["n_latent"],
                    n_hidden=o["n_hidden"],
                    n_layers=o["n_layers"],
                    gene_likelihood=self.gene_likelihood_,  # type: ignore[arg-type]
                    dispersion=o["dispersion"],
                    expression_weight=o["expression_weight"],
                    n_batch=stats.n_batch,
                    n_categories=list(categories.get("n_cats_per_key", [])),
                    n_continuous=stats.get("n_extra_continuous_covs", 0),
                )
            return GDEModule(
                observation,
                n_embedding=o["n_embedding"],
                n_hidden=o["n_hidden"],
                encoder=o["encoder"],
                generator=o["generator"],
                geometry=o["geometry"],
                skeleton=o["skeleton"],
                generator_weight=o["generator_weight"],
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
