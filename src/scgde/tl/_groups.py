"""Whether groups of replicates differ, with replicates as the units."""

from __future__ import annotations

import warnings
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde.observations.thinning import matching_shares
from scgde.tl._moments import population_moments
from scgde.tl._permanova import DesignError, distance_interval, permanova
from scgde.tl._replicates import (
    Replicates,
    as_replicates,
    choose_groups,
    covariate_names,
    describe_populations,
    one_group_blocks,
    require_model,
)
from scgde.uncertainty import adjust_p_values, check_permutations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgde import GDEModel

LARGEST_COUNT = np.iinfo(np.int64).max
LEVEL = 0.05
"""A test whose smallest p-value is above this is said to have none that could be small."""

MANY_CELLS = 100
"""Cells of a population from which on what it is compared by hardly depends on their number."""

CELLS_RATIO = 1.5
"""Ratio of the median numbers of cells of groups above which cells are left out, where a group has fewer than :data:`MANY_CELLS`."""

SHARE_OF_GROUPS = 0.99
"""Share of the variance of a continuous covariate that lies between groups from which on groups are said to follow from it."""


def test_groups(
    model: GDEModel,
    groupby: str,
    *,
    replicate_key: str,
    stratify_by: str | None = None,
    block_key: str | None = None,
    covariates: str | Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    pairwise: bool = False,
    match_cells: bool | None = None,
    adata: AnnData | None = None,
    n_permutations: int = 999,
    seed: int | None = None,
    correction: str | None = "fdr_bh",
) -> pd.DataFrame:
    r"""Test whether groups of replicates differ, by permuting replicates between groups.

    Populations belong to replicates (donors, animals, wells) and replicates to groups (conditions). The statistic is
    a pseudo-F: variation between groups over variation between replicates of a group (PERMANOVA; Anderson 2001, Austral
    Ecology 26). Replicates are compared by their embeddings, and by the means and the spreads of their cells
    (:func:`scgde.uncertainty.spread_vectors`) in the components that :func:`test_populations` uses, less the effects of
    batch and covariates that the model was given. The three weigh alike, after multiplication by :math:`S^{-1/4}` with the
    covariance :math:`S` of the replicates, which weighs directions of small variation up and does not know the groups.
    Replicates are the units that are permuted, so that what differs between any two donors does not count as a
    difference of conditions, however many cells there are. Groups have no part in any of this, and the test is exact for
    the very cells that trained the model (not if ``groupby`` was given to it as a batch or covariate). The hypothesis is that replicates of all
    groups have one law, and as many cells: where groups are of unequal size, a difference in how much replicates scatter can be
    taken for one of means, and replicates of few cells scatter more (``match_cells``).

    Parameters
    ----------
    model
        Trained model, whose populations are replicates or parts of them, such as donor x cell type.
    groupby
        Column of ``obs`` with the group, such as condition. It is constant in each population and each replicate.
    replicate_key
        Column with the replicate. One that has cells of several groups, such as a donor before and after, is no
        replicate: its samples are, and it is their block.
    stratify_by
        Column, such as cell type, for whose every value a test is made.
    block_key
        Column with the block, such as the donor of paired samples. Replicates are permuted within blocks. Blocks of
        one group say nothing about a difference and are left out.
    covariates
        Columns, constant in each replicate, such as age (numbers, taken as linear) or sex, that are regressed out.
        Residuals of the regression without groups are permuted (Freedman and Lane 1983), which is approximate.
    groups
        Groups to compare; all by default.
    pairwise
        Test every pair of groups rather than all groups at once.
    match_cells
        Whether cells are left out at random first, so that populations of all groups have the same numbers of cells, in each
        stratum and block. By default where the groups' median numbers differ more than 1.5-fold and the smallest is below
        100.
    adata
        Cells; the model's own by default.
    n_permutations
        Permutations of each test. If there are no more distinct arrangements than that, all of them are looked at.
    seed
        Seed of the permutations; ``scvi.settings.seed`` by default, else fresh.
    correction
        Adjustment for the number of tests: ``"fdr_bh"``, ``"fdr_by"``, ``"bonferroni"`` or None.

    Returns
    -------
    DataFrame with one row for each stratum (and each pair of groups):

    ``stratum``, ``source``, ``target``
        With ``stratify_by``, and with ``pairwise``.
    ``n_replicates``, ``n_replicates_GROUP``, ``n_blocks``
        Replicates in the test, in all and of each group, and blocks.
    ``matched_cells``, ``matched_depth``
        Whether cells were left out, and whether counts were thinned since the groups' median depths differ more than 1.1-fold and by more than chance between cells
        (:func:`scgde.pp.match_depth`), in each block.
    ``distance``, ``distance_low``, ``distance_high``
        Distance between the means of the groups' embeddings, freed of what the variance between replicates adds to it (root mean
        square over pairs of groups), and its 95 % interval over replicates
        by the jackknife. NaN with fewer than three replicates of a group, or blocks.
    ``statistic``, ``r2``
        Pseudo-F, and the share of the variation between replicates, beyond blocks and covariates, that groups
        explain. It is large by itself where replicates are few.
    ``p_value``, ``p_adjusted``
        Of the permutations.
    ``n_arrangements``, ``enumerated``
        Distinct ways to assign the replicates to groups (at most 2^63 - 1), and whether all were looked at.
    ``smallest_p``
        The smallest p-value that these replicates could have given. If it is above 0.05 no difference could have been
        found.

    Several populations of one replicate in a stratum are averaged with their numbers of cells as weights, so that the
    average stands for the cells of the replicate.

    Raises
    ------
    KeyError
        If a column or a group is unknown.
    ValueError, TypeError
        If an argument is out of range, columns do not make a design, or no stratum can be tested.

    Warns
    -----
    UserWarning
        If blocks are left out, some strata cannot be tested, no p-value of a test could be below 0.05, or groups follow from a batch or covariate
        of training.

    Examples
    --------
    >>> scgde.tl.test_groups(model, "condition", replicate_key="donor")  # doctest: +SKIP
    >>> scgde.tl.test_groups(  # doctest: +SKIP
    ...     model, "condition", replicate_key="sample", block_key="donor", stratify_by="cell_type"
    ... )
    """
    require_model(model)
    check_permutations(n_permutations)
    if not (match_cells is None or isinstance(match_cells, bool)):
        message = f"match_cells={match_cells!r} must be True, False, or None to match where numbers of cells differ."
        raise TypeError(message)
    adjust_p_values(np.empty(0), correction)
    names = covariate_names(covariates)
    table, rows, embedding = model._embed(adata, None, None, vectors=False)
    obs = table.obs.iloc[rows]
    described = describe_populations(
        obs,
        embedding.codes,
        embedding.labels,
        {"groupby": groupby, "replicate_key": replicate_key, "stratify_by": stratify_by, "block_key": block_key},
        names,
    )
    assigned = obs.loc[embedding.codes >= 0]
    _warn_of_training(model, groupby, assigned)
    every = choose_groups(described, assigned, groups, groupby)
    tests = list(combinations(every, 2)) if pairwise else [tuple(every)]
    strata = [None] if stratify_by is None else sorted(described["stratum"].unique())
    streams = model._randomness(seed)[0].spawn(len(strata) * len(tests))
    records, problems, lost = [], {}, {}
    for (stratum, compared), rng in zip(product(strata, tests), streams, strict=True):
        inside = described["group"].isin(compared)
        record: dict[str, Any] = {}
        if stratum is not None:
            inside &= described["stratum"] == stratum
            record["stratum"] = stratum
        if pairwise:
            record |= {"source": compared[0], "target": compared[1]}
        name = " / ".join(record.values())
        chosen = np.flatnonzero(inside)
        frame, z, n_cells = described.iloc[chosen], embedding.z[chosen], embedding.n_cells[chosen]
        try:
            matched = _differ_in_cells(frame["group"], n_cells) if match_cells is None else match_cells
            taken = np.flatnonzero(np.isin(embedding.codes, chosen))
            if matched:
                taken = _matched_cells(embedding.codes, chosen, frame, rng)
                some = model._embed(adata, rows[taken].tolist(), None, vectors=False)[2]
                z, n_cells = some.z, some.n_cells
            place = np.searchsorted(chosen, embedding.codes[taken])
            group = pd.factorize(frame["group"])[0][place]
            block = pd.factorize(frame["block"])[0][place] if "block" in frame else None
            mean, spread, thinned = population_moments(model, table, rows[taken], place, group, block, rng)
            sample = as_replicates(frame, np.concatenate([z, mean, spread], axis=1), n_cells, compared, names)
            record |= _test(sample, (z.shape[1], mean.shape[1]), compared, n_permutations, rng)
            record |= {"matched_cells": matched, "matched_depth": thinned}
            if sample.lost:
                lost[name] = sample.lost
        except DesignError as problem:
            problems[name] = str(problem)
        records.append(record)
    if len(problems) == len(records):
        message = next(iter(problems.values()))
        raise ValueError(message if len(records) == 1 else f"None of {len(records)} tests can be made. {message}")
    counts = {name for record in records for name in record if name.startswith("n_")}
    records = [
        dict.fromkeys(counts, 0) | {"matched_cells": False, "matched_depth": False, "enumerated": False} | record
        for record in records
    ]
    table_of_tests = _in_order(pd.DataFrame(records), every)
    table_of_tests["p_adjusted"] = adjust_p_values(table_of_tests["p_value"].to_numpy(), correction)
    _warn(table_of_tests, problems, lost)
    return table_of_tests


