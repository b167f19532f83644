"""Saving, loading and query preparation of :class:`scgde.GDEModel`."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scvi.model._utils import parse_device_args

from scgde.data.cells import locate_matrix, match_genes
from scgde.data.streaming import StreamedCells
from scgde.serialization import read_model, write_model

if TYPE_CHECKING:
    from typing import Self

    from anndata import AnnData

    from scgde.module import GDEModule

logger = logging.getLogger(__name__)

ADATA_NAME = "adata.h5ad"

# session facts that a file has no use for
_NOT_SAVED = {"run_name_", "run_id_", "get_normalized_function_name_"}


class ModelFilesMixin:
    """Files of plain types, and query preparation by gene name."""

    registry_: dict
    module: GDEModule
    adata: AnnData | None

    def save(
        self,
        dir_path: str,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model to a folder.

        The file has the three keys of scvi-tools and holds dicts, lists, strings, numbers and tensors only.

        Parameters
        ----------
        dir_path
            Folder to write to.
        prefix
            Prepended to file names.
        overwrite
            Whether an existing folder may be written to.
        save_anndata
            Whether to save the AnnData too, as ``adata.h5ad``.
        **anndata_write_kwargs
            Passed to :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is false.
        """
        if os.path.exists(dir_path) and not overwrite:
            message = f"{dir_path!r} exists; pass overwrite=True or another folder."
            raise ValueError(message)
        if save_anndata and isinstance(self.adata, StreamedCells):
            message = f"The cells stay in {self.adata.path!r}; name that folder when the model is loaded, and leave save_anndata out."
            raise ValueError(message)
        if save_anndata and self.adata is None:
            message = "save_anndata=True, but this model has no AnnData (it was loaded without one)."
            raise ValueError(message)
        os.makedirs(dir_path, exist_ok=True)
        if save_anndata:
            assert self.adata is not None
            self.adata.write_h5ad(os.path.join(dir_path, f"{prefix or ''}{ADATA_NAME}"), **anndata_write_kwargs)
        attributes = {
            name: value for name, value in vars(self).items() if name.endswith("_") and name not in _NOT_SAVED
        }
        state = {name: tensor.detach().cpu() for name, tensor in self.module.state_dict().items()}
        path = os.path.join(dir_path, f"{prefix or ''}model.pt")
        write_model(path, state, self._variables(), attributes)  # type: ignore[attr-defined]

    @classmethod
    def load(
        cls,
        dir_path: str,
        adata: AnnData | StreamedCells | str | os.PathLike | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model; nothing in the file is run.

        Parameters
        ----------
        dir_path
            Folder that :meth:`save` wrote.
        adata
            AnnData to attach, set up as the saved one was, or a folder of cells that :func:`scgde.pp.write_populations` wrote. By
            default the one saved with the model, if any. ``False`` loads without.
        accelerator, device
            Where to load to; a model trained on a GPU loads on a CPU.
        prefix
            Prefix given to :meth:`save`.

        Raises
        ------
        FileNotFoundError
            If there is no model file.
        ValueError
            If the file is damaged or holds anything but plain types, or was saved by another class.
        """
        state, _, attributes = read_model(dir_path, prefix)
        registry = attributes.pop("registry_", None)
        _check_class(registry, cls.__name__, dir_path)
        path = os.path.join(dir_path, f"{prefix or ''}{ADATA_NAME}")
        if adata is None and os.path.exists(path):
            adata = ad.read_h5ad(path)
        elif adata is None:
            warnings.warn(
                "No AnnData was saved with the model and none was passed; it is loaded without. Pass adata= to getters.",
                UserWarning,
                stacklevel=2,
            )
        attached: Any = StreamedCells(adata) if isinstance(adata, str | os.PathLike) else adata
        attached = attached if isinstance(attached, ad.AnnData | StreamedCells) else None
        if isinstance(attached, StreamedCells):
            names = registry["field_registries"]["X"]["state_registry"]["column_names"]
            match_genes(attached.var_names, pd.Index(np.asarray(names, dtype=object).astype(str)))
            attached.registry = registry
        elif attached is not None:
            if registry["setup_args"]["obsm_key"] is None:
                names = registry["field_registries"]["X"]["state_registry"]["column_names"]
                match_genes(attached.var_names, pd.Index(np.asarray(names, dtype=object).astype(str)))
            cls.setup_anndata(attached, source_registry=registry, **registry["setup_args"])  # type: ignore[attr-defined]
        params = attributes.pop("init_params_")["non_kwargs"]
        # built from the saved registry and not from the AnnData: genes are matched to the saved names by name
        model = cls(None, registry=registry, **params)  # type: ignore[call-arg]
        for name, value in attributes.items():
            setattr(model, name, value)
        if attached is not None:
            model._attach(attached)  # type: ignore[attr-defined]
        try:
            model.module.load_state_dict(state)
        except RuntimeError as error:
            message = (
                f"The file is not of a model of this version of scgde; train it again, or load it with its own: {error}"
            )
            raise ValueError(message) from error
        _, _, target = parse_device_args(
            accelerator=accelerator, devices=device, return_device="torch", validate_single_device=True
        )
        model.to_device(target)  # type: ignore[attr-defined]
        model.module.eval()
        return model

    @staticmethod
    def load_registry(dir_path: str, prefix: str | None = None) -> dict:
        """The registry of a saved model: how its AnnData was set up.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`load`.
        """
        _, _, attributes = read_model(dir_path, prefix)
        _check_class(attributes.get("registry_"), "GDEModel", dir_path)
        return attributes["registry_"]

    @staticmethod
    def prepare_query_anndata(
        adata: AnnData,
        reference_model: str | Any,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> AnnData | pd.Index | None:
        """Give an AnnData exactly the genes of a model, missing ones filled with zeros.

        Queries whose genes are merely reordered, or that have genes too many, need no preparation.

        Parameters
        ----------
        adata
            Query.
        reference_model
            A model, or the folder of a saved one.
        return_reference_var_names
            Return the model's gene names and do nothing else.
        inplace
            Change ``adata`` and return None, or return a new AnnData. Layers follow the genes; ``var``, ``varm``,
            ``varp`` and ``raw`` of the query are dropped.

        Raises
        ------
        ValueError
            If no gene is shared.
        """
        if isinstance(reference_model, str | os.PathLike):
            _, names, attributes = read_model(os.fspath(reference_model))
            args = attributes["registry_"]["setup_args"]
        else:
            names, args = reference_model._variables(), reference_model.registry_["setup_args"]
        expected = pd.Index(np.asarray(names, dtype=object).astype(str))
        if return_reference_var_names:
            return expected
        if args["obsm_key"] is not None:
            message = f"The model reads obsm[{args['obsm_key']!r}], which has no genes to match; nothing to prepare."
            raise ValueError(message)
        locate_matrix(adata, args["layer"], None)
        if not adata.var_names.is_unique:
            message = "adata.var_names has duplicates; genes are matched by name: `adata.var_names_make_unique()`."
            raise ValueError(message)
        position = adata.var_names.get_indexer(expected)
        found = position >= 0
        if not found.any():
            message = (
                f"None of the model's {len(expected)} genes is in adata.var_names (model: {list(expected[:3])}, query: "
                f"{list(adata.var_names[:3])}). Convert the query's gene identifiers first."
            )
            raise ValueError(message)
        if not found.all():
            logger.info(f"{(~found).sum()} of the model's {len(expected)} genes are missing and filled with zeros.")
        if found.mean() < 0.8:
            warnings.warn(
                f"Only {found.mean():.0%} of the model's genes are in the query; embeddings may not be comparable.",
                UserWarning,
                stacklevel=2,
            )
        # one sparse product reorders, drops and pads at once
        place = sp.csr_matrix(
            (np.ones(found.sum(), dtype=np.float32), (position[found], np.flatnonzero(found))),
            shape=(adata.n_vars, len(expected)),
        )

        def arrange(matrix: Any) -> Any:
            arranged = matrix @ place
            return sp.csr_matrix(arranged) if sp.issparse(matrix) else np.asarray(arranged)

        prepared = ad.AnnData(
            X=None if adata.X is None else arrange(adata.X),
            obs=adata.obs.copy(),
            var=pd.DataFrame(index=expected),
            obsm=dict(adata.obsm),
            obsp=dict(adata.obsp),
            uns=dict(adata.uns),
            layers={name: arrange(layer) for name, layer in adata.layers.items()},
        )
        if not inplace:
            return prepared
        adata._init_as_actual(prepared)
        return None

    @classmethod
    def load_query_data(cls, *args: Any, **kwargs: Any) -> None:
        """Not needed: a set encoder embeds new populations as it is.

        Raises
        ------
        TypeError
            Always.
        """
        message = (
            "GDEModel has no query fine-tuning and needs none: pass the new AnnData to any getter, for example "
            "`model.get_population_embedding(query)`. Fill missing genes with `GDEModel.prepare_query_anndata`."
        )
        raise TypeError(message)


def _check_class(registry: dict | None, name: str, dir_path: str) -> None:
    saved = None if registry is None else registry.get("model_name")
    if saved != name:
        message = f"{dir_path!r} holds a model of class {saved!r}, not {name!r}. Load it with the class that saved it."
        raise ValueError(message)
