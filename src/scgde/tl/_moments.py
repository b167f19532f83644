"""What replicates are compared by: means and spreads of their cells, in a representation without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scgde.components import nuisance_design, nuisance_effects
from scgde.inference import encode_components
from scgde.tl._depth import depths_differ, matched_components
from scgde.uncertainty import spread_parts

if TYPE_CHECKING:
    from scgde import GDEModel
    from scgde.data import CellTable

ROUNDING = 1e-18
"""Share of the squared means of populations that is no more than rounding."""


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
        matched = depths_differ(table.totals(cells), group, block)
    if matched:
        x = matched_components(model.module, sp.csr_matrix(table.rows(cells)), group, block, rng)
    else:
        x = encode_components(model.module, table, cells)
    design = nuisance_design(table, cells)
    width = table.continuous.shape[1]
    if width:  # far from zero, covariates would leave more than rounding
        numbers = design[:, -width:].toarray()
        design = sp.hstack([design[:, :-width], sp.csr_matrix(numbers - numbers.mean(0))], format="csr")
    left = x - design @ nuisance_effects(design, x)
    mean = sp.csr_matrix((np.ones(len(cells)), (population, np.arange(len(cells)))))
    mean = sp.diags(1 / np.bincount(population)) @ mean
    means = mean @ left
    # batches that are populations themselves leave no means, but rounding that would be scaled up
    if np.square(means).sum() <= ROUNDING * np.square(mean @ (x - x.mean(0))).sum():
        means = np.zeros_like(means)
    return means, mean @ np.concatenate(spread_parts(left)[1:], axis=1), matched
