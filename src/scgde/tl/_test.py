"""Which populations differ by more than the sampling of their cells explains."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgde.generation import as_labels, find_labels
from scgde.inference import encode_components
from scgde.tl._depth import DEPTH_RATIO, depths_differ, matched_components
from scgde.uncertainty import adjust_p_values, check_permutations, permutation_test, spread_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgde import GDEModel
    from scgde.data import CellTable

KEPT_POPULATIONS = 64
"""Populations whose cells are kept from pair to pair."""

WARN_RATIO = 2.0
"""Ratio of median depths above which a test without matching warns."""


def test_populations(
    model: GDEModel,
    source: Any = None,
    target: Any = None,
    *,
    control: Any = None,
    adata: AnnData | None = None,
    block_key: str | Literal[False] | None = None,
    match_depth: bool | None = None,
    n_permutations: int = 999,
    correction: str | None = "fdr_bh",
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Test whether the cells of two populations come from one law, by permutation.

    The cells of both are compared in a representation that labels of populations had no part in: principal components of
    log-normalised counts, or the rows themselves where they are no counts. Permuting the labels then gives an exact test for any
    number of cells, of populations that trained the model as of new ones, and whatever the set encoder. The model's own latents and
    embeddings would not do: training learned from labels what separates its very cells.

    .. warning::

        Cells are the units. The test asks whether *these cells* are two samples of one law, and not whether a
        difference would be found again in other animals, donors or wells, which differ from each other as well: with
        hundreds of cells it finds such differences and calls them significant (pseudo-replication). Where a batch or a
        replicate holds cells of both populations, name it in ``block_key``. Where each replicate is of one condition, make
        every replicate a population, and compare them with replicates as the units (:func:`scgde.tl.test_groups`).

    Parameters
    ----------
    model
        Trained model.
    source, target
        Labels of the pairs to test (tuples of parts for a crossed key): one label, or a list of them. A list and one label,
        or two lists of one length, give a pair for each entry.
    control
        Label to test all populations against, or those of ``source``; in place of ``target``.
    adata
        Cells; the model's own by default.
    block_key
        Column of ``obs``, such as batch or donor. Cells are permuted within its values only, and compared after
        subtraction of the mean vector of their value. By default the model's ``batch_key``, if it has one; False compares cells of
        different batches as if there were none.
    match_depth
        Whether counts are thinned first, so that the cells of both populations have the same depths
        (:func:`scgde.pp.match_depth`), in each block. By default where their median depths differ more than 1.1-fold, and by more
        than chance, in some block or over all. Thinning is random: p-values of such pairs vary with the seed. For counts only.
    n_permutations
        Permutations for each pair. The smallest p-value is one over one more than this: adjusted for many pairs it is
        small only with many permutations.
    correction
        Adjustment for the number of pairs: ``"fdr_bh"``, ``"fdr_by"``, ``"bonferroni"`` or None.
    seed
        Seed of permutations and thinning; ``scvi.settings.seed`` by default, else fresh.

    Returns
    -------
    DataFrame with one row for each pair, in the order asked for. ``attrs`` say what was compared (``representation``) and within what
    (``block_key``).

    ``source``, ``target``, ``n_source``, ``n_target``
        Labels and numbers of cells.
    ``distance``
        Distance between the embeddings, corrected for sampling noise
        (``get_population_distances(bias_correction=True)``).
    ``statistic``
        Squared distance between the means of the transformed cells (:func:`scgde.uncertainty.spread_vectors`), over its
        average under permutation; about 1 without a difference.
    ``p_value``, ``p_adjusted``
        NaN where a population has one cell, or no block has cells of both; a warning names such pairs.
    ``matched_depth``
        Whether counts were thinned for the p-value; the distance is of all counts.

    Raises
    ------
    KeyError
        If a label or ``block_key`` is unknown.
    ValueError, TypeError
        If an argument is out of range, or arguments do not make pairs.
    """
    from scgde.model import GDEModel

    if not isinstance(model, GDEModel):
        message = f"model is a {type(model).__name__} and must be a trained GDEModel; pass cells as adata=."
        raise TypeError(message)
    check_permutations(n_permutations)
    if not (block_key is None or block_key is False or (isinstance(block_key, str) and block_key)):
        message = f"block_key={block_key!r} must be the name of a column of obs, False for no blocks, or None for the model's batches."
        raise TypeError(message)
    if not (match_depth is None or isinstance(match_depth, bool)):
        message = f"match_depth={match_depth!r} must be True, False, or None to match where depths differ."
        raise TypeError(message)
    adjust_p_values(np.empty(0), correction)
    is_count = model.module.observation.is_count
    if match_depth and not is_count:
        message = "match_depth=True is for counts; the rows of this model are none. Leave it out."
        raise ValueError(message)
    table, rows, embedding = model._embed(adata, None, None, keep_cells=False)
    pairs = _pairs(source, target, control, embedding.labels)
    within: str | None = block_key or None
    if block_key is None:
        within = model.registry_["setup_args"].get("batch_key")
    block = None if within is None else _blocks(table, rows, within)
    members = {int(k): np.flatnonzero(embedding.codes == k) for k in np.unique(pairs)}
    cells = _Cells(model, table, rows, members, block)
    noise = np.square(embedding.standard_error.astype(np.float64)).sum(1)
    streams = model._randomness(seed)[0].spawn(len(pairs))

    if match_depth is False and is_count:
        _warn_of_depths([(i, j) for i, j in pairs if cells.differ_in_depth(i, j, WARN_RATIO)], embedding.labels)

    records = []
    for (i, j), rng in zip(pairs, streams, strict=True):
        squared = float(np.square(embedding.z[i].astype(np.float64) - embedding.z[j]).sum() - noise[i] - noise[j])
        statistic = p_value = np.nan
        matched = False
        if min(embedding.n_cells[i], embedding.n_cells[j]) > 1:
            matched = is_count and cells.differ_in_depth(i, j) if match_depth is None else match_depth
            blocks = cells.blocks(i, j)
            statistic, p_value = permutation_test(
                spread_vectors(cells.matched(i, j, rng) if matched else cells.both(i, j), blocks),
                np.arange(embedding.n_cells[i] + embedding.n_cells[j]) < embedding.n_cells[i],
                rng,
                n_permutations=n_permutations,
                block=blocks,
            )
        records.append(
            {
                "source": embedding.labels[i],
                "target": embedding.labels[j],
                "n_source": int(embedding.n_cells[i]),
                "n_target": int(embedding.n_cells[j]),
                "distance": np.sqrt(np.maximum(squared, 0.0)),
                "statistic": statistic,
                "p_value": p_value,
                "matched_depth": matched,
            }
        )
    frame = pd.DataFrame(records)
    frame.insert(7, "p_adjusted", adjust_p_values(frame["p_value"].to_numpy(), correction))
    _warn_of_missing(frame, within)
    frame.attrs |= {"representation": "components" if is_count else "rows", "block_key": within}
    return frame


