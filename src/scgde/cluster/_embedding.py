"""Embeddings of the populations of an atlas."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from scgde.cluster._blocks import Atlas, Block, BlockRows, cut, open_atlas
from scgde.cluster._clients import resolve_client
from scgde.cluster._contexts import Context, pack
from scgde.cluster._running import Task, run_tasks
from scgde.inference import Embedding, encode_cells
from scgde.inference import embed as embed_cells
from scgde.uncertainty import packed_covariances, sampling_noise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from torch import Tensor

    from scgde import GDEModel
    from scgde.data.streaming import StreamedCells

NOISE = ("mean", "trace", "trace_square", "covariance")
"""What a task says of the sampling noise of populations; see :func:`scgde.uncertainty.noisy_distances`."""


def embed(
    model: GDEModel,
    path: str | os.PathLike | StreamedCells,
    *,
    client: Any = None,
    populations: Sequence[Any] | None = None,
    cells_per_task: int = 20_000,
    progress: bool = True,
) -> AnnData:
    """Embed the populations of an atlas on disk, with standard errors, on a Dask cluster.

    Every worker reads the folder itself, block by block; what comes back is two rows of numbers for each population. A task is a block of
    whole neighbouring populations and has the same result on whichever worker. One whose worker dies is run on another.

    The model goes to each worker once, as its saved file. Scheduler and workers need the same version of scgde, and workers have to see
    ``path``. Give each worker process one thread.

    Parameters
    ----------
    model
        Trained model.
    path
        Folder that :func:`scgde.pp.write_populations` wrote, or a model's own cells on disk (``model.adata``), whose split is then told.
    client
        A Dask client (``distributed.Client``), or the address of a scheduler. By default the client of this process; where there is none the
        same tasks run in this process, without Dask.
    populations
        Labels of some populations, in the order of the result; all by default.
    cells_per_task
        Cells that a task reads, about. A population of more cells is a task of its own.
    progress
        Whether to show progress.

    Returns
    -------
    What ``model.get_population_adata(path)`` returns, less ``obsp``: of many populations there are too many distances. See
    :func:`scgde.cluster.distances`.

    Raises
    ------
    RuntimeError
        If the model is not trained, or a worker lacks this version of scgde.
    FileNotFoundError
        If the folder is absent here or on a worker.
    KeyError
        If a population is unknown.
    ValueError, TypeError
        If the folder is damaged or of other genes, or an argument is out of range.
    ImportError
        If a client is asked for and Dask is not installed.

    Examples
    --------
    >>> from distributed import Client, LocalCluster  # doctest: +SKIP
    >>> client = Client(LocalCluster(n_workers=8, threads_per_worker=1))  # doctest: +SKIP
    >>> pop = scgde.cluster.embed(model, "atlas.zarr")  # doctest: +SKIP
    """
    with resolve_client(client) as found:
        atlas = open_atlas(model, path, populations)
        embedding, _ = embed_atlas(model, atlas, found, cells_per_task, progress=progress)
    rows = np.arange(atlas.table.n_cells)
    return model._as_adata(atlas.cells, atlas.table, rows, embedding)


def embed_atlas(
    model: GDEModel, atlas: Atlas, client: Any, cells_per_task: int, *, noise: bool = False, progress: bool = True
) -> tuple[Embedding, dict[str, np.ndarray]]:
    """Embeddings and standard errors of the populations of an atlas, and with ``noise`` what :data:`NOISE` names, of each."""
    blocks = cut(atlas, cells_per_task)
    tasks = [
        Task(embed_block, (block, noise), [atlas.labels[i] for i in block.numbers], weight=int(block.sizes.sum()))
        for block in blocks
    ]
    n, width = len(atlas.labels), model.module.set_encoder.n_embedding
    z, error = (np.full((n, width), np.nan, dtype=np.float32) for _ in range(2))
    more: dict[str, np.ndarray] = {}

    def collect(i: int, result: tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]) -> None:
        numbers = blocks[i].numbers
        z[numbers], error[numbers] = result[:2]
        for name, values in result[2].items():
            more.setdefault(name, np.full((n, *values.shape[1:]), np.nan))[numbers] = values

    run_atlas(model, atlas, tasks, collect, client, progress=progress, unit="cell", description="Embedding")
    nothing = np.empty((0, width), dtype=np.float32)
    return Embedding(atlas.labels, atlas.codes, atlas.sizes, z, nothing, error), more


def run_atlas(
    model: GDEModel,
    atlas: Atlas,
    tasks: Sequence[Task],
    collect: Callable[[int, Any], None],
    client: Any,
    **options: Any,
) -> None:
    """Run tasks on the cells of an atlas; options are those of :func:`run_tasks`."""
    # workers may run in another folder
    path = os.path.abspath(atlas.cells.path)
    run_tasks(
        tasks,
        collect,
        client=client,
        context=Context(model, cells=atlas.cells),
        pack=lambda: pack(model, atlas.cells, path),
        paths=[path],
        **options,
    )


def embed_block(context: Context, block: Block, noise: bool) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Embeddings and standard errors of the populations of a block, ``(k, n_embedding)`` each; with ``noise`` what :data:`NOISE` names."""
    rows: Any = BlockRows(context, block)
    module = context.model.module
    module.eval()

    def latents(chosen: np.ndarray) -> Tensor:
        return encode_cells(module, rows, chosen)[0]

    labels = [str(i) for i in range(len(block.sizes))]
    embedding = embed_cells(module.set_encoder, latents, rows.codes, labels, None, keep_cells=noise)
    more: dict[str, np.ndarray] = {}
    if noise:
        members = np.split(np.arange(len(rows.codes)), np.cumsum(block.sizes)[:-1])
        vectors = embedding.cells
        values = (*sampling_noise(vectors, members), packed_covariances(vectors, members))
        more = dict(zip(NOISE, values, strict=True))
    return embedding.z, embedding.standard_error, more


def encode_block(context: Context, block: Block) -> list[np.ndarray]:
    """Latents of the cells of each population of a block, ``(cells, n_latent)`` each."""
    rows: Any = BlockRows(context, block)
    u = encode_cells(context.model.module, rows, np.arange(len(rows.codes)))[0].numpy()
    return np.split(u, np.cumsum(block.sizes)[:-1])
