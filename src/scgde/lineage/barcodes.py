"""Clone labels from the two common forms of barcodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgde.data.populations import column_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger(__name__)


def clone_labels(
    adata: AnnData,
    matrix_key: str = "X_clone",
    *,
    names: Sequence[str] | None = None,
    multiple: Literal["missing", "largest", "raise"] = "missing",
    min_count: float = 0.0,
) -> pd.Series:
    """Clone of each cell from a matrix of cells and clones, as CoSpar and others keep it in ``obsm``.

    Parameters
    ----------
    adata
        Cells.
    matrix_key
        Key of ``obsm``, cells x clones: 0 and 1, or counts of barcode molecules. A sparse one is never made dense.
    names
        Names of clones; their numbers by default, or the columns of a DataFrame.
    multiple
        What to do about a cell with several clones (a doublet, or several integrations): ``"missing"`` leaves it without a clone,
        ``"largest"`` takes the clone with the largest count, and leaves ties without; ``"raise"`` is an error.
    min_count
        Entries that are not larger are no evidence.

    Returns
    -------
    Series of names, NaN for cells without a clone; ready for a column of ``obs``, since missing labels are cells in no population.

    Raises
    ------
    KeyError
        If there is no such matrix.
    ValueError
        If it has negative or missing entries, names do not fit or repeat, or ``multiple="raise"`` and cells have several clones.
    """
    if matrix_key not in adata.obsm:
        message = f"matrix_key={matrix_key!r} is not in obsm; there are {list(adata.obsm)}."
        raise KeyError(message)
    if multiple not in ("missing", "largest", "raise"):
        message = f"multiple={multiple!r} must be 'missing', 'largest' or 'raise'."
        raise ValueError(message)
    raw = adata.obsm[matrix_key]
    if isinstance(raw, pd.DataFrame):
        names = [str(c) for c in raw.columns] if names is None else names
        raw = raw.to_numpy()
    matrix = sp.csr_matrix(raw, dtype=np.float64, copy=True)
    matrix.sum_duplicates()
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        message = f"obsm[{matrix_key!r}] holds negative or missing entries; it must count barcodes of each clone."
        raise ValueError(message)
    if names is not None and len(names) != matrix.shape[1]:
        message = f"names has {len(names)} entries and obsm[{matrix_key!r}] {matrix.shape[1]} clones."
        raise ValueError(message)
    if names is not None and len(set(map(str, names))) != len(names):
        message = "names has the same name for several clones, which would become one."
        raise ValueError(message)
    matrix.data[matrix.data <= min_count] = 0
    matrix.eliminate_zeros()
    found = np.diff(matrix.indptr)
    several = found > 1
    if several.any() and multiple == "raise":
        message = (
            f"{several.sum()} cells have several clones, such as {list(adata.obs_names[several][:5])}; see multiple=."
        )
        raise ValueError(message)
    code = np.full(adata.n_obs, -1)
    code[found == 1] = matrix.indices[matrix.indptr[:-1][found == 1]]
    if multiple == "largest":
        for i in np.flatnonzero(several):
            own = slice(matrix.indptr[i], matrix.indptr[i + 1])
            values = matrix.data[own]
            if (values == values.max()).sum() == 1:
                code[i] = matrix.indices[own][values.argmax()]
    left_out = int((several & (code < 0)).sum())
    if left_out:
        logger.info(
            f"{left_out} of {int((found > 0).sum())} barcoded cells have several clones and are left without one."
        )
    labels = np.array([str(n) for n in (range(matrix.shape[1]) if names is None else names)], dtype=object)
    result = pd.Series(np.nan, index=adata.obs_names, dtype=object, name="clone")
    result[code >= 0] = labels[code[code >= 0]]
    return result.astype("category")


def shared_clones(obs: pd.DataFrame, clone_key: str, sample_key: str) -> pd.Series:
    """Clones whose label is in several samples, with their number: barcodes of two animals that are named alike are no clone.

    Cross the two where that is so, ``population_key=[sample_key, clone_key, ...]``; a warning says how many there are.

    Parameters
    ----------
    obs
        Annotation of cells.
    clone_key, sample_key
        Columns of it.

    Returns
    -------
    Number of samples by clone, for clones in more than one.

    Raises
    ------
    KeyError
        If a column is absent.
    """
    for name, key in (("clone_key", clone_key), ("sample_key", sample_key)):
        if key not in obs:
            message = f"{name}={key!r} is not a column of obs; there are {[str(c) for c in obs.columns]}."
            raise KeyError(message)
    pairs = pd.DataFrame({"clone": column_labels(obs[clone_key]), "sample": column_labels(obs[sample_key])}).dropna()
    counts = pairs.drop_duplicates().groupby("clone").size()
    shared = counts[counts > 1].rename("n_samples")
    if len(shared):
        logger.warning(
            f"{len(shared)} of {len(counts)} clone labels are in several samples, such as {list(shared.index[:3])}. If barcodes of samples are "
            f"independent, these are different clones: cross the columns, population_key=[{sample_key!r}, {clone_key!r}, ...]."
        )
    return shared
