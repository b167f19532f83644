"""Which populations differ by more than the sampling of their cells explains."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scgde.generation import as_labels, find_labels
from scgde.inference import encode_cells
from scgde.uncertainty import adjust_p_values, permutation_test, spread_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgde import GDEModel

KEPT_POPULATIONS = 64
"""Populations whose latents are kept from pair to pair."""


def test_populations(
    model: GDEModel,
    source: Any = None,
    target: Any = None,
    *,
    control: Any = None,
    adata: AnnData | None = None,
    block_key: str | None = None,
    n_permutations: int = 999,
    correction: str | None = "fdr_bh",
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Test whether the cells of two populations come from one law, by permutation.

    For each pair the influence of every cell is computed at the embedding of the *union* of the two populations. These
    vectors do not know which population a cell is of: if both have one law they are exchangeable, and permuting the
    populations gives an exact test for any number of cells and any encoder. Influences around each population's own
    embedding (:meth:`~scgde.GDEModel.get_cell_embedding`) would not be exchangeable.

    .. warning::

        Cells are the units. The test asks whether *these cells* are two samples of one law, and not whether a
        difference would be found again in other animals, donors or wells, which differ from each other as well: with
        hundreds of cells it finds such differences and calls them significant (pseudo-replication). Where a batch or a
        replicate holds cells of both populations, name it in ``block_key``. Where each replicate is of one condition, make
        every replicate a population, and use :func:`scgde.tl.test_groups`, whose units are replicates.

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
        subtraction of the mean vector of their value.
    n_permutations
        Permutations for each pair. The smallest p-value is one over one more than this: adjusted for many pairs it is
        small only with many permutations.
    correction
        Adjustment for the number of pairs: ``"fdr_bh"``, ``"fdr_by"``, ``"bonferroni"`` or None.
    seed
        Seed of the permutations; ``scvi.settings.seed`` by default, else fresh.

    Returns
    -------
    DataFrame with one row for each pair, in the order asked for:

    ``source``, ``target``, ``n_source``, ``n_target``
        Labels and numbers of cells.
    ``distance``
        Distance between the embeddings, corrected for sampling noise
        (``get_population_distances(bias_correction=True)``).
    ``statistic``
        Squared distance between the means of the transformed influences (:func:`scgde.uncertainty.spread_vectors`), over its
        average under permutation; about 1 without a difference.
    ``p_value``, ``p_adjusted``
        NaN where a population has one cell, or no value of ``block_key`` has cells of both.

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
    is_integer = isinstance(n_permutations, int | np.integer) and not isinstance(n_permutations, bool)
    if not is_integer or n_permutations < 1:
        message = f"n_permutations={n_permutations!r} must be a positive integer."
        raise ValueError(message)
    adjust_p_values(np.empty(0), correction)
    table, rows, embedding = model._embed(adata, None, None, keep_cells=False)
    pairs = _pairs(source, target, control, embedding.labels)
    block = None if block_key is None else _blocks(table.obs.iloc[rows], block_key)
    members = {k: np.flatnonzero(embedding.codes == k) for k in np.unique(pairs)}
    noise = np.square(embedding.standard_error.astype(np.float64)).sum(1)
    encoder, device = model.module.set_encoder, model.module.device
    streams = model._randomness(seed)[0].spawn(len(pairs))

    @lru_cache(maxsize=KEPT_POPULATIONS)  # a control is in many pairs
    def latents(k: int) -> torch.Tensor:
        return encode_cells(model.module, table, rows[members[k]])[0].to(device)

    records = []
    for (i, j), rng in zip(pairs, streams, strict=True):
        squared = float(np.square(embedding.z[i].astype(np.float64) - embedding.z[j]).sum() - noise[i] - noise[j])
        statistic = p_value = np.nan
        union = np.concatenate([members[i], members[j]])
        if min(embedding.n_cells[i], embedding.n_cells[j]) > 1:
            together = torch.zeros(len(union), dtype=torch.long, device=device)
            with torch.no_grad():
                _, psi = encoder.influence(torch.cat([latents(i), latents(j)]), together, 1)
            blocks = None if block is None else block[union]
            statistic, p_value = permutation_test(
                spread_vectors(psi.cpu().numpy(), blocks),
                np.arange(len(union)) < len(members[i]),
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
            }
        )
    frame = pd.DataFrame(records)
    frame["p_adjusted"] = adjust_p_values(frame["p_value"].to_numpy(), correction)
    return frame


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


def _blocks(obs: pd.DataFrame, block_key: str) -> np.ndarray:
    """Code of each cell's block, ``(cells,)``."""
    if block_key not in obs:
        message = f"block_key={block_key!r} is not in adata.obs; there are {list(obs.columns)}."
        raise KeyError(message)
    codes = pd.factorize(obs[block_key])[0]
    if (codes < 0).any():
        message = f"block_key={block_key!r} has {(codes < 0).sum()} missing values; fill them or drop those cells."
        raise ValueError(message)
    return codes
