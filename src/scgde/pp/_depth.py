"""Groups of cells with the same depths, by binomial thinning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgde._seeds import resolve_seed
from scgde.data.populations import as_label, column_labels
from scgde.observations.thinning import matching_shares, thin_counts

if TYPE_CHECKING:
    from collections.abc import Sequence


def match_depth(
    adata: AnnData,
    groupby: str,
    *,
    groups: Sequence[Any] | None = None,
    block_key: str | None = None,
    layer: str | None = None,
    seed: int | None = None,
) -> AnnData:
    """Thin the counts of groups of cells to one common distribution of sequencing depth.

    Every group keeps the order of its cells by depth. At each quantile all come down to the group with fewest reads
    there, by binomial thinning; no cell gets more reads. Large cells have more reads too, and lose them here.

    Parameters
    ----------
    adata
        Cells with raw counts.
    groupby
        Column of ``obs`` with the groups.
    groups
        Values of it to match; all by default. Other cells, and cells with none, stay as they are.
    block_key
        Column such as batch or lane: groups are matched within each of its values.
    layer
        Layer with the counts; ``X`` by default.
    seed
        Seed of the thinning; ``scvi.settings.seed`` by default, else fresh.

    Returns
    -------
    A copy with thinned counts (CSR) in ``X`` or the layer.

    Raises
    ------
    KeyError
        If ``groupby``, ``block_key``, ``layer`` or a group is unknown.
    ValueError, TypeError
        If there are fewer than two groups, values are no counts, or cells are on disk.

    Examples
    --------
    >>> import scgde
    >>> adata = scgde.datasets.simulate_populations(6, n_genes=50, cells_per_population=(20, 40))
    >>> matched = scgde.pp.match_depth(adata, "population", seed=0)
    >>> bool(matched.X.sum() < adata.X.sum())
    True
    """
    from scgde.data.cells import check_counts, check_finite, locate_matrix

    if not isinstance(adata, AnnData):
        message = f"adata is a {type(adata).__name__} and must be an AnnData."
        raise TypeError(message)
    for argument, name in (("groupby", groupby), ("block_key", block_key)):
        if name is not None and name not in adata.obs:
            message = f"{argument}={name!r} is not in adata.obs; there are {list(adata.obs.columns)}."
            raise KeyError(message)
    codes, names = pd.factorize(column_labels(adata.obs[groupby]))
    if groups is not None:
        if not isinstance(groups, Iterable):
            message = f"groups={groups!r} must be a list of values of {groupby!r}; there are {list(names[:5])}."
            raise TypeError(message)
        wanted = [as_label(group) for group in ([groups] if isinstance(groups, str) else groups)]
        unknown = [label for label in wanted if label not in names]
        if unknown:
            message = f"groups={unknown} are no values of obs[{groupby!r}]; there are {list(names[:5])}."
            raise KeyError(message)
        codes = np.where(np.append(np.isin(names, wanted), False)[codes], codes, -1)
    if len(np.unique(codes[codes >= 0])) < 2:
        message = f"There are fewer than two groups with cells in obs[{groupby!r}]; nothing can be matched."
        raise ValueError(message)
    rows = locate_matrix(adata, layer, None)
    check_finite(rows)
    check_counts(rows, "zinb")
    counts = sp.csr_matrix(rows)
    rng = np.random.default_rng(resolve_seed(seed))
    block = None if block_key is None else pd.factorize(column_labels(adata.obs[block_key]))[0]
    keep = matching_shares(np.asarray(counts.sum(axis=1)).reshape(-1), codes, rng, block)
    result = adata.copy()
    thinned = thin_counts(counts, keep, rng)
    if layer is None:
        result.X = thinned
    else:
        result.layers[layer] = thinned
    return result