class _Cells:
    """Cells of some populations in the representation without labels, those of a control kept from pair to pair."""

    def __init__(
        self,
        model: GDEModel,
        table: CellTable,
        rows: np.ndarray,
        members: dict[int, np.ndarray],
        block: np.ndarray | None,
    ) -> None:
        self.module, self.table, self.rows, self.members, self.block = model.module, table, rows, members, block
        self.of = lru_cache(maxsize=KEPT_POPULATIONS)(self._of)
        self.totals = lru_cache(maxsize=None)(self._totals)

    def _of(self, k: int) -> np.ndarray:
        return encode_components(self.module, self.table, self.rows[self.members[k]])

    def _totals(self, k: int) -> np.ndarray:
        return self.table.totals(self.rows[self.members[k]])

    def both(self, i: int, j: int) -> np.ndarray:
        """Components of the cells of two populations, ``(cells, r)``."""
        return np.concatenate([self.of(int(i)), self.of(int(j))])

    def blocks(self, i: int, j: int) -> np.ndarray | None:
        """Blocks of the cells of two populations, ``(cells,)``."""
        if self.block is None:
            return None
        return np.concatenate([self.block[self.members[int(k)]] for k in (i, j)])

    def differ_in_depth(self, i: int, j: int, ratio: float = DEPTH_RATIO) -> bool:
        """Whether median depths of two populations differ more than ``ratio``-fold, and by more than chance."""
        totals = [self.totals(int(k)) for k in (i, j)]
        codes = np.repeat([0, 1], [len(t) for t in totals])
        return depths_differ(np.concatenate(totals), codes, self.blocks(i, j), ratio)

    def matched(self, i: int, j: int, rng: np.random.Generator) -> np.ndarray:
        """:meth:`both` of counts that are thinned to one distribution of depth, in each block: cells are permuted within these."""
        chosen = [self.rows[self.members[int(k)]] for k in (i, j)]
        counts = sp.vstack([sp.csr_matrix(self.table.rows(c)) for c in chosen], format="csr")
        codes = np.repeat([0, 1], [len(c) for c in chosen])
        return matched_components(self.module, counts, codes, self.blocks(i, j), rng)


