"""From latents to AnnData: what sampling, paths and transport of :class:`scgde.GDEModel` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scgde._constants import LABEL_SEPARATOR, OWN_PREFIX
from scgde._seeds import resolve_seed
from scgde.data.cells import UNSEEN_BATCH
from scgde.data.populations import as_label
from scgde.generation import RowContexts, find_labels, generate_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgde.data import CellTable
    from scgde.generation import CellContexts
    from scgde.module import GDEModule


class DecodingMixin:
    """Contexts to decode under, and generated AnnData."""

    registry_: dict
    module: GDEModule
    adata: AnnData | None
    populations_: dict
    contexts_: dict

    if TYPE_CHECKING:

        def _require_trained(self) -> None: ...
        def _table(self, adata: AnnData | None = None) -> CellTable: ...
        def _population_keys(self) -> list[str]: ...

    def _variables(self) -> Any:
        """Names of the model's columns: genes, or columns of the obsm array."""
        return self.registry_["field_registries"]["X"]["state_registry"]["column_names"]

    def _randomness(self, seed: int | None) -> tuple[np.random.Generator, torch.Generator]:
        sequence = np.random.SeedSequence(resolve_seed(seed))
        state = int(sequence.generate_state(1, np.uint64)[0] >> 1)
        return np.random.default_rng(sequence), torch.Generator(device=self.module.device).manual_seed(state)

    def _mapping(self, field: str, key: str) -> list[str]:
        state = self.registry_["field_registries"][field]["state_registry"]
        mapping = state["categorical_mapping"] if field == "batch" else state["mappings"][key]
        return [as_label(m) for m in mapping]

    def _batch_code(self, batch: Any) -> int:
        key = self.registry_["setup_args"]["batch_key"]
        if key is None:
            message = f"batch={batch!r}: the model was set up without batch_key."
            raise ValueError(message)
        return int(find_labels([as_label(batch)], self._mapping("batch", key), "batch")[0])

    def _check_batches(self, codes: np.ndarray, argument: str) -> None:
        """Raise if cells would be decoded under a batch that the model was not trained with."""
        if (codes == UNSEEN_BATCH).any():
            known = self._mapping("batch", self.registry_["setup_args"]["batch_key"])
            message = (
                f"{(codes == UNSEEN_BATCH).sum()} cells are in batches the model was not trained with, under which it "
                f"cannot decode. Pass {argument} one of {known[:5]}."
            )
            raise ValueError(message)

    def _set_covariate(self, key: str, value: Any, categorical: np.ndarray, continuous: np.ndarray) -> None:
        args = self.registry_["setup_args"]
        names, numbers = args["categorical_covariate_keys"] or [], args["continuous_covariate_keys"] or []
        if key in names:
            codes = find_labels([as_label(value)], self._mapping("extra_categorical_covs", key), f"covariates[{key!r}]")
            categorical[:, names.index(key)] = codes[0]
        elif key in numbers:
            if not np.isfinite(float(value)):
                message = f"covariates[{key!r}]={value!r} must be finite."
                raise ValueError(message)
            continuous[:, numbers.index(key)] = float(value)
        else:
            message = f"covariates: {key!r} is not a covariate of the model; there are {[*names, *numbers]}."
            raise KeyError(message)

    def _contexts_of(
        self,
        contexts: CellContexts,
        rows: np.ndarray,
        expected: np.ndarray,
        *,
        batch: Any,
        covariates: Mapping[str, Any] | None,
        library_size: float | None,
    ) -> RowContexts:
        """What generated cells are decoded under: rows of ``contexts``, changed where the user asks for it.

        ``expected`` are the library sizes expected from the cells' latents, ``(cells,)``.
        """
        library = contexts.matched_library(rows, expected)
        if library_size is not None:
            library[:] = float(library_size)
        batch_codes = contexts.batch[rows] if batch is None else np.full(len(rows), self._batch_code(batch))
        self._check_batches(batch_codes, "batch=")
        categorical, continuous = contexts.categorical[rows].copy(), contexts.continuous[rows].copy()
        for key, value in (covariates or {}).items():
            self._set_covariate(key, value, categorical, continuous)
        return RowContexts(library, batch_codes, categorical, continuous)

    def _generated_adata(
        self,
        u: np.ndarray,
        context: RowContexts,
        labels: list[str],
        parts: list[list[str]],
        codes: np.ndarray,
        generator: torch.Generator,
    ) -> AnnData:
        """Decode latents ``(cells, n_latent)`` to an AnnData that can be embedded like any other.

        ``parts`` are the values of the population key's columns for each of ``labels``, of which ``codes`` gives each
        cell's.
        """
        x = generate_rows(self.module, u, context, generator)
        obs = self._generated_obs(labels, parts, codes, context)
        if self.module.observation.is_count:
            obs[f"{OWN_PREFIX}library_size"] = context.library
        return self._rows_adata(x, obs, context)

    def _rows_adata(self, x: np.ndarray, obs: pd.DataFrame, context: RowContexts) -> AnnData:
        """AnnData of rows ``(cells, n_vars)`` where the model looks for them, with the size factors they were decoded under."""
        is_count = self.module.observation.is_count
        args = self.registry_["setup_args"]
        if args["size_factor_key"] is not None:
            obs[args["size_factor_key"]] = context.library / float(self.module.observation.size_factor_gain)
        names = pd.Index(np.asarray(self._variables(), dtype=object).astype(str))
        cells = AnnData(X=sp.csr_matrix(x) if is_count else x, obs=obs, var=pd.DataFrame(index=names))
        if args["layer"] is not None:
            cells.layers[args["layer"]] = cells.X.copy()
        if args["obsm_key"] is not None:
            cells.obsm[args["obsm_key"]] = x.copy()
        return cells

    def _generated_obs(
        self, labels: list[str], parts: list[list[str]], codes: np.ndarray, context: RowContexts
    ) -> pd.DataFrame:
        index = pd.Index([f"{OWN_PREFIX}{i}" for i in range(len(codes))])
        values = np.array(labels, dtype=object)[codes]
        obs = pd.DataFrame({f"{OWN_PREFIX}population": pd.Categorical(values)}, index=index)
        keys = self._population_keys()

        def own_column(key: str) -> str:
            return f"{OWN_PREFIX}{key}" if key in keys else key

        for i, key in enumerate(keys):
            obs[key] = pd.Categorical(np.array([p[i] for p in parts], dtype=object)[codes])
        args = self.registry_["setup_args"]
        if args["batch_key"] is not None:
            values = np.array(self._mapping("batch", args["batch_key"]), dtype=object)[context.batch]
            obs[own_column(args["batch_key"])] = pd.Categorical(values)
        for i, key in enumerate(args["categorical_covariate_keys"] or []):
            mapping = np.array(self._mapping("extra_categorical_covs", key), dtype=object)
            obs[own_column(key)] = pd.Categorical(mapping[context.categorical[:, i]])
        for i, key in enumerate(args["continuous_covariate_keys"] or []):
            obs[key] = context.continuous[:, i]
        return obs

    def _parts_of(self, label: str) -> list[str]:
        """Values of the population key's columns for a label; one that no training population has is split.

        Where the number of parts does not fit, every column gets the whole label.
        """
        known = list(self.populations_["labels"])
        if label in known:
            return list(np.asarray(self.populations_["parts"], dtype=object)[known.index(label)])
        n, parts = len(self._population_keys()), label.split(LABEL_SEPARATOR)
        return parts if len(parts) == n else [label] * n


def check_count(name: str, value: Any, meaning: str, minimum: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        at_least = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
        message = f"{name}={value!r} must be {at_least}: {meaning}."
        raise ValueError(message)


def check_library_size(value: Any) -> None:
    """Raise unless ``value`` is None or a positive finite number."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if value is not None and (not is_number or not 0 < value < np.inf):
        message = f"library_size={value!r} must be a positive number: the expected total count of a cell."
        raise ValueError(message)
