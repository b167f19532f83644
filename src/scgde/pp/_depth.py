"""Groups of cells with the same depths, by binomial thinning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgde.observations.thinning import matching_shares, thin_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def match_depth(
    adata: AnnData,
    groupby: str,
    *,
    groups: Sequence[Any] | None = None,
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
        If ``groupby``, ``layer`` or a group is unknown.
    ValueError
        If there are fewer than two groups, or values are no counts.

    Examples
    --------
    >>> import scgde
    >>> adata = scgde.datasets.simulate_populations(6, n_genes=50, cells_per_population=(20, 40))
    >>> matched = scgde.pp.match_depth(adata, "population", seed=0)
    >>> bool(matched.X.sum() < adata.X.sum())
    True
    """
    from scvi import settings

    from scgde.data.cells import check_counts

    if groupby not in adata.obs:
        message = f"groupby={groupby!r} is not in adata.obs; there are {list(adata.obs.columns)}."
        raise KeyError(message)
    if layer is not None and layer not in adata.layers:
        message = f"layer={layer!r} is not in adata.layers; there are {list(adata.layers)}."
        raise KeyError(message)
    column = adata.obs[groupby]
    codes, names = pd.factorize(column)
    if groups is not None:
        unknown = [g for g in groups if g not in names]
        if unknown:
            message = f"groups={unknown} are no values of obs[{groupby!r}]."
            raise KeyError(message)
        codes = np.where(column.isin(list(groups)).to_numpy(), codes, -1)
    if len(np.unique(codes[codes >= 0])) < 2:
        message = f"There are fewer than two groups with cells in obs[{groupby!r}]; nothing can be matched."
        raise ValueError(message)
    rows = adata.X if layer is None else adata.layers[layer]
    check_counts(rows, "zinb")
    counts = sp.csr_matrix(rows)
    seed = settings.seed if seed is None else seed
    rng = np.random.default_rng(seed)
    keep = matching_shares(np.asarray(counts.sum(axis=1)).reshape(-1), codes, rng)
    result = adata.copy()
    thinned = thin_counts(counts, keep, rng)
    if layer is None:
        result.X = thinned
    else:
        result.layers[layer] = thinned
    return result
