"""Paths, transport, averages and likelihoods of populations, for :class:`scgde.GDEModel`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scgde._constants import LABEL_SEPARATOR, OWN_PREFIX
from scgde._model_decoding import DecodingMixin, check_count, check_library_size
from scgde.data.streaming import as_cells
from scgde.generation import (
    CellContexts,
    RowContexts,
    as_labels,
    embed_with_contexts,
    expected_library,
    resolve_populations,
)
from scgde.inference import coordinate_names, encode_cells
from scgde.paths import PATHS, check_weights, log_likelihoods, path_parts, transport_cells, transport_score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

logger = logging.getLogger(__name__)


class PathsMixin(DecodingMixin):
    """What lies between populations, and which population a cell could be from."""

    if TYPE_CHECKING:

        def get_population_embedding(self, adata: AnnData | None = None) -> pd.DataFrame: ...

    def interpolate(
        self,
        source: Any,
        target: Any,
        *,
        n_steps: int = 11,
        n_cells: int = 100,
        method: Literal["latent", "displacement"] = "latent",
        adata: AnnData | None = None,
        batch: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        library_size: float | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Generate cells along the path from one population to another.

        Cell ``i`` of every step is made from the same draws and can be followed, except under ``generator="mixture"``, where it may be
        of another component at the next step. Counts are drawn anew at each step.

        Parameters
        ----------
        source, target
            Ends of the path: a label (a tuple of parts for a crossed key), or a DataFrame with one embedding.
        n_steps
            Populations on the path, both ends included.
        n_cells
            Cells for each of them.
        method
            ``"latent"``: populations generated from points on the straight line between the embeddings, which
            approximates the Wasserstein geodesic as far as distances between embeddings approximate Wasserstein
            distances. Their means and covariances are put on the geodesic of normal populations with those of the ends.
            ``"displacement"``: cells of both ends, paired by exact optimal transport in ``u``, moved on straight
            lines; the geodesic between the two samples, whose time grows as the cube of ``n_cells``. It follows cells, and
            what lies between two states need not look like a population of the data.
        adata
            AnnData whose populations are meant, as in :meth:`sample`.
        batch, covariates
            What to decode under, as in :meth:`sample`. By default that of cells of the ends: a share 1 - t of a step's cells
            is decoded under contexts of the source and a share t under contexts of the target.
        library_size
            Expected total count of every cell, as in :meth:`sample`.
        seed
            Seed of the draw; ``scvi.settings.seed`` by default, else fresh.

        Returns
        -------
        AnnData as from :meth:`sample`, step by step, with these further columns of ``obs``: ``gde_step``, ``gde_t`` (from 0
        to 1), ``gde_cell`` (which cell of the step), ``gde_source`` and ``gde_target``. Every step is a population of its
        own, named ``SOURCE->TARGET@T``, so that the path can be embedded.

        Raises
        ------
        KeyError
            If a population, batch or category is unknown.
        ValueError
            If an argument is out of range, or an end is not one population.
        """
        self._require_trained()
        check_count("n_steps", n_steps, "the populations on the path, both ends included", minimum=2)
        check_count("n_cells", n_cells, "the number of cells for each step")
        check_library_size(library_size)
        if method not in PATHS:
            message = f"method={method!r} must be one of {list(PATHS)}."
            raise ValueError(message)
        rng, generator = self._randomness(seed)
        known, known_z = list(self.populations_["labels"]), np.asarray(self.populations_["z"])
        contexts = CellContexts.from_dict(self.contexts_)
        if adata is not None:
            embedding, contexts, _ = embed_with_contexts(self.module, self._table(adata), rng)
            known, known_z = embedding.labels, embedding.z
        by_label = adata is not None
        begin, z_begin, near_begin = _one("source", source, known, known_z, by_label=by_label)
        end, z_end, near_end = _one("target", target, known, known_z, by_label=by_label)

        code = None if batch is None else self._batch_code(batch)
        rows = [contexts.draw(np.full(n_cells, nearest), rng, code) for nearest in (near_begin, near_end)]
        times, turn = np.linspace(0, 1, n_steps), rng.random(n_cells)
        u = PATHS[method](self.module, z_begin, z_end, times, n_cells, generator).reshape(n_steps * n_cells, -1)
        # each cell turns from a context of the source to one of the target once
        chosen = np.where(turn < times[:, None], rows[1], rows[0]).ravel()
        context = self._contexts_of(
            contexts,
            chosen,
            expected_library(self.module, u),
            batch=batch,
            covariates=covariates,
            library_size=library_size,
        )
        parts = path_parts(self._parts_of(begin), self._parts_of(end), times)
        labels = [LABEL_SEPARATOR.join(p) for p in parts]
        steps = np.repeat(np.arange(n_steps), n_cells)
        cells = self._generated_adata(u, context, labels, parts, steps, generator)
        cells.obs[f"{OWN_PREFIX}step"] = steps
        cells.obs[f"{OWN_PREFIX}t"] = times[steps]
        cells.obs[f"{OWN_PREFIX}cell"] = np.tile(np.arange(n_cells), n_steps)
        _name_ends(cells, begin, end)
        return cells

    def transport(
        self, adata: AnnData, source: Any, target: Any, *, batch: str | None = None, seed: int | None = None
    ) -> AnnData:
        """Move given cells from one population to another.

        A cell's latent goes back through the source's flow to noise and forward through the target's, which keeps what is
        particular about it and changes what tells the populations apart. (``generator="flow"`` or ``"diffusion"``; of
        the two only the flow is trained with noise matched to cells by optimal transport.) Noise is rotated between them so that the map between Gaussian populations is the optimal
        one.

        The latent is drawn from the cell's posterior: generators learn the law of such draws, and posterior means,
        which spread less, would arrive as too narrow a population.

        Parameters
        ----------
        adata
            Cells to move; any cells, and those of ``source`` to obtain ``target``.
        source, target
            Labels (a tuple of parts for a crossed key), or DataFrames with one embedding. A label that the model was not
            trained on is that of cells of ``adata``.
        batch
            Batch to decode under; each cell's own by default.
        seed
            Seed of the draws; ``scvi.settings.seed`` by default, else fresh.

        Returns
        -------
        AnnData as from :meth:`sample`, one cell for each of ``adata`` in its order, with its own library size and covariates.
        ``obs["gde_source_cell"]`` holds its name, ``obs["gde_source"]`` and ``obs["gde_target"]`` the two populations.
        ``uns["gde_transport"]`` tells how close the map is to optimal transport, in units of ``u`` and for up to 1,000 cells
        (``n_cells``): ``cost``, the root mean square displacement; ``wasserstein``, the exact distance between cells
        before and after; ``ratio``, the second over the first, one for an optimal map; and ``gaussian_wasserstein`` and
        ``gaussian_ratio`` for the lower bound by their moments, to be looked at where cells are few: between few cells in many
        dimensions nearly every map is optimal.

        Raises
        ------
        TypeError
            If the generator cannot be run backwards.
        KeyError
            If a population or the batch is unknown.
        ValueError
            If genes are missing, there are no cells, or cells are in a batch that the model was not trained with and no
            ``batch`` is given.
        """
        self._require_trained()
        if not self.module.generator.can_invert:
            message = (
                f"{type(self.module.generator).__name__} cannot be run backwards, so that cells cannot be transported; "
                "train a model with generator='flow' or 'diffusion', or use interpolate()."
            )
            raise TypeError(message)
        rng, generator = self._randomness(seed)
        adata = as_cells(adata)
        table = self._table(adata)
        if table.n_cells == 0:
            message = "adata has no cells; give at least one to transport."
            raise ValueError(message)
        known, known_z = self._known_embeddings(adata, source, target)
        begin, z_begin, _ = _one("source", source, known, known_z)
        end, z_end, _ = _one("target", target, known, known_z)
        everything = np.arange(table.n_cells)
        codes = table.batch if batch is None else np.full(table.n_cells, self._batch_code(batch))
        self._check_batches(codes, "batch=")

        mean, sd = (values.numpy() for values in encode_cells(self.module, table, everything))
        u = mean + sd * rng.standard_normal(mean.shape, dtype=np.float32)
        moved = transport_cells(self.module, u, z_begin, z_end)
        library = table.library(everything, float(self.module.observation.size_factor_gain))
        context = RowContexts(library, codes, table.categorical, table.continuous)
        cells = self._generated_adata(
            moved, context, [end], [self._parts_of(end)], np.zeros(table.n_cells, dtype=int), generator
        )
        cells.obs[f"{OWN_PREFIX}source_cell"] = np.asarray(adata.obs_names, dtype=object)
        _name_ends(cells, begin, end)
        score = transport_score(u, moved, rng)
        if score["n_cells"] < table.n_cells:
            logger.info(f"Closeness to optimal transport from {score['n_cells']} of {table.n_cells} cells.")
        cells.uns[f"{OWN_PREFIX}transport"] = score
        return cells

    def get_population_barycenter(
        self, populations: Any, weights: Sequence[float] | None = None, *, adata: AnnData | None = None
    ) -> pd.DataFrame:
        """Embedding of the population in the middle of several, 1 x ``n_embedding``, as :meth:`sample` takes it.

        The weighted mean of their embeddings minimises the weighted sum of squared distances to them. As far as those are
        Wasserstein-2 distances, it is the embedding of the Wasserstein barycentre (Agueh and Carlier 2011, SIAM J Math Anal
        43, 904-924). It lies between the populations' states, where their mixture would hold all of them.

        Parameters
        ----------
        populations
            Labels (a tuple of parts for a crossed key), or a DataFrame of embeddings.
        weights
            Weight of each, none negative; scaled to sum to one. All alike by default.
        adata
            AnnData whose populations are meant, as in :meth:`sample`.

        Raises
        ------
        KeyError
            If a population is unknown.
        ValueError
            If weights do not fit the populations, are negative or all zero.
        """
        self._require_trained()
        known, known_z = list(self.populations_["labels"]), np.asarray(self.populations_["z"])
        if adata is not None:
            embedding = self.get_population_embedding(adata)
            known, known_z = list(embedding.index), embedding.to_numpy()
        _, z, _ = resolve_populations(populations, known, known_z, by_label=False)
        mean = check_weights(weights, len(z)) @ z.astype(np.float64)
        index = pd.Index(["barycenter"], name="population")
        return pd.DataFrame(mean[None].astype(np.float32), index=index, columns=coordinate_names(z.shape[1]))

    def get_log_likelihood(
        self,
        adata: AnnData | None = None,
        populations: Any = None,
        *,
        indices: Sequence[int] | None = None,
        n_samples: int = 64,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Log density of cells in populations, cells x populations.

        The density of a cell's latent ``u`` (its posterior mean, in units of ``u``) under the generator of each population.
        Softmax over populations gives the probability that a cell is from each, where all are equally frequent. Populations
        generate draws of ``u``, which spread more than means: values tell populations apart, and are too high as densities.
        A population's embedding has seen its own cells.

        Parameters
        ----------
        adata
            Cells; the model's own by default. Their population is not looked at.
        populations
            Labels (a tuple of parts for a crossed key), or a DataFrame of embeddings; all training populations by default.
            A label that the model was not trained on is that of cells of ``adata``.
        indices
            Cells to use.
        n_samples
            Draws for each pair of a cell and a population with ``generator="vae"``, whose density is bounded from below by
            importance weights. The flow's is exact up to its steps, and draws nothing.
        batch_size
            Pairs of a cell and a population per pass.
        seed
            Seed of the draws.

        Raises
        ------
        TypeError
            If the generator has no density.
        KeyError
            If a population is unknown.
        ValueError
            If ``n_samples`` or ``batch_size`` is not a positive integer, or genes are missing.
        """
        self._require_trained()
        check_count("n_samples", n_samples, "draws for each pair of a cell and a population")
        if batch_size is not None:
            check_count("batch_size", batch_size, "pairs of a cell and a population per pass")
        cells = self.adata if adata is None else as_cells(adata)
        table = self._table(cells)
        rows = np.arange(table.n_cells) if indices is None else np.arange(table.n_cells)[np.asarray(indices)]
        if populations is None:
            labels, z = list(self.populations_["labels"]), np.asarray(self.populations_["z"])
        else:
            known, known_z = self._known_embeddings(cells, populations)
            labels, z, _ = resolve_populations(populations, known, known_z, by_label=False)
        u, _ = encode_cells(self.module, table, rows)
        values = log_likelihoods(
            self.module, u, z, n_samples=n_samples, generator=self._randomness(seed)[1], batch_size=batch_size
        )
        assert cells is not None
        return pd.DataFrame(values, index=cells.obs_names[rows], columns=pd.Index(labels, name="population", dtype=str))

    def _known_embeddings(self, adata: AnnData | None, *asked: Any) -> tuple[list[str], np.ndarray]:
        """Labels and embeddings of the training populations, and of those of ``adata`` if some label asked is not known."""
        known, z = list(self.populations_["labels"]), np.asarray(self.populations_["z"])
        labels = {label for populations in asked for label in as_labels(populations)}
        if adata is None or labels <= set(known):
            return known, z
        own = self.get_population_embedding(adata)
        own = own.loc[[label for label in own.index if label not in set(known)]]
        return [*known, *own.index], np.concatenate([z, own.to_numpy()])


def _one(
    argument: str, population: Any, known: list[str], known_z: np.ndarray, *, by_label: bool = False
) -> tuple[str, np.ndarray, int]:
    """Label, embedding and lender of contexts of an argument that must be one population."""
    labels, z, nearest = resolve_populations(population, known, known_z, by_label=by_label, argument=argument)
    if len(labels) != 1:
        message = f"{argument} names {len(labels)} populations and must name one: a label, or a DataFrame with one row."
        raise ValueError(message)
    return labels[0], z[0], int(nearest[0])


def _name_ends(cells: AnnData, source: str, target: str) -> None:
    for name, label in (("source", source), ("target", target)):
        cells.obs[f"{OWN_PREFIX}{name}"] = pd.Categorical([label] * cells.n_obs)
