"""Populations: from label columns to codes, the registered field, and splits on codes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.pretty
import rich.table
from scvi.data.fields import BaseAnnDataField

from scgde._constants import LABEL_SEPARATOR, POPULATION_KEY, SCVI_PREFIX, UNASSIGNED_CODE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgde.data.cells import CellTable

logger = logging.getLogger(__name__)


def as_keys(key: str | Sequence[str]) -> list[str]:
    """The key column(s) as a list; a single column is a list of one."""
    keys = [key] if isinstance(key, str) else list(key) if isinstance(key, list | tuple | pd.Index) else []
    if not keys or not all(isinstance(k, str) for k in keys):
        message = f"population_key={key!r} must be a column of adata.obs or a list of such columns."
        raise TypeError(message)
    if len(set(keys)) != len(keys):
        message = f"population_key={keys} names a column twice; give each column once."
        raise ValueError(message)
    return keys


def as_label(label: object) -> str:
    """A label as users may write it (a string, a number, a tuple of a crossed key) as the stored string."""
    if isinstance(label, tuple | list):
        return LABEL_SEPARATOR.join(as_label(part) for part in label)
    if isinstance(label, float | np.floating) and float(label).is_integer():
        return str(int(label))
    return str(label)


def column_labels(column: pd.Series) -> pd.Series:
    """Labels of one column as strings, with missing values left missing.

    Whole floats become integers: a column of integers with missing values is stored as floats, and ``3.0`` would no
    longer match the ``3`` of a complete column.
    """
    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) != "string":
        # numbers and truth values are told apart by their labels only
        present = column.notna().to_numpy()
        values = column.to_numpy(dtype=object, copy=True)
        values[present] = [as_label(v) for v in values[present]]
    else:
        codes, distinct = pd.factorize(column)  # each value is made a label once; missing ones are -1
        values = np.array([*(as_label(value) for value in distinct), None], dtype=object)[codes]
    return pd.Series(values, index=column.index, dtype=object)


def population_labels(obs: pd.DataFrame, keys: Sequence[str], unassigned: Sequence[str] = ()) -> pd.Series:
    """Population label of every cell; missing for cells in no population.

    Parameters
    ----------
    obs
        Annotation of the cells.
    keys
        Column(s) to cross, in order.
    unassigned
        Labels that mean "in no population", in any of the columns.

    Raises
    ------
    KeyError
        If a column is absent.
    ValueError
        If two different tuples of a crossed key give one string.
    """
    check_keys(obs, keys)
    unassigned = [as_label(u) for u in unassigned]
    parts = [pd.factorize(column_labels(obs[k])) for k in keys]
    codes = np.stack([found for found, _ in parts], axis=1)
    for column, (_, names) in zip(codes.T, parts, strict=True):
        column[np.append(np.isin(names.astype(object), unassigned), False)[column]] = -1
    missing = (codes < 0).any(axis=1)
    # codes and not labels are compared, of which there is one for each cell
    distinct, inverse = np.unique(codes[~missing], axis=0, return_inverse=True)
    tuples = [tuple(names[c] for c, (_, names) in zip(row, parts, strict=True)) for row in distinct]
    joined = [LABEL_SEPARATOR.join(row) for row in tuples]
    first: dict[str, tuple] = {}
    for label, row in zip(joined, tuples, strict=True):
        if first.setdefault(label, row) != row:
            message = (
                f"population_key={list(keys)}: the different labels {[first[label], row]} both read {label!r} when joined by "
                f"{LABEL_SEPARATOR!r}. Rename one so that the joined labels differ."
            )
            raise ValueError(message)
    labels = np.full(len(obs), None, dtype=object)
    labels[~missing] = np.array([*joined, None], dtype=object)[inverse.reshape(-1)]
    return pd.Series(labels, index=obs.index, dtype=object)


def check_keys(obs: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raise a KeyError that lists candidates if a key column is absent."""
    absent = [k for k in keys if k not in obs.columns]
    if absent:
        message = (
            f"population_key: {absent} not in adata.obs. Columns that could be populations: "
            f"{candidate_columns(obs) or 'none (no column has between 2 and n_obs / 2 distinct values)'}."
        )
        raise KeyError(message)


