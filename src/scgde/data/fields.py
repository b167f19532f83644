"""The registered field for rows that live in ``obsm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich.table
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from scgde.data.cells import locate_matrix

if TYPE_CHECKING:
    from anndata import AnnData


class ObsmRowsField(BaseAnnDataField):
    """An array of ``obsm`` registered as X, so that its columns are the model's variables.

    Parameters
    ----------
    key
        Key of ``obsm``.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    @property
    def registry_key(self) -> str:
        return REGISTRY_KEYS.X_KEY

    @property
    def attr_name(self) -> str:
        return "obsm"

    @property
    def attr_key(self) -> str:
        return self._key

    @property
    def is_empty(self) -> bool:
        return False

    def validate_field(self, adata: AnnData) -> None:
        super().validate_field(adata)
        locate_matrix(adata, None, self._key)

    def register_field(self, adata: AnnData) -> dict:
        super().register_field(adata)
        n_cells, n_vars = adata.obsm[self._key].shape
        names = [f"{self._key}_{i}" for i in range(n_vars)]
        return {"n_obs": n_cells, "n_vars": n_vars, "column_names": names}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        super().transfer_field(state_registry, adata_target, **kwargs)
        state = self.register_field(adata_target)
        if state["n_vars"] != state_registry["n_vars"]:
            message = (
                f"obsm[{self._key!r}] has {state['n_vars']} columns and the model was set up with "
                f"{state_registry['n_vars']}. Compute it in the same way for both."
            )
            raise ValueError(message)
        return state

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_cells": state_registry["n_obs"], "n_vars": state_registry["n_vars"]}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        return None
