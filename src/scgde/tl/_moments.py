"""What replicates are compared by: means and spreads of their cells, in a representation without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scgde.components import nuisance_design, nuisance_effects
from scgde.inference import encode_components
from scgde.tl._depth import matched_components
from scgde.tl._test import DEPTH_RATIO
from scgde.uncertainty import spread_parts

if TYPE_CHECKING:
    from scgde import GDEModel
    from scgde.data import CellTable


def population_moments(
    model: GDEModel,
    table: CellTable,
    cells: np.ndarray,
    population: np.ndarray,
    group: np.ndarray,
    block: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Means of cells of each population, and of what they say about spread.

    Components of cells depend on depth, so that counts are thinned first where groups differ in it.

    Parameters
    ----------
    model, table
        Trained model, and the table of cells.
    cells
        Rows of the table.
    population
        Position of each cell's population, ``(cells,)``, from 0 without gaps.
    group, block
        Group and block of each cell, ``(cells,)``.
    rng
        Randomness of the thinning.

    Returns
    -------
    Means of components ``(K, r)``, means of the parts of :func:`scgde.uncertainty.spread_vectors` that are about spread ``(K, s)``,
    and whether depths were matched.
    """
    matched = False
    if model.module.observation.is_count:
        totals = table.totals(cells)
        medians = (
            pd.Series(totals).groupby([group, np.zeros(len(cells)) if block is None else block]).median().unstack()
        )
        ratio = medians.max() / medians.min().where(medians.min() > 0)
        matched = bool((ratio > DEPTH_RATIO).any())
    if matched:
        x = matched_components(model.module, sp.csr_matrix(table.rows(cells)), group, block, rng)
    else:
        x = encode_components(model.module, table, cells)
    design = nuisance_design(table, cells)
    x = x - design @ nuisance_effects(design, x)
    mean = sp.csr_matrix((np.ones(len(cells)), (population, np.arange(len(cells)))))
    mean = sp.diags(1 / np.bincount(population)) @ mean
    return mean @ x, mean @ np.concatenate(spread_parts(x)[1:], axis=1), matched
