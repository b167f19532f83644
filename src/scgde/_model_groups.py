"""Populations of populations: a patient as a distribution of clones, a cohort as one of donors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from scgde.data.populations import as_keys, population_labels
from scgde.data.streaming import as_cells
from scgde.encoders.residual import ResidualEncoder
from scgde.inference import coordinate_names
from scgde.moments import PopulationMoments, moment_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MAX_COMPONENTS = 10
"""Principal components of embeddings that distributions of populations are described in; spreads have their square as many entries."""

KEPT_VARIANCE = 0.99


class GroupsMixin:
    """Embeddings of groups of populations."""

    if TYPE_CHECKING:
        adata: AnnData | None

        def _population_table(
            self, adata: AnnData | None = None, indices: Sequence[int] | None = None, batch_size: int | None = None
        ) -> AnnData: ...

    def get_group_embedding(
        self,
        keys: str | Sequence[str],
        adata: AnnData | None = None,
        *,
        weights: Literal["equal", "cells"] = "equal",
        n_components: int | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Embeddings of groups of populations, each group a distribution of population embeddings.

        What a set encoder is to cells, one in closed form is to populations: mean and root of the covariance of the embeddings of a group's
        populations, along the axes that groups of the model's own AnnData differ in reliably. Distances between vectors approximate
        Wasserstein-2 distances between distributions of populations, which are those of the ground distance between populations.

        Parameters
        ----------
        keys
            Column of ``obs``, or several to cross, with one value in each population: ``"patient"`` for a model of
            ``population_key=["patient", "clone"]``.
        adata
            AnnData whose groups to embed, on the axes of the model's own; the model's own by default.
        weights
            Whether populations of a group count alike, or by their numbers of cells.
        n_components
            Principal components of population embeddings to work in; by default as many as hold 99 % of their variance, ten at most.
        indices, batch_size
            See :meth:`get_population_embedding`.

        Returns
        -------
        DataFrame, groups x coordinates. ``attrs["n_populations"]`` holds the number of populations of each group: a group of one has no
        spread.

        Raises
        ------
        KeyError
            If a column is absent.
        ValueError
            If a column varies within populations, there are fewer than two groups to make axes of, the model has no AnnData, or an argument is
            out of range.
        """
        if weights not in ("equal", "cells"):
            message = f"weights={weights!r} must be 'equal' or 'cells'."
            raise ValueError(message)
        if self.adata is None:
            message = "The model was loaded without its AnnData, whose groups make the axes; load it with adata=."
            raise ValueError(message)
        columns = as_keys(keys)
        z, codes, labels, _ = _grouped(self._population_table(batch_size=batch_size), self.adata, columns)
        if len(labels) < 2:
            message = f"{columns} make {len(labels)} group of the model's populations; at least two are needed."
            raise ValueError(message)
        mean = z.mean(0)
        _, size, axes = np.linalg.svd(z - mean, full_matrices=False)
        if n_components is None:
            share = np.cumsum(np.square(size)) / max(float(np.square(size).sum()), 1e-300)
            n_components = min(int(np.searchsorted(share, KEPT_VARIANCE)) + 1, MAX_COMPONENTS, len(size))
        if not 1 <= n_components <= len(size):
            message = f"n_components={n_components} must be between 1 and {len(size)}."
            raise ValueError(message)
        axes = axes[:n_components].T
        encoder = ResidualEncoder(n_components, min(z.shape[1], moment_size(n_components)), n_hidden=2).double()
        encoder.draws_in_spread = False  # how a group's populations spread is half of what is asked
        x, segment = torch.from_numpy((z - mean) @ axes), torch.from_numpy(codes)
        encoder.fit(x, segment, PopulationMoments.from_cells(x, segment, len(labels)), int(np.bincount(codes).max()))
        adata = as_cells(adata)
        table = self._population_table(adata, indices, batch_size)
        z, codes, labels, n_cells = _grouped(table, self.adata if adata is None else adata, columns)
        x, segment = torch.from_numpy((z - mean) @ axes), torch.from_numpy(codes)
        weight = torch.from_numpy(n_cells) if weights == "cells" else None
        with torch.no_grad():
            # the learned part of the encoder starts at zero and is left there
            values, _ = encoder.straight_and_correction(x, segment, weight, len(labels))
        index = pd.Index(labels, name="group", dtype=str)
        frame = pd.DataFrame(values.numpy().astype(np.float32), index=index, columns=coordinate_names(values.shape[1]))
        frame.attrs["n_populations"] = np.bincount(codes, minlength=len(labels)).tolist()
        return frame


def _grouped(
    table: AnnData, adata: AnnData, columns: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Embeddings, group codes, labels of groups and numbers of cells of the populations that are in a group."""
    for key in columns:
        if key not in adata.obs:
            message = f"keys: {key!r} is not a column of obs; there are {[str(c) for c in adata.obs.columns]}."
            raise KeyError(message)
        if key not in table.obs:
            message = f"keys: {key!r} varies within populations, which can be in one group only; cross it into population_key."
            raise ValueError(message)
    groups = population_labels(table.obs, columns)
    known = groups.notna().to_numpy()
    labels, codes = np.unique(groups[known].to_numpy().astype(str), return_inverse=True)
    return (
        table.X[known].astype(np.float64),
        codes.astype(np.int64),
        [str(v) for v in labels],
        table.obs["gde_n_cells"].to_numpy()[known].astype(np.float64),
    )