def candidate_columns(obs: pd.DataFrame) -> list[str]:
    """Columns that look like population labels: between 2 and n_obs / 2 distinct values, not floating point."""
    names = []
    for name in obs.columns:
        column = obs[name]
        if str(name).startswith(SCVI_PREFIX) or pd.api.types.is_float_dtype(column):
            continue
        if 2 <= column.nunique() <= max(len(obs) / 2, 2):
            names.append(str(name))
    return names


def encode_labels(labels: pd.Series, categories: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Codes of labels given known categories; new labels are appended in sorted order, missing ones get -1."""
    known = list(categories)
    new = sorted(set(labels.dropna()) - set(known))
    lookup = {label: code for code, label in enumerate(known + new)}
    codes = labels.map(lookup).fillna(UNASSIGNED_CODE).astype(np.int64).to_numpy()
    return codes, known + new


class PopulationField(BaseAnnDataField):
    """Registered field holding each cell's population code, -1 for cells in no population.

    Codes are derived from the key columns at registration and again at transfer, and new populations always extend the
    mapping: a set encoder is inductive. Codes are written to ``obs["_scvi_population"]``.

    Parameters
    ----------
    keys
        Column(s) of ``obs`` to cross.
    unassigned
        Labels meaning "in no population"; missing values always do.
    """

    def __init__(self, keys: Sequence[str], unassigned: Sequence[str] = ()) -> None:
        super().__init__()
        self._keys = list(keys)
        self._unassigned = [as_label(u) for u in unassigned]

    @property
    def registry_key(self) -> str:
        return POPULATION_KEY

    @property
    def attr_name(self) -> str:
        return "obs"

    @property
    def attr_key(self) -> str:
        return f"{SCVI_PREFIX}{POPULATION_KEY}"

    @property
    def is_empty(self) -> bool:
        return False

    def validate_field(self, adata: AnnData) -> None:
        super().validate_field(adata)
        check_keys(adata.obs, self._keys)

    def _register(self, adata: AnnData, categories: Sequence[str]) -> dict:
        labels = population_labels(adata.obs, self._keys, self._unassigned)
        codes, mapping = encode_labels(labels, categories)
        n_missing = int((codes == UNASSIGNED_CODE).sum())
        if n_missing == len(codes):
            message = (
                f"population_key={self._keys}: every one of the {len(codes)} cells has a missing or unassigned label, "
                "so there is no population. Check the column(s) and the unassigned= argument."
            )
            raise ValueError(message)
        if n_missing:
            logger.info(
                f"{n_missing} of {len(codes)} cells have a missing or unassigned population label. They train the "
                "cell latent and are in no population."
            )
        adata.obs[self.attr_key] = codes
        return {"categorical_mapping": mapping, "keys": self._keys, "unassigned": self._unassigned}

    def register_field(self, adata: AnnData) -> dict:
        super().register_field(adata)
        return self._register(adata, ())

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        super().transfer_field(state_registry, adata_target, **kwargs)
        return self._register(adata_target, state_registry["categorical_mapping"])

    def get_summary_stats(self, state_registry: dict) -> dict:
        return {"n_population": len(state_registry["categorical_mapping"])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        table = rich.table.Table(title="population State Registry")
        table.add_column("Source Location")
        table.add_column("Populations")
        columns = ", ".join(f"adata.obs[{k!r}]" for k in state_registry["keys"])
        table.add_row(columns, str(len(state_registry["categorical_mapping"])))
        return table


def split_by_cell(
    codes: np.ndarray, train_size: float, validation_size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stratified split: every population gives its own share of validation and test cells, rounded down.

    At least one cell of each population is always trained on. Unassigned cells are split as one more stratum.

    Returns
    -------
    Sorted indices of training, validation and test cells.
    """
    train, validation, test = [], [], []
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    bounds = np.flatnonzero(np.diff(codes[order])) + 1
    for rows in np.split(order, bounds):
        n_validation = _floor(validation_size * len(rows))
        n_test = _floor((1 - train_size - validation_size) * len(rows))
        validation.append(rows[:n_validation])
        test.append(rows[n_validation : n_validation + n_test])
        train.append(rows[n_validation + n_test :])
    return _sorted(train), _sorted(validation), _sorted(test)


def split_by_population(
    codes: np.ndarray, train_size: float, validation_size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split whole populations; unassigned cells train.

    At least two populations are trained on, and one is validated on unless ``validation_size`` is zero.
    """
    populations = rng.permutation(np.unique(codes[codes >= 0]))
    n_validation = _floor(validation_size * len(populations))
    if validation_size > 0 and len(populations) > 2:
        n_validation = max(n_validation, 1)
    n_test = _floor((1 - train_size - validation_size) * len(populations))
    if len(populations) - n_validation - n_test < 2:
        message = (
            f"split_by='population' leaves fewer than two of {len(populations)} populations to train on with "
            f"train_size={train_size}; raise train_size or split by cell."
        )
        raise ValueError(message)
    part = np.zeros(codes.max() + 1, dtype=int)
    part[populations[:n_validation]] = 1
    part[populations[n_validation : n_validation + n_test]] = 2
    role = np.where(codes >= 0, part[codes], 0)
    return np.flatnonzero(role == 0), np.flatnonzero(role == 1), np.flatnonzero(role == 2)


def split_by_column(column: pd.Series, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split given by an ``obs`` column of ``train``, ``validation`` and ``test``; anything else raises."""
    values = column.astype(object).where(column.notna(), "missing").astype(str).to_numpy()
    unknown = sorted(set(values) - {"train", "validation", "test"})
    if unknown:
        message = (
            f"split_key={name!r}: values {unknown[:5]} are not among 'train', 'validation' and 'test'. Rename them, "
            "or subset the cells that take no part."
        )
        raise ValueError(message)
    train, validation, test = (np.flatnonzero(values == part) for part in ("train", "validation", "test"))
    if len(train) == 0:
        message = f"split_key={name!r}: no cell is marked 'train'."
        raise ValueError(message)
    return train, validation, test


def _floor(share: float) -> int:
    """Whole part of a share of cells, where 1 - 0.9 times ten cells is one cell and not 0.99..."""
    return int(np.floor(round(share, 9)))


def _sorted(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype=int)


def constant_columns(table: CellTable, rows: np.ndarray, codes: np.ndarray, n: int, keys: list[str]) -> pd.DataFrame:
    """One row for each population with the columns that are constant in all of them.

    Parameters
    ----------
    table
        Cells.
    rows, codes
        Cells that form the populations, and the population of each, negative for none.
    n
        Number of populations.
    keys
        Columns that are kept whatever they hold.
    """
    assigned = codes >= 0
    rows, codes = rows[assigned], codes[assigned]
    first = np.full(n, -1)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    columns = {}
    for name in table.columns:
        if name.startswith(SCVI_PREFIX):
            continue
        values = table.column(name).iloc[rows]
        try:
            numbers = pd.factorize(values)[0]  # missing values are one value of their own, -1
        except TypeError:  # lists and the like cannot be compared
            continue
        if name in keys or (numbers == numbers[first][codes]).all():
            column = values.iloc[first].reset_index(drop=True)
            if isinstance(column.dtype, pd.CategoricalDtype):
                column = column.cat.remove_unused_categories()
            columns[name] = column
    return pd.DataFrame(columns, index=range(n))
