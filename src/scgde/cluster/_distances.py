"""Distances between the populations of an atlas."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scgde import ot
from scgde.cluster._blocks import Atlas, asked_labels, cut, open_atlas
from scgde.cluster._clients import resolve_client
from scgde.cluster._embedding import NOISE, embed_atlas, encode_block, run_atlas
from scgde.cluster._running import Task
from scgde.inference import check_distance_options, euclidean
from scgde.ot.pairwise import pair_cost
from scgde.uncertainty import distance_and_error, noisy_distances

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from scgde import GDEModel
    from scgde.cluster._contexts import Context
    from scgde.data.streaming import StreamedCells

logger = logging.getLogger(__name__)

PAIR_BLOCKS = 64
"""Blocks that populations are cut into for exact distances, about: each with each makes some two thousand tasks."""

CELLS_PER_PAIR_BLOCK = 500
"""Cells of such a block at least, so that tasks are not mere messages."""


def distances(
    model: GDEModel,
    path: str | os.PathLike | StreamedCells,
    *,
    client: Any = None,
    populations: Sequence[Any] | None = None,
    metric: Literal["latent", "wasserstein"] = "latent",
    bias_correction: bool | None = None,
    return_std: bool = False,
    cells_per_task: int = 20_000,
    progress: bool = True,
) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
    """Distances between populations of an atlas on disk, on a Dask cluster.

    For ``metric="latent"`` workers embed, as :func:`scgde.cluster.embed` has them, and distances are taken here. For
    ``metric="wasserstein"`` the latents of cells stay in the memory of workers, and pairs of blocks of populations are tasks.

    Parameters
    ----------
    model, path, client, progress
        See :func:`scgde.cluster.embed`.
    populations, metric, bias_correction, return_std
        See :meth:`scgde.GDEModel.get_population_distances`.
    cells_per_task
        Cells that a task reads, about. Tasks of exact distances are smaller where there would be too few.

    Returns
    -------
    What ``model.get_population_distances(path, ...)`` returns: populations x populations, and with ``return_std`` their standard errors.

    Raises
    ------
    ValueError
        If ``metric`` is unknown, or an argument is for the other metric.
    RuntimeError, FileNotFoundError, KeyError, TypeError, ImportError
        See :func:`scgde.cluster.embed`.
    """
    check_distance_options(metric, bias_correction, return_std)
    noise = bool(return_std or bias_correction)
    with resolve_client(client) as found:
        atlas = open_atlas(model, path, populations)
        asked = _asked(atlas, populations)
        index = pd.Index([atlas.labels[i] for i in asked], name="population")
        pairs = np.ix_(asked, asked)

        def frame(values: np.ndarray) -> pd.DataFrame:
            return pd.DataFrame(values[pairs], index=index, columns=index)

        if metric == "wasserstein":
            return frame(_exact(model, atlas, found, cells_per_task, progress))
        embedding, more = embed_atlas(model, atlas, found, cells_per_task, noise=noise, progress=progress)
    plain = euclidean(embedding.z.astype(np.float64))
    if not noise:
        return frame(plain)
    mean, trace, trace_square, covariance = (more[name] for name in NOISE)
    squared, variance = noisy_distances(mean, trace, trace_square, lambda block: covariance[block])
    corrected, errors = distance_and_error(squared, variance)
    values = frame(plain if bias_correction is False else corrected)
    return (values, frame(errors)) if return_std else values


def _asked(atlas: Atlas, populations: Any) -> np.ndarray:
    """Positions in the atlas of the labels that are asked for, of which one may come twice."""
    if populations is None:
        return np.arange(len(atlas.labels))
    position = {label: i for i, label in enumerate(atlas.labels)}
    return np.array([position[label] for label in asked_labels(populations)])


def _exact(model: GDEModel, atlas: Atlas, client: Any, cells_per_task: int, progress: bool) -> np.ndarray:
    """Exact W2 between all pairs of populations, ``(K, K)``."""
    share = max(int(atlas.sizes.sum()) // PAIR_BLOCKS, CELLS_PER_PAIR_BLOCK)
    blocks = cut(atlas, min(cells_per_task, share))
    tasks = [Task(encode_block, (block,), [atlas.labels[i] for i in block.numbers], wanted=False) for block in blocks]
    places = []
    for i, first in enumerate(blocks):
        for j in range(i, len(blocks)):
            second = blocks[j]
            labels = [atlas.labels[k] for k in (first.numbers if i == j else (*first.numbers, *second.numbers))]
            k, m = len(first.numbers), len(second.numbers)
            weight = k * (k - 1) // 2 if i == j else k * m
            if weight:
                tasks.append(Task(compare_blocks, (), labels, inputs=(i,) if i == j else (i, j), weight=weight))
                places.append((i, j))
    result = np.zeros((len(atlas.labels),) * 2)

    def collect(position: int, values: np.ndarray) -> None:
        i, j = (blocks[k].numbers for k in places[position - len(blocks)])
        result[np.ix_(i, j)] = values
        result[np.ix_(j, i)] = values.T

    n_latent = model.module.observation.n_latent
    seconds = ot.estimate_cost(atlas.sizes, n_features=n_latent)
    logger.info(f"Exact Wasserstein distances of {len(atlas.labels)} populations: about {seconds:.0f} s of one core.")
    run_atlas(model, atlas, tasks, collect, client, progress=progress, unit="pair", description="Exact distances")
    return result


def compare_blocks(context: Context, first: list[np.ndarray], second: list[np.ndarray] | None = None) -> np.ndarray:
    """Exact W2 between the populations of two blocks, ``(k, m)``, or between those of one, ``(k, k)``, from latents of cells."""
    sets = [u.astype(np.float64) for u in first]
    others = sets if second is None else [u.astype(np.float64) for u in second]
    values = np.zeros((len(sets), len(others)))
    for i, x in enumerate(sets):
        for j in range(i + 1 if second is None else 0, len(others)):
            values[i, j] = pair_cost(x, others[j], "exact") ** 0.5
    return values + values.T if second is None else values
