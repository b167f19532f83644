"""The model behind the interface that benchmarks of sample representations expect of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial.distance import pdist, squareform

from scgde.data.populations import column_labels
from scgde.model import GDEModel

if TYPE_CHECKING:
    from collections.abc import Mapping


class SampleRepresentation:
    """Samples as vectors, by a model that is set up and trained in one call.

    Has the methods and attributes that tools for sample representations, such as patpy, call on a method, and does not need them. For
    all else that a model can do, there is :attr:`model`.

    Parameters
    ----------
    sample_key
        Column of ``obs`` with the sample of each cell.
    cell_group_key
        Column with the group of each cell. Accepted, since other methods need it, and not used: no labels of cells are.
    layer
        Layer with the counts; ``X`` if None or ``"X"``.
    obsm_key
        Array of ``obsm`` with continuous rows, in place of counts.
    batch_key
        Column with the batch, which the decoder is conditioned on.
    seed
        Seed of training.
    train_kwargs
        Arguments of :meth:`GDEModel.train`.
    **model_kwargs
        Arguments of :class:`GDEModel`.

    Attributes
    ----------
    samples
        Names of samples as they are in ``obs``, in the order of all results; None before :meth:`prepare_anndata`, as all that follow.
    sample_representation
        Embeddings, samples x ``n_embedding``.
    adata
        The copy of the cells that the model is of.
    model
        The trained :class:`GDEModel`.

    Examples
    --------
    >>> import scgde
    >>> adata = scgde.datasets.simulate_populations(12, cells_per_population=(10, 30), n_genes=50)
    >>> method = scgde.SampleRepresentation("population", seed=0, train_kwargs={"max_epochs": 2})
    >>> method.prepare_anndata(adata)  # doctest: +SKIP
    >>> method.calculate_distance_matrix()  # doctest: +SKIP
    """

    DISTANCES_UNS_KEY = "gde_sample_distances"

    def __init__(
        self,
        sample_key: str,
        cell_group_key: str | None = None,
        layer: str | None = None,
        *,
        obsm_key: str | None = None,
        batch_key: str | None = None,
        seed: int | None = None,
        train_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        if not isinstance(sample_key, str):
            message = f"sample_key={sample_key!r} must be one column of obs; cross several into one first."
            raise TypeError(message)
        self.sample_key, self.cell_group_key = sample_key, cell_group_key
        self.layer, self.obsm_key, self.batch_key = layer, obsm_key, batch_key
        self.seed = seed
        self.train_kwargs, self.model_kwargs = dict(train_kwargs or {}), model_kwargs
        self.samples: np.ndarray | None = None
        self.sample_representation: np.ndarray | None = None
        self.adata: AnnData | None = None
        self.model: GDEModel | None = None

    def prepare_anndata(self, adata: AnnData, optimize_adata: bool = False) -> None:
        """Copy the cells, train a model of their samples and embed these; called again, it starts anew.

        Parameters
        ----------
        adata
            Cells; left as they are.
        optimize_adata
            Copy only what is needed: rows and ``obs``.

        Raises
        ------
        KeyError, ValueError
            See :meth:`GDEModel.setup_anndata`.
        """
        layer = None if self.layer == "X" else self.layer
        if adata.isbacked:
            adata = adata.to_memory()
        copy = (_rows_and_obs(adata, layer, self.obsm_key) if optimize_adata else adata).copy()
        # distances that came with the cells are those of another model
        copy.uns.pop(self.DISTANCES_UNS_KEY, None)
        GDEModel.setup_anndata(copy, self.sample_key, layer=layer, obsm_key=self.obsm_key, batch_key=self.batch_key)
        model = GDEModel(copy, **self.model_kwargs)
        model.train(**{"seed": self.seed} | self.train_kwargs)
        embedding = model.get_population_embedding()
        column = copy.obs[self.sample_key]
        lookup = dict(zip(column_labels(column), column.astype(object), strict=True))
        self.samples = pd.Index([lookup[label] for label in embedding.index]).to_numpy()
        self.sample_representation = embedding.to_numpy()
        self.adata, self.model = copy, model

    def calculate_distance_matrix(self, force: bool = False) -> np.ndarray:
        """Euclidean distances between embeddings of samples, samples x samples; see :meth:`GDEModel.get_population_distances`.

        Parameters
        ----------
        force
            Compute them again if they are in ``adata.uns["gde_sample_distances"]``, where they are written.

        Raises
        ------
        RuntimeError
            If :meth:`prepare_anndata` was not called.
        """
        self._require_prepared()
        assert self.adata is not None and self.sample_representation is not None
        if force or self.DISTANCES_UNS_KEY not in self.adata.uns:
            distances = squareform(pdist(self.sample_representation.astype(np.float64)))
            self.adata.uns[self.DISTANCES_UNS_KEY] = distances
        # benchmarks write to the diagonal of what they get
        return np.array(self.adata.uns[self.DISTANCES_UNS_KEY])

    def to_adata(self) -> AnnData:
        """Samples as observations; see :meth:`GDEModel.get_population_adata`.

        Raises
        ------
        RuntimeError
            If :meth:`prepare_anndata` was not called.
        """
        self._require_prepared()
        assert self.model is not None
        return self.model.get_population_adata()

    def _require_prepared(self) -> None:
        if self.model is None:
            message = "There is no trained model yet; call prepare_anndata() first."
            raise RuntimeError(message)


def _rows_and_obs(adata: AnnData, layer: str | None, obsm_key: str | None) -> AnnData:
    """All that a model reads; what is absent is left to the error of the setup."""
    return AnnData(
        adata.X if layer is None and obsm_key is None else None,
        obs=adata.obs,
        var=adata.var[[]],
        layers={k: adata.layers[k] for k in (layer,) if k in adata.layers},
        obsm={k: adata.obsm[k] for k in (obsm_key,) if k in adata.obsm},
    )
