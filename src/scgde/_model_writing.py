"""Writing of embeddings to an AnnData, or to a folder of cells, for :class:`scgde.GDEModel`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde.data.embedding_store import EmbeddingStore
from scgde.data.streaming import StreamedCells, as_cells
from scgde.inference import coordinate_names

if TYPE_CHECKING:
    from scgde.inference import Embedding
    from scgde.module import GDEModule

logger = logging.getLogger(__name__)


class WritingMixin:
    """The one method that writes."""

    module: GDEModule

    if TYPE_CHECKING:
        adata: Any

        def _require_trained(self) -> None: ...
        def _embed(self, *args: Any, **options: Any) -> Any: ...
        def _parameters(self) -> dict[str, Any]: ...

    def embed_populations(self, adata: Any = None, key_added: str = "gde") -> None:
        """Write embeddings to an AnnData, or to the folder of cells on disk; the only method that writes.

        Parameters
        ----------
        adata
            AnnData, or folder that :func:`scgde.pp.write_populations` wrote, to embed and write to; the model's own by default.
        key_added
            Name in all keys.

        Returns
        -------
        None. Sets, for ``key_added="gde"``, overwriting only these:

        ``obsm["X_gde"]``
            Per-cell vectors; see :meth:`get_cell_embedding`.
        ``obsm["X_gde_population"]``
            Each cell's population's embedding; NaN for cells in none.
        ``uns["gde"]``
            ``populations`` and ``standard_error`` (populations x n_embedding), ``n_cells`` (in the order of
            ``populations``) and ``params``.
        """
        target = self.adata if adata is None else adata
        target = as_cells(target)
        if not isinstance(key_added, str) or not key_added or "/" in key_added:
            message = f"key_added={key_added!r} must be a string without '/'."
            raise ValueError(message)
        if target is not None and target.is_view:
            message = "adata is a view; results would be written to a copy. Copy it first: `adata = adata.copy()`."
            raise ValueError(message)
        if isinstance(target, StreamedCells):
            self._require_trained()
            with EmbeddingStore(target, key_added, self.module.set_encoder.n_embedding) as store:
                _, _, embedding = self._embed(target, None, None, keep_cells=store.put)
                store.finish(embedding, self._entries(embedding))
            return
        _, _, embedding = self._embed(adata, None, None)
        assert target is not None
        loose = embedding.codes < 0
        if loose.any():
            logger.info(f"{loose.sum()} of {len(loose)} cells are in no population: NaN in X_{key_added}_population.")
        broadcast = np.where(loose[:, None], np.nan, embedding.z[embedding.codes]).astype(np.float32)
        target.obsm[f"X_{key_added}"] = embedding.cells
        target.obsm[f"X_{key_added}_population"] = broadcast
        target.uns[key_added] = self._entries(embedding)

    def _entries(self, embedding: Embedding) -> dict[str, Any]:
        return {
            "populations": population_frame(embedding.z, embedding.labels),
            "standard_error": population_frame(embedding.standard_error, embedding.labels),
            "n_cells": embedding.n_cells,
            "params": self._parameters(),
        }


def population_frame(values: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """One row for each population."""
    return pd.DataFrame(
        values, index=pd.Index(labels, name="population", dtype=str), columns=coordinate_names(values.shape[1])
    )
