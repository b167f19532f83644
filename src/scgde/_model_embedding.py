"""Embeddings, distances and population tables of :class:`scgde.GDEModel`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgde import ot
from scgde._constants import OWN_PREFIX
from scgde._identity import fingerprint
from scgde._model_writing import WritingMixin, population_frame
from scgde.data import CellTable, cell_table
from scgde.data.cells import check_counts, subset_codes
from scgde.data.populations import constant_columns
from scgde.data.streaming import StreamedCells, as_cells, check_stored_counts
from scgde.generation import as_labels, find_labels
from scgde.inference import (
    Embedding,
    check_distance_options,
    coordinate_names,
    embed,
    encode_cells,
    euclidean,
)
from scgde.observations import COUNT_LIKELIHOODS
from scgde.uncertainty import corrected_distances, distance_and_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scgde.module import GDEModule

logger = logging.getLogger(__name__)


class EmbeddingMixin(WritingMixin):
    """Everything that is read off cells and populations; getters write nothing."""

    registry_: dict
    module: GDEModule
    adata: AnnData | None
    gene_likelihood_: str
    is_trained_: bool
    cells_: str
    train_indices_: np.ndarray
    validation_indices_: np.ndarray
    test_indices_: np.ndarray
    reference_: np.ndarray
    init_params_: dict

    def _table(self, adata: Any = None) -> CellTable:
        """Cells of an AnnData, or of a folder of cells, as the model reads them; of its own by default."""
        if adata is None:
            if self.adata is None:
                message = "This model was loaded without its AnnData; pass adata=."
                raise ValueError(message)
            adata = self.adata
        adata = as_cells(adata)
        if isinstance(adata, StreamedCells):
            check_stored_counts(adata, self.gene_likelihood_)
        table = cell_table(adata, self.registry_)
        is_own = adata is self.adata or isinstance(adata, StreamedCells)
        if self.gene_likelihood_ in COUNT_LIKELIHOODS and not is_own:
            check_counts(table.matrix, self.gene_likelihood_)
        return table

    def _require_trained(self) -> None:
        if not self.is_trained_:
            message = "The model is not trained; call train() first."
            raise RuntimeError(message)

    def _embed(
        self,
        adata: Any,
        indices: Sequence[int] | None,
        batch_size: int | None,
        *,
        vectors: bool = True,
        keep_cells: bool | Callable[[np.ndarray, torch.Tensor], None] = True,
    ) -> tuple[CellTable, np.ndarray, Embedding]:
        """Embed populations, of cells that are encoded as many at a time as an encoder's pass takes."""
        self._require_trained()
        table = self._table(adata)
        rows, codes = subset_codes(table, None if indices is None else np.asarray(indices))
        reference = torch.from_numpy(np.asarray(self.reference_))

        def latents(chosen: np.ndarray) -> torch.Tensor:
            order = np.argsort(chosen, kind="stable")
            u = torch.empty((len(chosen), self.module.observation.n_latent))
            u[torch.from_numpy(order)] = encode_cells(self.module, table, rows[chosen[order]], batch_size)[0]
            return u

        self.module.eval()
        embedding = embed(
            self.module.set_encoder, latents, codes, table.labels, reference, vectors=vectors, keep_cells=keep_cells
        )
        return table, rows, embedding

    def get_latent_representation(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Latent ``u`` of cells (the posterior mean), ``(cells, n_latent)``.

        Parameters
        ----------
        adata
            Cells; the model's own by default. Genes are matched by name, and it need not be set up.
        indices
            Cells to use.
        batch_size
            Cells per pass.
        """
        self._require_trained()
        table = self._table(adata)
        rows = np.arange(table.n_cells) if indices is None else np.arange(table.n_cells)[np.asarray(indices)]
        return encode_cells(self.module, table, rows, batch_size)[0].numpy()

    def get_population_embedding(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Embedding ``z`` of populations, populations x ``n_embedding``.

        Populations never trained on are embedded as they are, without training. Those of at most 300 cells (50 with
        encoders that pool more than once, none with ``encoder="transport"``) have the bias that few cells give removed by the jackknife.

        Parameters
        ----------
        adata
            Cells; the model's own by default. Genes are matched by name, and it need not be set up.
        indices
            The cells that form the populations; all by default.
        batch_size
            Cells per pass.
        """
        _, _, embedding = self._embed(adata, indices, batch_size, vectors=False)
        return population_frame(embedding.z, embedding.labels)

    def get_population_standard_error(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> pd.DataFrame:
        """Standard error of each coordinate of the embeddings, given the numbers of cells; NaN for one cell.

        By the infinitesimal jackknife, and by delete-one values for at most 300 cells (50 with encoders that pool more than
        once, none with ``encoder="transport"``). A 95 % interval is the embedding
        plus or minus the t quantile with n - 1 degrees of freedom times the standard error.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_population_embedding`.
        """
        _, _, embedding = self._embed(adata, indices, batch_size, keep_cells=False)
        return population_frame(embedding.standard_error, embedding.labels)

    def get_cell_embedding(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """Per-cell vectors, ``(cells, n_embedding)``, whose mean over a population's cells is its embedding.

        A cell's vector is its population's embedding plus the cell's influence on it. Cells in no population get the
        influence of adding them to a fixed sample of training cells, so that every row is finite.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_population_embedding`.
        """
        return self._embed(adata, indices, batch_size)[2].cells

    def get_population_distances(
        self,
        adata: AnnData | None = None,
        *,
        populations: Sequence[Any] | None = None,
        metric: Literal["latent", "wasserstein"] = "latent",
        bias_correction: bool | None = None,
        return_std: bool = False,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
        r"""Distances between populations, in units of ``u``.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_population_embedding`.
        populations
            Labels to compare; all by default.
        metric
            ``"latent"``: Euclidean distance between embeddings. ``"wasserstein"``: exact 2-Wasserstein distance between
            the cells' ``u``, for comparison; its cost grows with the cube of the number of cells and is logged first.
        bias_correction
            Subtract what the sampling of cells adds to squared distances on average, without which small populations look
            further apart than they are: :math:`(\|z_i - z_j\|^2 - \operatorname{tr} C_i - \operatorname{tr} C_j)_+^{1/2}`
            with the sampling covariances ``C`` of the embeddings. A distance that noise explains becomes zero. By
            default only with ``return_std``. For ``metric="latent"`` only.
        return_std
            Return standard errors of the distances as well (second-order propagation of the embeddings' covariances,
            finite at distance zero; see :func:`scgde.uncertainty.corrected_distances`). A 95 % interval is the distance plus or
            minus the t quantile with the degrees of freedom of the smaller population times the standard error; it is
            wider than need be near zero. For ``metric="latent"`` only.

        Returns
        -------
        Populations x populations; with ``return_std`` a pair of these, distances and their standard errors. Standard errors
        and corrected distances are NaN for populations of one cell.

        Raises
        ------
        ValueError
            If ``metric`` is unknown, or an argument is for the other metric.
        KeyError
            If a population is unknown.
        """
        check_distance_options(metric, bias_correction, return_std)
        wanted = bool(return_std or bias_correction)
        table, rows, embedding = self._embed(adata, indices, batch_size, vectors=wanted)
        chosen = np.arange(len(embedding.labels))
        if populations is not None:
            chosen = find_labels(as_labels(populations), embedding.labels)
            if not len(chosen):
                message = "populations is empty; name the populations to compare, or leave it out for all."
                raise ValueError(message)
        labels = [embedding.labels[k] for k in chosen]
        index = pd.Index(labels, name="population")
        # a label may be asked for twice
        unique, inverse = np.unique(chosen, return_inverse=True)
        position = np.full(len(embedding.labels) + 1, -1)
        position[unique] = np.arange(len(unique))
        segment, pairs = position[embedding.codes], np.ix_(inverse, inverse)
        if metric == "wasserstein":
            taken = segment >= 0
            u, _ = encode_cells(self.module, table, rows[taken], batch_size)
            seconds = ot.estimate_cost(embedding.n_cells[unique], n_features=u.shape[1])
            logger.info(f"Exact Wasserstein distances of {len(unique)} populations: about {seconds:.0f} s.")
            distances = ot.pairwise_distances(u.numpy(), segment[taken], n_segments=len(unique), metric="exact")
            return pd.DataFrame(distances[pairs], index=index, columns=index)
        distances = euclidean(embedding.z[chosen].astype(np.float64))
        if not return_std and not bias_correction:
            return pd.DataFrame(distances, index=index, columns=index)
        squared, variance = corrected_distances(embedding.cells, segment, len(unique))
        corrected, errors = (values[pairs] for values in distance_and_error(squared, variance))
        if bias_correction is not False:
            distances = corrected
        frame = pd.DataFrame(distances, index=index, columns=index)
        return (frame, pd.DataFrame(errors, index=index, columns=index)) if return_std else frame

    def get_population_adata(
        self, adata: AnnData | None = None, *, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> AnnData:
        """Populations as observations, ready for ``sc.pp.neighbors(pop, use_rep="X_gde")``.

        Parameters
        ----------
        adata, indices, batch_size
            See :meth:`get_population_embedding`.

        Returns
        -------
        AnnData with one row for each population:

        ``X`` and ``obsm["X_gde"]``
            Embeddings.
        ``layers["standard_error"]``
            Their standard errors.
        ``obs``
            ``gde_n_cells``; ``gde_split`` (``train``, ``validation`` or ``test`` by the part that most cells of a
            population of the model's own AnnData are in, with cells split inside populations all being ``train``;
            ``query`` for other AnnData, and where other cells than those trained on, or in another order, are attached); the columns of a crossed key; every column that is constant in each population.
        ``obsp["gde_distances"]``
            Euclidean distances between embeddings.
        ``uns["gde"]``
            ``params``.
        """
        population = self._population_table(adata, indices, batch_size)
        population.obsp["gde_distances"] = euclidean(population.X.astype(np.float64)).astype(np.float32)
        return population

    def _population_table(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int | None = None
    ) -> AnnData:
        """:meth:`get_population_adata` without distances, which many populations have too many of."""
        table, rows, embedding = self._embed(adata, indices, batch_size, keep_cells=False)
        return self._as_adata(adata, table, rows, embedding)

    def _as_adata(self, adata: Any, table: CellTable, rows: np.ndarray, embedding: Embedding) -> AnnData:
        """Embeddings of the cells ``rows`` of a table of ``adata`` as an AnnData of populations, without distances."""
        obs = constant_columns(table, rows, embedding.codes, len(embedding.labels), self._population_keys())
        obs.index = pd.Index(embedding.labels, dtype=str)
        for name, values in (
            ("n_cells", embedding.n_cells),
            ("split", self._population_split(adata, rows, embedding)),
        ):
            if f"{OWN_PREFIX}{name}" in obs:
                message = f"obs has a column {OWN_PREFIX + name!r}, a name that scgde gives to its own; rename it."
                raise ValueError(message)
            obs[f"{OWN_PREFIX}{name}"] = values
        obs[f"{OWN_PREFIX}split"] = obs[f"{OWN_PREFIX}split"].astype("category")
        population = AnnData(
            X=embedding.z.copy(), obs=obs, var=pd.DataFrame(index=coordinate_names(embedding.z.shape[1]))
        )
        population.obsm["X_gde"] = embedding.z.copy()
        population.layers["standard_error"] = embedding.standard_error
        population.uns["gde"] = {"params": self._parameters()}
        return population

    def _embed_rows(self, table: CellTable, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embedding of cells of a table as one population and its squared standard errors, each ``(n_embedding,)``."""
        u, _ = encode_cells(self.module, table, rows)
        self.module.eval()
        embedding = embed(self.module.set_encoder, u, np.zeros(len(rows), dtype=np.int64), ["cells"], None)
        return embedding.z[0].astype(np.float64), np.square(embedding.standard_error[0].astype(np.float64))

    def _population_keys(self) -> list[str]:
        return list(self.registry_["field_registries"]["population"]["state_registry"]["keys"])

    def _parameters(self) -> dict[str, Any]:
        """Settings as strings and numbers; ``scale`` is the length in the data of one unit of a continuous ``u``."""
        from scgde import __version__

        scale = getattr(self.module.observation, "scale", None)
        settings = {k: v for k, v in self.init_params_["non_kwargs"].items() if v is not None}
        return {
            **settings,
            "gene_likelihood": self.gene_likelihood_,
            "population_key": self._population_keys(),
            "scale": 1.0 if scale is None else float(scale),
            "version": __version__,
        }

    def _population_split(self, adata: AnnData | None, rows: np.ndarray, embedding: Embedding) -> list[str]:
        # other cells than those trained on may have been attached, or rows taken out in place
        if (adata is not None and adata is not self.adata) or (
            self.adata is not None and fingerprint(self.adata) != self.cells_
        ):
            return ["query"] * len(embedding.labels)
        part = np.full(len(self.adata) if self.adata is not None else 0, 3)
        for i, name in enumerate(("train_indices_", "validation_indices_", "test_indices_")):
            part[getattr(self, name)] = i
        counts = np.zeros((len(embedding.labels), 4), dtype=int)
        assigned = embedding.codes >= 0
        np.add.at(counts, (embedding.codes[assigned], part[rows][assigned]), 1)
        # a population with any training cell was trained on
        first = np.where(counts[:, 0] > 0, 0, counts.argmax(1))
        return [("train", "validation", "test", "query")[i] for i in first]
