"""The cells of a zarr folder as a table, and the registry that a model of them is built from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgde.data.cells import CellTable, numeric_column, read_covariates
from scgde.data.populations import as_keys, as_label, encode_labels
from scgde.data.streaming import StreamedCells, population_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

CELLS_PER_BUFFER = 50_000
"""Cells that are held and shuffled at once, at most."""

BUFFER_ENTRIES = 8_000_000
"""Stored entries of these cells, at most."""

NEIGHBOURS = 16
"""Cells of a sample that lie together."""

LEAST_RUNS = 64
"""Runs that the cells are cut into at least, if there are as many cells."""

READS_PER_BUFFER = 32
"""Places of the folder that a buffer is read from, about: what it holds is as mixed as that many neighbourhoods."""


class StreamedTable(CellTable):
    """A table of cells on disk, whose annotation is read when it is asked for.

    Parameters
    ----------
    cells
        Cells.
    registry
        Registry of a model.
    """

    def __init__(self, cells: StreamedCells, registry: dict) -> None:
        from scgde.data.cells import match_genes

        cells.check_unchanged()
        state = {name: entry["state_registry"] for name, entry in registry["field_registries"].items()}
        expected = pd.Index(np.asarray(state["X"]["column_names"], dtype=object))
        self.cells = cells
        # NaN where they have not been seen
        self._totals = np.full(cells.n_obs, np.nan, dtype=np.float32)
        self.var_names = expected
        self.matrix = cells.rows(match_genes(cells.var_names, expected))  # type: ignore[assignment]
        field = state["population"]
        bounds, labels = population_runs(cells.frame(field["keys"]), field["keys"], field["unassigned"], cells.path)
        codes, self.labels = encode_labels(labels, field["categorical_mapping"])
        self.codes = np.repeat(codes, np.diff(bounds))
        self.batch, self.categorical, self.continuous, self.size_factor = read_covariates(cells, registry)

    @property
    def obs(self) -> pd.DataFrame:  # type: ignore[override]
        """Annotation of the cells; see :attr:`scgde.data.streaming.StreamedCells.obs`."""
        return self.cells.obs

    @obs.setter
    def obs(self, value: pd.DataFrame) -> None:
        raise AttributeError("obs of cells on disk cannot be set")

    @property
    def columns(self) -> list[str]:
        return self.cells.columns

    def column(self, key: str) -> pd.Series:
        return self.cells.column(key)

    def sample(self, indices: np.ndarray, limit: int, seed: int) -> np.ndarray:
        """At most ``limit`` of the indices, in order: some neighbours at each of many places, of which fewer have to be read."""
        n_places = limit // NEIGHBOURS
        if len(indices) <= 4 * limit or n_places == 0:
            return super().sample(indices, limit, seed)
        places = np.sort(np.random.default_rng(seed).choice(len(indices) // NEIGHBOURS, n_places, replace=False))
        return indices[(places[:, None] * NEIGHBOURS + np.arange(NEIGHBOURS)).reshape(-1)]

    def totals(self, indices: np.ndarray) -> np.ndarray:
        unseen = indices[np.isnan(self._totals[indices])]
        if len(unseen):
            self._totals[unseen] = super().totals(unseen)
        return self._totals[indices]

    def read_runs(self) -> np.ndarray:
        """Bounds of the runs of neighbouring cells that training reads at once, ``(runs + 1,)``."""
        matrix: Any = self.matrix
        share = min(CELLS_PER_BUFFER, BUFFER_ENTRIES * matrix.cells_per_entry) / READS_PER_BUFFER
        # processes share the runs out
        share = min(share, self.n_cells / LEAST_RUNS)
        return np.append(np.arange(0, self.n_cells, max(int(share), 1)), self.n_cells)

    @property
    def cells_per_buffer(self) -> int:
        """Cells that are held and shuffled at once, about."""
        matrix: Any = self.matrix
        return max(int(min(CELLS_PER_BUFFER, BUFFER_ENTRIES * matrix.cells_per_entry)), 1)


def streamed_registry(
    setup: Any,
    cells: StreamedCells,
    population_key: str | Sequence[str] | None,
    *,
    unassigned: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    categorical_covariate_keys: list[str] | None = None,
    continuous_covariate_keys: list[str] | None = None,
    size_factor_key: str | None = None,
) -> dict:
    """Registry of cells on disk, as ``setup_anndata`` would make it of the same cells in memory.

    It is made by ``setup_anndata`` itself, of an AnnData with no counts that has every label and category once.

    Parameters
    ----------
    setup
        Function that registers an AnnData and returns its registry.
    cells
        Cells.
    population_key, unassigned, batch_key, categorical_covariate_keys, continuous_covariate_keys, size_factor_key
        See :meth:`scgde.GDEModel.setup_anndata`; the first two are those the folder was written with by default.
    """
    own = list(cells.info["population_key"])
    keys = as_keys(own if population_key is None else population_key)
    if unassigned is None:
        unassigned = list(cells.info["unassigned"]) if set(keys) <= set(own) else []
    unassigned = [as_label(unassigned)] if np.isscalar(unassigned) else [as_label(label) for label in unassigned]
    categories = [*([batch_key] if batch_key else []), *(categorical_covariate_keys or [])]
    numbers = [*(continuous_covariate_keys or []), *([size_factor_key] if size_factor_key else [])]
    for key in [*categories, *numbers]:
        if cells.column(key).isna().any():
            message = f"column {key!r} of {cells.path!r} has missing values; fill them or leave those cells out."
            raise ValueError(message)
    for key in numbers:
        numeric_column(cells, key)
    columns = cells.frame(keys)
    bounds, _ = population_runs(columns, keys, unassigned, cells.path)
    # numbered anew: the names of cells are of no use, and an AnnData makes strings of them
    obs = columns.iloc[bounds[:-1]].reset_index(drop=True)
    distinct = {key: pd.Series(cells.column(key).unique()) for key in categories if key not in keys}
    n_rows = max([len(obs), *(len(values) for values in distinct.values())])
    obs = obs.iloc[np.minimum(np.arange(n_rows), len(obs) - 1)].reset_index(drop=True)
    for key, values in distinct.items():
        obs[key] = values.iloc[np.minimum(np.arange(n_rows), len(values) - 1)].to_numpy()
    for key in numbers:
        obs[key] = 1.0
    # scvi-tools warns of categories of fewer than three cells
    obs = pd.concat([obs] * 3, ignore_index=True)
    obs.index = obs.index.astype(str)
    nothing = sp.csr_matrix((len(obs), cells.n_vars), dtype=np.float32)
    blank = AnnData(nothing, obs=obs, var=pd.DataFrame(index=cells.var_names))
    # a single column is registered as it is when it is given as it is
    registry = copy.deepcopy(
        setup(
            blank,
            population_key=keys[0] if len(keys) == 1 else keys,
            unassigned=unassigned or None,
            batch_key=batch_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
        )
    )
    rows = registry["field_registries"]["X"]
    rows["state_registry"]["n_obs"] = cells.n_obs
    rows["summary_stats"]["n_cells"] = cells.n_obs
    return registry
