"""From populations of cells to replicates in groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde.data.populations import as_label, column_labels
from scgde.tl._permanova import DesignError, standardised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROLES = {"groupby": "group", "replicate_key": "replicate", "stratify_by": "stratum", "block_key": "block"}


def require_model(model: Any) -> None:
    """Raise a TypeError for what is no model."""
    from scgde.model import GDEModel

    if not isinstance(model, GDEModel):
        message = f"model is a {type(model).__name__} and must be a trained GDEModel; pass cells as adata=."
        raise TypeError(message)


def require_columns(obs: pd.DataFrame, named: Sequence[tuple[str, str]]) -> None:
    """Raise if a column, given as (argument, name), is absent or has missing values."""
    for argument, name in named:
        if not isinstance(name, str):
            message = f"{argument}={name!r} must be the name of a column of adata.obs."
            raise TypeError(message)
        if name not in obs:
            message = f"{argument}={name!r} is not in adata.obs; there are {list(obs.columns)}."
            raise KeyError(message)
        missing = int(obs[name].isna().sum())
        if missing:
            message = (
                f"{argument}={name!r} is missing in {missing} of {len(obs)} cells. Fill it, or leave these cells out: "
                "pass the others as adata=."
            )
            raise ValueError(message)


def given_columns(columns: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """The columns that were given, as (argument, name); groups and replicates have to be."""
    for argument in ("groupby", "replicate_key"):
        if argument in columns and columns[argument] is None:
            message = f"{argument}=None must be the name of a column of adata.obs."
            raise TypeError(message)
    return [(argument, name) for argument, name in columns.items() if name is not None]


def covariate_names(covariates: str | Iterable[str] | None) -> list[str]:
    """Names of covariates as a list."""
    if covariates is None:
        return []
    if not isinstance(covariates, Iterable):
        message = f"covariates={covariates!r} must be the name of a column of adata.obs or a list of names."
        raise TypeError(message)
    return [covariates] if isinstance(covariates, str) else list(covariates)


def covariate_values(column: pd.Series) -> pd.Series:
    """Values of a covariate: numbers, or labels, which those of a categorical column are whatever they look like."""
    if column.dtype == object and pd.api.types.infer_dtype(column) in ("integer", "floating", "mixed-integer-float"):
        column = column.astype(np.float64)  # numbers that were joined with missing values or read as objects
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.astype(np.float64) if pd.api.types.is_extension_array_dtype(column) else column
    return column if column.dtype == bool else column_labels(column)


def labels_in_order(column: pd.Series) -> list[str]:
    """Labels of a column, once each: categories as they are ordered, numbers by size, others in sorted order."""
    distinct = column[column.notna()].drop_duplicates()
    if isinstance(column.dtype, pd.CategoricalDtype):
        distinct = distinct.sort_values()
    else:
        labels = column_labels(distinct)
        numeric = pd.to_numeric(distinct, errors="coerce") if distinct.map(_is_number).all() else None
        distinct = distinct.iloc[np.argsort((labels if numeric is None else numeric).to_numpy(), kind="stable")]
    return list(dict.fromkeys(column_labels(distinct)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def one_group_blocks(lost: Mapping[str, list[str]]) -> str:
    """What a warning says of the blocks left out of each test."""
    name, blocks = next(iter(lost.items()))
    return (
        f"block_key: {len(blocks)} blocks {'in ' + name + ' ' if name else ''}have replicates of one group only, such as "
        f"{blocks[:3]}, and are left out"
        + (f"; so are blocks in {len(lost) - 1} further tests." if len(lost) > 1 else ".")
    )


def describe_populations(
    obs: pd.DataFrame,
    codes: np.ndarray,
    labels: Sequence[str],
    columns: Mapping[str, str | None],
    covariates: Sequence[str] = (),
) -> pd.DataFrame:
    """Group, replicate, stratum and block of every population, and its covariates.

    Parameters
    ----------
    obs
        Annotation of cells.
    codes
        Position of each cell's population in ``labels``, negative for none.
    labels
        Labels of the populations.
    columns
        Columns by the argument of :data:`ROLES` that named them; None for those not given.
    covariates
        Columns of covariates.

    Returns
    -------
    One row for each population, with the columns ``group``, ``replicate``, ``stratum`` and ``block``, as strings and
    where they were given, and the covariates.
    """
    assigned = codes >= 0
    obs, codes = obs.loc[assigned], codes[assigned]
    given = given_columns(columns)
    require_columns(obs, [*given, *(("covariates", name) for name in covariates)])
    first = np.empty(len(labels), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    out = {}
    for argument, name in [*given, *(("covariates", name) for name in covariates)]:
        column = covariate_values(obs[name]) if argument == "covariates" else column_labels(obs[name])
        numbers = pd.factorize(column)[0]
        varying = np.flatnonzero(numbers != numbers[first][codes])
        if len(varying):
            k = codes[varying[0]]
            values = sorted({str(value) for value in column[codes == k]})
            message = (
                f"{argument}={name!r} has the values {values[:3]} in population {labels[k]!r} and must "
                "have one in each "
                f"population. Set up the model with populations that are split by it: population_key=[..., {name!r}]."
            )
            raise ValueError(message)
        out[(argument, name)] = column.iloc[first].to_numpy()
    named = {ROLES.get(argument, f"covariate:{name}"): values for (argument, name), values in out.items()}
    frame = pd.DataFrame(named, index=pd.Index(list(labels), name="population"))
    require_units(frame, columns, covariates)
    return frame


def require_units(frame: pd.DataFrame, columns: Mapping[str, str | None], covariates: Sequence[str] = ()) -> None:
    """Raise if a replicate has several groups, blocks or values of a covariate."""
    key = columns["replicate_key"]
    for argument in ("groupby", "block_key"):
        if columns.get(argument) is None:
            continue
        name = ROLES[argument]
        count = frame.groupby("replicate", observed=True)[name].nunique()
        if (count > 1).any():
            replicate = count.index[count > 1][0]
            values = sorted(frame.loc[frame["replicate"] == replicate, name].unique())
            remedy = (
                f"In a paired design the replicate is the sample and {key!r} its block: replicate_key= "
                "a column with one "
                f"value for each {key} x {columns['groupby']}, and block_key={key!r}."
                if argument == "groupby" and columns.get("block_key") in (None, key)
                else "Give every sample a label of its own as replicate_key."
            )
            message = (
                f"replicate_key={key!r}: {replicate!r} has the values {values[:3]} of "
                f"{argument}={columns[argument]!r}, and a "
                f"replicate must have one. {remedy}"
            )
            raise ValueError(message)
    for name in covariates:
        count = frame.groupby("replicate", observed=True)[f"covariate:{name}"].nunique()
        if (count > 1).any():
            message = (
                f"covariates: {name!r} has {count.max()} values in replicate {count.idxmax()!r} and "
                "must be constant in "
                "each. Leave it out, or summarise it for each replicate first."
            )
            raise ValueError(message)


def choose_groups(described: pd.DataFrame, obs: pd.DataFrame, groups: Sequence[Any] | None, groupby: str) -> list[str]:
    """Labels of the groups to compare: those given, or all that populations have, in the order of the column."""
    present = set(described["group"])
    known = [label for label in labels_in_order(obs[groupby]) if label in present]
    if groups is None:
        chosen = known
    else:
        groups = [groups] if isinstance(groups, str) else groups
        if not isinstance(groups, Iterable):
            message = f"groups={groups!r} must be a list of values of {groupby!r}; there are {known}."
            raise TypeError(message)
        chosen = [as_label(group) for group in groups]
        unknown = [group for group in chosen if group not in known]
        if unknown:
            message = f"groups={unknown} are not in groupby={groupby!r}; there are {known}."
            raise KeyError(message)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        message = f"groupby={groupby!r} gives the groups {chosen}, and at least two different ones are compared."
        raise ValueError(message)
    return chosen


@dataclass(frozen=True)
class Replicates:
    """Replicates that can be compared.

    Attributes
    ----------
    x
        Their vectors, ``(n, d)``.
    groups
        Position of each in the groups compared, ``(n,)``.
    block
        Code of its block, ``(n,)``, or None.
    covariates
        Columns of the design, ``(n, q)``, or None.
    lost
        Blocks of one group, which were left out.
    """

    x: np.ndarray
    groups: np.ndarray
    block: np.ndarray | None
    covariates: np.ndarray | None
    lost: list[str]


def as_replicates(
    frame: pd.DataFrame,
    vectors: np.ndarray,
    n_cells: np.ndarray,
    compared: Sequence[str],
    covariates: Sequence[str] = (),
) -> Replicates:
    """Average the populations of each replicate, by cells, and leave out blocks of one group.

    Raises
    ------
    DesignError
        If nothing can be compared, or a group has one replicate.
    """
    unit, names = pd.factorize(frame["replicate"].to_numpy(), sort=True)
    first = np.array([int(np.flatnonzero(unit == k)[0]) for k in range(len(names))], dtype=np.int64)
    x = np.zeros((len(names), vectors.shape[1]))
    weight = np.bincount(unit, n_cells, len(names))
    np.add.at(x, unit, vectors.astype(np.float64) * n_cells[:, None])
    x /= weight[:, None]
    units = frame.iloc[first]
    group = np.array([list(compared).index(label) for label in units["group"]], dtype=np.int64)
    kept, lost, block = np.ones(len(units), dtype=bool), [], None
    if "block" in units:
        block, blocks = pd.factorize(units["block"].to_numpy(), sort=True)
        single = [len(np.unique(group[block == b])) < 2 for b in range(len(blocks))]
        lost = [str(name) for name, alone in zip(blocks, single, strict=True) if alone]
        kept = ~np.asarray(single, dtype=bool)[block]
        if not kept.any():
            message = (
                f"block_key: none of the {len(blocks)} blocks has replicates of two groups, so that no "
                "permutation within blocks "
                "changes anything. Leave block_key out if replicates are not paired."
            )
            raise DesignError(message)
    count = np.bincount(group[kept], minlength=len(compared))
    few = {label: int(m) for label, m in zip(compared, count, strict=True) if m < 2}
    if few:
        message = (
            f"groupby: groups must have two replicates at least, and {few} have fewer: nothing says "
            "how replicates differ "
            "without a difference of groups. Compare other groups (groups=)"
            + (", or only the cells of two populations (tl.test_populations)." if block is None else ".")
        )
        raise DesignError(message)
    design = _design(units.loc[kept], covariates) if covariates else None
    return Replicates(x[kept], group[kept], None if block is None else block[kept], design, lost)


def _design(units: pd.DataFrame, covariates: Sequence[str]) -> np.ndarray:
    """Covariates as numbers: one column for a numeric one, one for each further value of any other."""
    parts = []
    for name in covariates:
        column = units[f"covariate:{name}"]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = column.to_numpy(dtype=np.float64)
            if not np.isfinite(values).all():
                message = f"covariates: {name!r} is not finite everywhere. Drop these cells or mend the column."
                raise ValueError(message)
            parts.append(standardised(values[:, None]))
        else:
            codes, distinct = pd.factorize(column.to_numpy())
            parts.append((codes[:, None] == np.arange(1, len(distinct))).astype(np.float64))
    return np.concatenate(parts, axis=1)
