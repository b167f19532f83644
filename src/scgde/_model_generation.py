"""Cells generated or decoded by :class:`scgde.GDEModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgde._model_decoding import DecodingMixin, check_count, check_library_size
from scgde._sparse import supports_sparse
from scgde.data.populations import column_labels
from scgde.data.streaming import as_cells
from scgde.generation import (
    CellContexts,
    embed_with_contexts,
    find_labels,
    generate_latents,
    make_context,
    resolve_populations,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scgde.data import PopulationDataModule

MAX_REFERENCE = 5000
"""Cells of the reference sample for cells in no population."""


class GenerationMixin(DecodingMixin):
    """Sampling of populations and decoding of cells."""

    seed_: int
    reference_: np.ndarray

    if TYPE_CHECKING:

        def get_var_names(self) -> Any: ...

    def _remember_populations(self, data: PopulationDataModule) -> None:
        """Keep embeddings and contexts of all populations, so that the model generates without its AnnData."""
        table = data.table
        rng = np.random.default_rng([self.seed_, 2])
        embedding, contexts, latents = embed_with_contexts(self.module, table, rng, data.latent)
        assigned = data.train_idx[table.codes[data.train_idx] >= 0]
        chosen = rng.choice(assigned, min(MAX_REFERENCE, len(assigned)), replace=False)
        self.reference_ = latents.rows(np.sort(chosen))[0].numpy()
        self.contexts_ = contexts.to_dict()
        present, first = np.unique(table.codes, return_index=True)
        first = first[present >= 0]
        parts = pd.DataFrame({k: column_labels(table.column(k).iloc[first]) for k in self._population_keys()})
        self.populations_ = {
            "labels": embedding.labels,
            "z": embedding.z,
            "n_cells": embedding.n_cells,
            "parts": parts.to_numpy(dtype=object),
        }

    def sample(
        self,
        populations: Any,
        n_cells: int = 100,
        *,
        adata: AnnData | None = None,
        batch: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        library_size: float | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Generate new cells of populations.

        Parameters
        ----------
        populations
            Labels (a tuple of parts for a crossed key), or a DataFrame of embeddings, one population for each row.
        n_cells
            Cells for each population.
        adata
            AnnData whose populations are meant: they are embedded from its cells, and generated with the library sizes,
            batches and covariates of its cells. By default those of training. A population that the model was not
            trained on should be given so, since its depth is not part of its embedding.
        batch
            Batch to decode under, with library sizes of the population's cells in it (of all cells in it, if there are
            none). By default each population's own mix of batches.
        covariates
            Values of covariates to decode under, by column. By default the population's own.
        library_size
            Expected total count of every cell. By default drawn from the population's own library sizes, given the
            cell's state. For embeddings, "own" means those of the nearest training population.
        seed
            Seed of the draw; ``scvi.settings.seed`` by default, else fresh.

        Returns
        -------
        AnnData of integer counts (of floats for continuous rows), ``n_cells`` for each population in order, with
        ``obs["gde_population"]``, ``obs["gde_library_size"]`` and the columns of the population key, batch and
        covariates, so that it can be embedded like any other. A column that is a part of the population key keeps the
        population's value; what was decoded under is then in ``obs["gde_COLUMN"]``.

        Raises
        ------
        KeyError
            If a population, batch or category is unknown.
        ValueError
            If an argument is out of range, or cells of ``adata`` are in a batch that the model was not trained with and
            no ``batch`` is given.
        """
        self._require_trained()
        check_count("n_cells", n_cells, "the number of cells for each population")
        check_library_size(library_size)
        rng, generator = self._randomness(seed)
        known, known_z = list(self.populations_["labels"]), np.asarray(self.populations_["z"])
        contexts = CellContexts.from_dict(self.contexts_)
        if adata is not None:
            embedding, contexts, _ = embed_with_contexts(self.module, self._table(adata), rng)
            known, known_z = embedding.labels, embedding.z
        labels, z, nearest = resolve_populations(populations, known, known_z, by_label=adata is not None)
        rows = contexts.draw(np.repeat(nearest, n_cells), rng, None if batch is None else self._batch_code(batch))
        u, expected = generate_latents(self.module, np.repeat(z, n_cells, 0), generator)
        context = self._contexts_of(
            contexts, rows, expected, batch=batch, covariates=covariates, library_size=library_size
        )
        parts = [self._parts_of(label) for label in labels]
        return self._generated_adata(u, context, labels, parts, np.repeat(np.arange(len(labels)), n_cells), generator)

    @torch.no_grad()
    def _decoded(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        batch: Any,
        gene_list: Sequence[str] | None,
        batch_size: int | None,
        generator: torch.Generator | None,
    ):
        """Decode cells in blocks: yields the block's law, its genes and its library sizes."""
        self._require_trained()
        table = self._table(adata)
        rows = np.arange(table.n_cells) if indices is None else np.arange(table.n_cells)[np.asarray(indices)]
        codes = table.batch[rows] if batch is None else np.full(len(rows), self._batch_code(batch))
        self._check_batches(codes, "transform_batch= (batch=)")
        names = pd.Index(np.asarray(self._variables(), dtype=object).astype(str))
        gene_list = [gene_list] if isinstance(gene_list, str) else gene_list
        genes = np.arange(len(names)) if gene_list is None else find_labels(gene_list, list(names), "gene_list")
        observation, step = self.module.observation, batch_size or 1024
        self.module.eval()
        sparse = observation.reads_sparse and supports_sparse(self.module.device)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            x = table.tensor(rows[part], sparse=sparse).to(self.module.device)
            mean, sd = observation.encode(x)
            if generator is not None:
                mean = mean + sd * torch.randn(mean.shape, generator=generator, device=mean.device)
            library = observation.library(x)[:, 0].cpu().numpy()
            if table.size_factor is not None:
                library = table.size_factor[rows[part]] * float(observation.size_factor_gain)
            context = make_context(
                library, codes[part], table.categorical[rows[part]], table.continuous[rows[part]], x.device
            )
            yield observation.decode(mean, context), genes, library

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        transform_batch: Any = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | str = 1,
        n_samples: int = 1,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool = False,
        seed: int | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """Expected expression of cells, decoded from their latents; signature of scvi-tools.

        Parameters
        ----------
        adata, indices
            Cells; the model's own by default.
        transform_batch
            Batch to decode under; each cell's own by default.
        gene_list
            Genes to return.
        library_size
            Total to scale each cell's expression to (over all genes), or ``"latent"`` for the cell's own.
        n_samples
            Draws of the latent; one means the posterior mean.
        batch_size
            Cells per pass.
        return_mean
            Average over draws.
        return_numpy
            Return an array in place of a DataFrame (always so for several draws that are not averaged).
        seed
            Seed of the draws.

        Returns
        -------
        ``(cells, genes)``, or ``(n_samples, cells, genes)`` for several draws that are not averaged.
        """
        if library_size != "latent" and not (isinstance(library_size, int | float | np.number) and library_size > 0):
            message = f"library_size={library_size!r} must be a positive number or 'latent'."
            raise ValueError(message)
        if n_samples < 1:
            message = f"n_samples={n_samples!r} must be a positive integer."
            raise ValueError(message)
        generator = self._randomness(seed)[1] if n_samples > 1 else None
        observation, draws = self.module.observation, []
        genes = np.empty(0, dtype=np.int64)
        for _ in range(n_samples):
            blocks = []
            for law, genes, library in self._decoded(adata, indices, transform_batch, gene_list, batch_size, generator):
                values = observation.profile(law)[:, genes].cpu().numpy()
                if observation.is_count:
                    values = values * (library[:, None] if library_size == "latent" else float(library_size))
                blocks.append(values)
            draws.append(np.concatenate(blocks))
        if n_samples > 1 and not return_mean:
            return np.stack(draws)
        mean = np.mean(draws, axis=0)
        if return_numpy:
            return mean
        source = self.adata if adata is None else as_cells(adata)
        assert source is not None
        cells = source.obs_names if indices is None else source.obs_names[np.asarray(indices)]
        return pd.DataFrame(mean, index=cells, columns=np.asarray(self._variables())[genes])

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        *,
        batch: Any = None,
        seed: int | None = None,
    ):
        """Draw rows from the model given each cell's own row; signature of scvi-tools.

        Parameters
        ----------
        adata, indices, gene_list, batch_size
            See :meth:`get_normalized_expression`.
        n_samples
            Draws for each cell.
        batch
            Batch to decode under; each cell's own by default.
        seed
            Seed of the draws.

        Returns
        -------
        Sparse (GCXS) array, ``(cells, genes)`` for one draw, else ``(cells, genes, n_samples)``.
        """
        from sparse import GCXS

        if n_samples < 1:
            message = f"n_samples={n_samples!r} must be a positive integer."
            raise ValueError(message)
        _, generator = self._randomness(seed)
        draws = []
        for _ in range(n_samples):
            blocks = [
                self.module.observation.draw(law, generator)[:, genes].cpu().numpy()
                for law, genes, _ in self._decoded(adata, indices, batch, gene_list, batch_size, generator)
            ]
            draws.append(np.concatenate(blocks))
        return GCXS.from_numpy(draws[0] if n_samples == 1 else np.stack(draws, axis=-1))
