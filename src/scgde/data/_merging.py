"""One column of ``obs`` out of the columns of several inputs, and population codes of all their cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde._constants import UNASSIGNED_CODE
from scgde.data.populations import column_labels, encode_labels, population_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgde.data._sources import Source


def merge_column(pieces: Sequence[pd.Series]) -> np.ndarray | pd.Categorical:
    """Values of one column over all inputs.

    Booleans stay Booleans and numbers numbers, of the least type that holds all. Anything else becomes categories: those
    that all inputs share, in their order, or else all there are, sorted. Where inputs differ in kind, and for strings, the
    categories are strings.

    Raises
    ------
    TypeError
        If values cannot be compared, as lists.
    """
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    kinds = {_kind(piece) for piece in pieces}
    if kinds == {"bool"}:
        return np.concatenate([piece.to_numpy(dtype=bool) for piece in pieces])
    if kinds == {"number"}:
        return np.concatenate([_numbers(piece) for piece in pieces])
    if kinds == {"category"}:
        first = pieces[0].cat
        same = all(p.cat.ordered == first.ordered and p.cat.categories.equals(first.categories) for p in pieces)
        numeric = all(p.cat.categories.dtype.kind in "iuf" for p in pieces)
        if same and (numeric or first.categories.map(lambda c: isinstance(c, str)).all()):
            codes = np.concatenate([piece.cat.codes.to_numpy() for piece in pieces])
            return pd.Categorical.from_codes(codes, dtype=pieces[0].dtype)
        if numeric:
            return _unite([(p.cat.codes.to_numpy(), p.cat.categories.to_numpy()) for p in pieces])
    return _unite([factorize(piece) for piece in pieces])


def factorize(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the cells, -1 for missing ones, and the label of each code; labels may repeat."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, values = column.cat.codes.to_numpy(), column.cat.categories
    else:
        try:
            codes, values = pd.factorize(column)
        except TypeError as error:
            message = f"a column of obs holds values that cannot be compared ({error}); leave it out with columns=."
            raise TypeError(message) from error
    return codes.astype(np.int32), column_labels(pd.Series(values, dtype=object)).to_numpy()


def joint_codes(
    sources: Sequence[Source], keys: Sequence[str], unassigned: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Population code of every cell of all inputs, -1 for cells in no population, and the label of each code.

    They are those that one AnnData of all cells would have. Labels are made of the distinct combinations only.
    """
    parts, tables = [], []
    for source in sources:
        columns = [factorize(source.column(key)) for key in keys]
        sizes = [len(values) + 1 for _, values in columns]  # missing values come first
        combined = np.ravel_multi_index([codes.astype(np.int64) + 1 for codes, _ in columns], sizes)
        distinct, inverse = np.unique(combined, return_inverse=True)
        chosen = np.unravel_index(distinct, sizes)
        labels = [
            np.concatenate([[None], values]).astype(object)[c] for (_, values), c in zip(columns, chosen, strict=True)
        ]
        tables.append(pd.DataFrame(dict(zip(keys, labels, strict=True)), dtype=object))
        parts.append(inverse.astype(np.int32))
    table = pd.concat(tables, ignore_index=True)
    codes, names = encode_labels(population_labels(table, keys, unassigned))
    starts = np.cumsum([0, *map(len, tables)])
    return np.concatenate([codes[start + part] for start, part in zip(starts, parts, strict=False)]), names


def population_order(codes: np.ndarray, seed: int) -> np.ndarray:
    """Cells sorted by population, those in none last, at random within each.

    A cell has the same chance of every place of its population, so any run of rows is a random sample of it.
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    ranks = np.where(codes == UNASSIGNED_CODE, codes.max(initial=0) + 1, codes)[order]
    return order[np.argsort(ranks, kind="stable")]


def _kind(column: pd.Series) -> str:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(dtype):
        return "text" if column.isna().any() else "bool"
    return "number" if pd.api.types.is_integer_dtype(dtype) or pd.api.types.is_float_dtype(dtype) else "text"


def _numbers(column: pd.Series) -> np.ndarray:
    """Numbers of a column; missing integers make it floating point."""
    if isinstance(column.dtype, np.dtype):
        values = column.to_numpy()
        return values if values.dtype.itemsize <= 8 else values.astype(np.float64)
    if column.isna().any():
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(dtype=column.dtype.numpy_dtype)


def _unite(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> pd.Categorical:
    """Codes and categories of inputs as one categorical with sorted categories."""
    categories: Any = np.unique(np.concatenate([values for _, values in parts]))
    codes = []
    for part, values in parts:
        lookup = np.append(np.searchsorted(categories, values), -1).astype(np.int32)  # -1 is the last: missing
        codes.append(lookup[part])
    return pd.Categorical.from_codes(np.concatenate(codes), pd.Index(categories))
