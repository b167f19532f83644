"""Registration of cells for :class:`scgde.GDEModel`: in memory and on disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)

from scgde._constants import OWN_PREFIX, POPULATION_KEY
from scgde.data import PopulationField
from scgde.data.cells import check_finite, locate_matrix, numeric_column
from scgde.data.fields import ObsmRowsField
from scgde.data.populations import as_keys
from scgde.data.streamed_table import streamed_registry
from scgde.data.streaming import StreamedCells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


class SetupMixin:
    """Where rows, populations and covariates are."""

    if TYPE_CHECKING:

        @classmethod
        def _get_setup_method_args(cls, **setup_locals: Any) -> dict: ...
        @classmethod
        def register_manager(cls, adata_manager: AnnDataManager) -> None: ...
        @classmethod
        def _get_most_recent_anndata_manager(cls, adata: AnnData, required: bool = False) -> AnnDataManager | None: ...

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        population_key: str | Sequence[str] = POPULATION_KEY,
        *,
        layer: str | None = None,
        obsm_key: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        unassigned: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register an AnnData: where rows, populations and covariates are.

        Writes ``obs["_scvi_population"]`` (codes, -1 for cells in no population), the ``_scvi_`` columns of the other
        fields, and two identifiers to ``uns``.

        Parameters
        ----------
        adata
            Cells; in memory and not a view.
        population_key
            Column of ``obs`` with each cell's population, or a list of columns to cross, e.g. ``["clone", "time"]``,
            whose labels are joined by ``|``.
        layer
            Layer with the counts; ``X`` by default.
        obsm_key
            Array of ``obsm`` with continuous rows, in place of ``X``.
        batch_key
            Column with the batch. The decoder is conditioned on it and the encoder never sees it.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns that the decoder is conditioned on.
        size_factor_key
            Column of positive size factors to use in place of each cell's total count.
        unassigned
            Label(s) meaning "in no population". Missing labels always mean it. Such cells train the cell latent and
            enter no population.
        **kwargs
            Used by scvi-tools when a setup is repeated.

        Raises
        ------
        KeyError
            If a column, layer or array is absent; for ``population_key`` the message lists candidates.
        ValueError
            If no cell has a population, rows are not finite, names are not unique, or the AnnData is a view or not in
            memory.
        """
        if isinstance(adata, StreamedCells | str | os.PathLike):
            message = (
                "Cells on disk are set up by GDEModel.setup_zarr; an .h5ad file is read first: anndata.read_h5ad(path)."
            )
            raise TypeError(message)
        setup_method_args = cls._get_setup_method_args(**locals())
        if adata.is_view:
            message = "adata is a view of another AnnData; copy it first: `adata = adata.copy()`."
            raise ValueError(message)
        matrix = locate_matrix(adata, layer, obsm_key)
        if not adata.var_names.is_unique and obsm_key is None:
            message = "adata.var_names has duplicates; genes are matched by name: `adata.var_names_make_unique()`."
            raise ValueError(message)
        check_finite(matrix)
        own = [str(c) for c in adata.obs.columns if str(c).startswith(OWN_PREFIX)]
        reserved = sorted(set(own) & {f"{OWN_PREFIX}n_cells", f"{OWN_PREFIX}split"})
        if reserved:
            message = f"adata.obs has columns {reserved}, names that scgde gives to its own results; rename them."
            raise ValueError(message)
        for key in [
            batch_key,
            size_factor_key,
            *(categorical_covariate_keys or []),
            *(continuous_covariate_keys or []),
        ]:
            if key is not None and key not in adata.obs:
                message = f"{key!r} is not in adata.obs; there are {list(adata.obs.columns)}."
                raise KeyError(message)
            if key is not None and adata.obs[key].isna().any():
                message = f"adata.obs[{key!r}] has missing values; fill them or drop those cells."
                raise ValueError(message)
        for key in [*(continuous_covariate_keys or []), *([size_factor_key] if size_factor_key else [])]:
            numeric_column(adata, key)
        labels: Any = [] if unassigned is None else [unassigned] if np.isscalar(unassigned) else list(unassigned)
        if obsm_key is None:
            rows_field: Any = LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False, correct_data_format=False)
        else:
            rows_field = ObsmRowsField(obsm_key)
        fields = [
            rows_field,
            PopulationField(as_keys(population_key), labels),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_zarr(
        cls,
        path: str | os.PathLike,
        population_key: str | Sequence[str] | None = None,
        *,
        batch_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        unassigned: str | Sequence[str] | None = None,
    ) -> StreamedCells:
        """Set up cells that stay on disk: a folder that :func:`scgde.pp.write_populations` wrote.

        The rows, counts or not, are those that were written, from a layer or an obsm array if that was asked for then.

        Parameters
        ----------
        path
            Folder.
        population_key, unassigned
            As of :meth:`setup_anndata`; those that the folder was written with by default. The cells of each population must lie
            together, as they do for these, and for the first of several keys.
        batch_key, categorical_covariate_keys, continuous_covariate_keys, size_factor_key
            See :meth:`setup_anndata`.

        Returns
        -------
        The cells, to be given to :class:`GDEModel` in place of an AnnData.

        Raises
        ------
        FileNotFoundError
            If there is no such folder.
        KeyError
            If a column is absent.
        ValueError
            If the folder is incomplete, cells of a population lie apart, or a column has missing values.

        Examples
        --------
        >>> scgde.pp.write_populations(["a.h5ad", "b.h5ad"], "atlas.zarr", "clone")  # doctest: +SKIP
        >>> cells = scgde.GDEModel.setup_zarr("atlas.zarr", batch_key="donor")  # doctest: +SKIP
        >>> model = scgde.GDEModel(cells)  # doctest: +SKIP
        """
        cells = StreamedCells(path)

        def setup(blank: AnnData, **keys: Any) -> dict:
            cls.setup_anndata(blank, **keys)
            manager = cls._get_most_recent_anndata_manager(blank, required=True)
            assert manager is not None
            return manager._registry

        cells.registry = streamed_registry(
            setup,
            cells,
            population_key,
            unassigned=unassigned,
            batch_key=batch_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
        )
        return cells

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> None:
        """Not available: scvi-tools' loader of this name yields single cells, and sets are needed.

        Raises
        ------
        TypeError
            Always.
        """
        message = (
            "GDEModel needs sets of cells, which setup_annbatch does not give. Use setup_anndata, or write the cells with "
            "scgde.pp.write_populations and use setup_zarr."
        )
        raise TypeError(message)
