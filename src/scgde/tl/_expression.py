"""Genes that change between groups of replicates, and tables of counts for tests of single genes."""

from __future__ import annotations

import warnings
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgde.data.cells import check_counts, check_finite, locate_matrix
from scgde.data.populations import as_label, column_labels
from scgde.tl._genes import _decode
from scgde.tl._permanova import DesignError
from scgde.tl._replicates import (
    Replicates,
    as_replicates,
    choose_groups,
    covariate_names,
    covariate_values,
    describe_populations,
    given_columns,
    one_group_blocks,
    require_columns,
    require_model,
    require_units,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgde import GDEModel


def rank_genes_groups(
    model: GDEModel,
    groupby: str,
    *,
    replicate_key: str,
    reference: Any = None,
    groups: Sequence[Any] | None = None,
    stratify_by: str | None = None,
    block_key: str | None = None,
    adata: AnnData | None = None,
    n_cells: int = 200,
    batch: Any = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Rank genes by the difference of groups in decoded expression, in units of the spread between replicates.

    Cells are decoded as in :func:`scgde.tl.rank_genes_between`, under the same batches and the same library size, and
    averaged over each replicate on :math:`\log(1 + 10^4 \rho)`. The score of a gene is the difference between the
    means of the two groups over its standard error, with replicates as the units: that of Welch, or that of the mean
    of differences within blocks where ``block_key`` is given.

    Decoded expression is smooth: fold changes are smaller than those of counts, and a gene that changes alone, with no others that go
    with it, may not be seen. No p-values are given, since decoded expression has none of the noise of counts. :func:`scgde.tl.test_groups` says
    whether groups differ, and :func:`scgde.tl.pseudobulk` makes the table on which single genes are tested.

    Parameters
    ----------
    model
        Trained model.
    groupby, replicate_key, stratify_by, block_key, adata
        See :func:`scgde.tl.test_groups`.
    reference
        Group that the others are compared with. By default the first of ``groups``; without these the first category, the smallest number, or the
        first label in sorted order.
    groups
        Groups to compare; all by default.
    n_cells
        Cells to decode of each population at most, drawn at random.
    batch
        Batch to decode under. By default every batch of training in turn, averaged.
    seed
        Seed of the draw; ``scvi.settings.seed`` by default, else fresh.

    Returns
    -------
    DataFrame with one row for each gene of each stratum and group, highest score first within these:

    ``stratum``, ``group``, ``names``, ``scores``
        Stratum (with ``stratify_by``), group, gene and score; positive scores mean higher than in the reference.
    ``logfoldchanges``
        Binary logarithm of the ratio of mean expression, the mean over replicates (counts only).
    ``difference``, ``standard_error``
        Difference of means and its standard error over replicates. Columns of continuous rows are on their own scale.
    ``mean_group``, ``mean_reference``
        The two means.

    Raises
    ------
    KeyError
        If a column, group or batch is unknown.
    ValueError, TypeError
        If an argument is out of range, or no groups can be compared.
    """
    require_model(model)
    if isinstance(n_cells, bool) or not isinstance(n_cells, int | np.integer) or n_cells < 1:
        message = f"n_cells={n_cells!r} must be a positive integer: the largest number of cells of each population."
        raise ValueError(message)
    model._require_trained()
    table = model._table(adata)
    present = np.unique(table.codes[table.codes >= 0])
    position = np.full(len(table.labels) + 1, -1)
    position[present] = np.arange(len(present))
    codes = position[table.codes]
    labels = [table.labels[k] for k in present]
    keys = {"groupby": groupby, "replicate_key": replicate_key, "stratify_by": stratify_by, "block_key": block_key}
    described = describe_populations(table.obs, codes, labels, keys)
    every = choose_groups(described, table.obs.loc[table.codes >= 0], groups, groupby)
    base = every[0] if reference is None else as_label(reference)
    if base not in every:
        message = f"reference={reference!r} is not among the groups; there are {every}."
        raise KeyError(message)
    rng, _ = model._randomness(seed)
    is_count = model.module.observation.is_count
    n_genes = len(model._variables())
    # means on the scale of the scores, and for fold changes on that of expression
    means = np.full((2, len(labels), n_genes), np.nan)
    wanted = np.flatnonzero(described["group"].isin(every))
    for k in wanted:
        rows = np.flatnonzero(codes == k)
        rows = rows if len(rows) <= n_cells else np.sort(rng.choice(rows, n_cells, replace=False))
        profiles = _decode(model, adata, rows, batch)
        means[:, k] = (np.log1p(profiles) if is_count else profiles).mean(0), profiles.mean(0)
    size = np.bincount(codes[codes >= 0], minlength=len(labels)).astype(np.float64)
    strata = [None] if stratify_by is None else sorted(described["stratum"].unique())
    frames, problems, lost = [], [], {}
    for stratum, group in product(strata, [label for label in every if label != base]):
        inside = described["group"].isin([group, base])
        if stratum is not None:
            inside &= described["stratum"] == stratum
        chosen = np.flatnonzero(inside)
        both = np.concatenate(means[:, chosen], axis=1)
        try:
            sample = as_replicates(described.iloc[chosen], both, size[chosen], [base, group])
        except DesignError as problem:
            problems.append(f"{group} in {stratum}: {problem}" if stratum is not None else str(problem))
            continue
        if sample.lost:
            lost[group if stratum is None else f"{group} in {stratum}"] = sample.lost
        frame = _scores(sample, np.asarray(model._variables()).astype(str), is_count)
        frame.insert(0, "group", group)
        if stratum is not None:
            frame.insert(0, "stratum", stratum)
        frames.append(frame)
    if not frames:
        raise ValueError(problems[0])
    if problems:
        text = f"{len(problems)} of {len(problems) + len(frames)} comparisons cannot be made, such as {problems[0]}"
        warnings.warn(text, UserWarning, stacklevel=2)
    if lost:
        warnings.warn(one_group_blocks(lost), UserWarning, stacklevel=2)
    return pd.concat(frames, ignore_index=True)


def _scores(sample: Replicates, names: np.ndarray, is_count: bool) -> pd.DataFrame:
    """Genes of one comparison; group 0 is the reference."""
    x, groups, block = sample.x, sample.groups, sample.block
    n_genes = len(names)
    if block is None:
        parts = [x[groups == g] for g in (0, 1)]
        mean = [part.mean(0) for part in parts]
        variance = sum(part[:, :n_genes].var(0, ddof=1) / len(part) for part in parts)
    else:
        parts = [np.stack([x[(groups == g) & (block == b)].mean(0) for b in np.unique(block)]) for g in (0, 1)]
        mean = [part.mean(0) for part in parts]
        change = (parts[1] - parts[0])[:, :n_genes]
        few = len(change) < 2
        variance = np.full(n_genes, np.nan) if few else change.var(0, ddof=1) / len(change)
    error = np.sqrt(variance)
    reference, group = (part[:n_genes] for part in mean)
    difference = group - reference
    frame = pd.DataFrame({"names": names})
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["scores"] = np.where((error == 0) & (difference == 0), 0.0, difference / error)
    if is_count:
        frame["logfoldchanges"] = np.log2((mean[1][n_genes:] + 1e-9) / (mean[0][n_genes:] + 1e-9))
    frame = frame.assign(difference=difference, standard_error=error, mean_group=group, mean_reference=reference)
    by = frame["scores"] if frame["scores"].notna().any() else frame["difference"]
    return frame.loc[by.sort_values(ascending=False, kind="stable").index]


def pseudobulk(
    source: AnnData | GDEModel,
    replicate_key: str,
    *,
    groupby: str | None = None,
    stratify_by: str | None = None,
    block_key: str | None = None,
    covariates: str | Sequence[str] | None = None,
    layer: str | None = None,
) -> AnnData:
    """Sum counts over the cells of each replicate, for tests of single genes with replicates as the units.

    The table is in the form that tools for bulk RNA take, for example
    ``pydeseq2.dds.DeseqDataSet(adata=bulk, design="~condition")``. For a test of each cell type, take its rows.

    Parameters
    ----------
    source
        Cells with raw counts, or a model, whose cells and layer are taken.
    replicate_key, groupby, stratify_by, block_key
        Columns of ``obs``; see :func:`scgde.tl.test_groups`.
    covariates
        Further columns, constant in each replicate.
    layer
        Layer with the counts; ``X`` by default, or the model's.

    Returns
    -------
    AnnData with one row for each replicate (and stratum), named ``replicate`` or ``replicate|stratum``:

    ``X``
        Sums of counts, integers ``(rows, genes)``.
    ``obs``
        The columns named, under their own names, and ``n_cells``. Rows of very few cells are better left out.
    ``var``
        That of the cells.

    Raises
    ------
    KeyError
        If a column or the layer is absent.
    ValueError, TypeError
        If rows are not counts, a column has missing values, or a replicate has several groups.

    Examples
    --------
    >>> bulk = scgde.tl.pseudobulk(adata, "donor", groupby="condition", stratify_by="cell_type")  # doctest: +SKIP
    """
    from scgde.model import GDEModel

    adata: Any = source
    if isinstance(source, GDEModel):
        arguments = source.registry_["setup_args"]
        if arguments.get("obsm_key") is not None:
            message = (
                f"The model reads obsm[{arguments['obsm_key']!r}], which holds no counts; pass an AnnData with counts."
            )
            raise ValueError(message)
        if source.adata is None:
            message = "This model was loaded without its AnnData; pass the AnnData in its place."
            raise ValueError(message)
        adata, layer = source.adata, arguments.get("layer") if layer is None else layer
    if not isinstance(adata, AnnData):
        what = "a model of cells on disk" if isinstance(source, GDEModel) else f"a {type(adata).__name__}"
        message = f"source is {what} and must be an AnnData in memory, or a model of one."
        raise TypeError(message)
    names = covariate_names(covariates)
    keys = {"replicate_key": replicate_key, "stratify_by": stratify_by, "groupby": groupby, "block_key": block_key}
    given = given_columns({k: v for k, v in keys.items() if k != "groupby" or v is not None})
    require_columns(adata.obs, [*given, *(("covariates", name) for name in names)])
    if "n_cells" in [*dict(given).values(), *names]:
        message = "A column named 'n_cells' cannot be used: the table gives numbers of cells under this name. Rename it in obs."
        raise ValueError(message)
    matrix = locate_matrix(adata, layer, None)
    check_finite(matrix)
    check_counts(matrix, "nb")

    roles = {"replicate_key": "replicate", "groupby": "group", "block_key": "block"}
    frame = pd.DataFrame({roles[a]: column_labels(adata.obs[name]) for a, name in given if a in roles})
    frame = frame.assign(**{f"covariate:{name}": covariate_values(adata.obs[name]) for name in names})
    require_units(frame.drop_duplicates(), keys, names)
    parts = [column_labels(adata.obs[name]) for name in (replicate_key, stratify_by) if name is not None]
    cells = pd.Series(list(zip(*parts, strict=True)), index=adata.obs_names)
    codes, rows = pd.factorize(cells, sort=True)
    sums = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes))))) @ matrix
    sums = sums.toarray() if sp.issparse(sums) else np.asarray(sums)
    if sums.max(initial=0.0) >= 2**63:
        message = (
            f"Sums of counts reach {sums.max():.3g}, which no integer holds: these are no counts of molecules or reads."
        )
        raise ValueError(message)
    first = np.unique(codes, return_index=True)[1]
    obs = pd.DataFrame({name: column_labels(adata.obs[name]).iloc[first].to_numpy() for _, name in given})
    for name in names:
        column = adata.obs[name]
        values = covariate_values(column)
        # numbers among objects could not be written, and a formula would take them for categories
        obs[name] = (values if column.dtype == object and values.dtype != object else column).iloc[first].array
    obs.index = pd.Index(["|".join(row) for row in rows], dtype=str)
    if not obs.index.is_unique:
        message = (
            f"Two rows would be named {obs.index[obs.index.duplicated()][0]!r}: replicate_key={replicate_key!r} or "
            f"stratify_by={stratify_by!r} has labels with '|'. Rename them."
        )
        raise ValueError(message)
    obs["n_cells"] = np.bincount(codes)
    return AnnData(X=np.rint(sums).astype(np.int64), obs=obs, var=adata.var.copy())