def _warn_of_depths(pairs: list[tuple[int, int]], labels: Sequence[str]) -> None:
    """Say which pairs differ so much in depth that this alone may make them different."""
    if pairs:
        first, second = (labels[k] for k in pairs[0])
        message = (
            f"The median depths of {len(pairs)} pairs differ more than {WARN_RATIO:g}-fold, {first!r} and {second!r} among them, and "
            "match_depth=False: fewer reads alone give such pairs small p-values. Leave match_depth out to have depths matched."
        )
        warnings.warn(message, UserWarning, stacklevel=3)


def _warn_of_missing(frame: pd.DataFrame, block_key: str | None) -> None:
    """Say which pairs have no p-value, and why."""
    missing = frame["p_value"].isna()
    if not missing.any():
        return
    first = frame[missing].iloc[0]
    reason = "their cells are all alike in what is compared."
    if min(first["n_source"], first["n_target"]) < 2:
        reason = "populations of one cell cannot be compared."
    elif block_key is not None:
        reason = (
            f"no value of {block_key!r} has cells of both that differ, so that a difference cannot be told from one between blocks. Name "
            "another block_key, or pass block_key=False to ignore blocks."
        )
    message = f"{int(missing.sum())} of {len(frame)} pairs have no p-value, {first['source']!r} and {first['target']!r} among them: {reason}"
    warnings.warn(message, UserWarning, stacklevel=3)


def _pairs(source: Any, target: Any, control: Any, known: Sequence[str]) -> np.ndarray:
    """Positions of the labels of each pair, ``(pairs, 2)``."""
    if control is not None:
        if target is not None:
            message = (
                f"target={target!r} and control={control!r} are both given: the control is the target of all pairs."
            )
            raise ValueError(message)
        target = control
        if source is None:
            first = find_labels(as_labels(control), list(known), "control")
            source = [label for k, label in enumerate(known) if k not in first]
    if source is None or target is None:
        message = "Pairs need source= and target=, or control= to test all populations against one."
        raise ValueError(message)
    sources, targets = as_labels(source), as_labels(target)
    if not sources or not targets or (len(sources) != len(targets) and 1 not in (len(sources), len(targets))):
        message = f"source has {len(sources)} labels and target (or control) {len(targets)}: give as many of both, or one of either."
        raise ValueError(message)
    n = max(len(sources), len(targets))
    found = [
        np.resize(find_labels(labels, list(known), name), n)
        for name, labels in (("source", sources), ("target" if control is None else "control", targets))
    ]
    same = np.flatnonzero(found[0] == found[1])
    if len(same):
        message = f"{known[found[0][same[0]]]!r} is to be tested against itself: name two populations."
        raise ValueError(message)
    return np.stack(found, axis=1)


def _blocks(table: CellTable, rows: np.ndarray, block_key: str) -> np.ndarray:
    """Code of each cell's block, ``(cells,)``."""
    if block_key not in table.columns:
        message = f"block_key={block_key!r} is not in adata.obs; there are {table.columns}."
        raise KeyError(message)
    codes = pd.factorize(table.column(block_key).iloc[rows])[0]
    if (codes < 0).any():
        message = f"block_key={block_key!r} has {(codes < 0).sum()} missing values; fill them or drop those cells."
        raise ValueError(message)
    return codes