def _differ_in_cells(group: pd.Series, n_cells: np.ndarray) -> bool:
    """Whether groups differ in their median number of cells by :data:`CELLS_RATIO`, and what is compared depends on that."""
    medians = pd.Series(n_cells, index=group.index).groupby(group).median()
    return bool(medians.min() < MANY_CELLS and medians.max() > CELLS_RATIO * medians.min())


def _matched_cells(codes: np.ndarray, chosen: np.ndarray, frame: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Cells of the populations ``chosen``, left out at random until groups have one distribution of numbers of cells."""
    members = [np.flatnonzero(codes == k) for k in chosen]
    n_cells = np.array([len(own) for own in members])
    group = pd.factorize(frame["group"])[0]
    block = pd.factorize(frame["block"])[0] if "block" in frame else None
    keep = np.maximum(np.rint(n_cells * matching_shares(n_cells, group, rng, block)), 1).astype(np.int64)
    return np.sort(np.concatenate([rng.permutation(own)[:m] for own, m in zip(members, keep, strict=True)]))


def _warn_of_training(model: GDEModel, groupby: str, obs: pd.DataFrame) -> None:
    """Say where training took differences between groups for technical ones."""
    given = model.registry_["setup_args"]
    keys = {"batch_key": [given.get("batch_key")]}
    keys |= {key: given.get(key) or [] for key in ("categorical_covariate_keys", "continuous_covariate_keys")}
    for argument, names in keys.items():
        for name in names:
            if name is None or (name != groupby and name not in obs):
                continue
            if name == groupby or _follows(obs[groupby], obs[name], argument == "continuous_covariate_keys"):
                same = f"groupby={groupby!r} follows from {name!r}, which was the model's {argument}"
                message = (
                    f"{same}: what differs between these groups was taken for a technical difference in training, at least in "
                    "part. Train without it to test for it."
                )
                warnings.warn(message, UserWarning, stacklevel=3)


def _follows(group: pd.Series, column: pd.Series, is_continuous: bool) -> bool:
    """Whether a column leaves nothing to tell groups by; of a number, whether nearly all of its variance is between them."""
    known = column.notna().to_numpy()
    if not known.any():
        return False
    group, column = group[known], column[known]
    if not is_continuous:
        return bool((group.groupby(column.to_numpy()).nunique() <= 1).all())
    values = column.to_numpy(dtype=np.float64)
    values = values - values[0]  # a constant is zero, and not the rounding of its mean
    between = pd.Series(values).groupby(group.to_numpy()).transform("mean")
    return bool(values.any() and between.std(ddof=0) ** 2 >= SHARE_OF_GROUPS * values.std() ** 2)


def _test(
    sample: Replicates, widths: tuple[int, int], compared: Sequence[str], n_permutations: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Columns of one test; vectors are embeddings, means and spreads side by side, the first two of these widths."""
    z, mean, spread = np.split(sample.x, np.cumsum(widths), axis=1)
    test = permanova(
        [z, mean, spread],
        sample.groups,
        rng,
        n_permutations=n_permutations,
        block=sample.block,
        covariates=sample.covariates,
    )
    squared = distance_interval(z, sample.groups, block=sample.block, covariates=sample.covariates)
    distance, low, high = np.sqrt(np.maximum(squared, 0.0))
    count = np.bincount(sample.groups)
    return {
        "n_replicates": len(sample.x),
        **{f"n_replicates_{label}": m for label, m in zip(compared, count, strict=True)},
        **({} if sample.block is None else {"n_blocks": len(np.unique(sample.block))}),
        "distance": distance,
        "distance_low": low,
        "distance_high": high,
        "statistic": test.statistic,
        "r2": test.r2,
        "p_value": test.p_value,
        "n_arrangements": min(test.n_arrangements, LARGEST_COUNT),
        "enumerated": test.enumerated,
        "smallest_p": test.smallest_p,
    }


def _in_order(frame: pd.DataFrame, every: Sequence[str]) -> pd.DataFrame:
    """Columns in one order, whatever the first test had; counts are whole numbers, none where there is no test."""
    first = ["stratum", "source", "target", "n_replicates", *(f"n_replicates_{label}" for label in every), "n_blocks"]
    results = ["distance", "distance_low", "distance_high", "statistic", "r2", "p_value", "p_adjusted"]
    frame["p_adjusted"] = np.nan
    names = [*first, "matched_cells", "matched_depth", *results, "n_arrangements", "enumerated", "smallest_p"]
    return frame[[name for name in names if name in frame]]


def _warn(frame: pd.DataFrame, problems: dict[str, str], lost: dict[str, list[str]]) -> None:
    """Say what was left out, and where no difference could have been found."""
    texts = []
    if lost:
        texts.append(one_group_blocks(lost))
    if problems:
        name, problem = next(iter(problems.items()))
        texts.append(f"{len(problems)} of {len(frame)} tests cannot be made and are NaN, such as {name}: {problem}")
    hopeless = frame[frame["smallest_p"] > LEVEL]
    if len(hopeless):
        row = hopeless.iloc[0]
        texts.append(
            f"{len(hopeless)} of {len(frame)} tests cannot give a p-value of {LEVEL} or less, whatever the difference: "
            f"{row['n_replicates']} replicates can be arranged in {row['n_arrangements']} ways, and "
            "the smallest p-value is "
            f"{row['smallest_p']:.3g} (column smallest_p). More replicates, or more permutations, are needed."
        )
    for text in texts:
        warnings.warn(text, UserWarning, stacklevel=3)
