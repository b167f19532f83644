"""Run a trained module over the cells of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgde._constants import UNASSIGNED_CODE
from scgde._sparse import supports_sparse
from scgde.data.cells import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from scgde.data import CellTable
    from scgde.encoders import SetEncoder
    from scgde.module import GDEModule

_LOOSE_CELLS_PER_PASS = 1000
"""Cells in no population, and cells of the reference sample, that an encoder without pooled features sees at once."""

_CELLS_PER_PASS = 8192
"""Cells whose vectors are computed together, about: leaving out each takes several matrices for every one."""


def encode_cells(
    module: GDEModule, table: CellTable, indices: np.ndarray, batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of the latents of cells, each ``(len(indices), n_latent)`` on the CPU."""
    mean, sd = (torch.empty((len(indices), module.observation.n_latent)) for _ in range(2))
    for start, m, s in encode_blocks(module, table, indices, batch_size):
        mean[start : start + len(m)], sd[start : start + len(m)] = m, s
    return mean, sd


@torch.no_grad()
def encode_blocks(
    module: GDEModule, table: CellTable, indices: np.ndarray, batch_size: int | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same block by block, each with the place of its first cell in ``indices``."""
    was_training = module.training
    module.eval()
    step = batch_size or 1024
    sparse = module.observation.reads_sparse and supports_sparse(module.device)
    for start in range(0, len(indices), step):
        rows = table.tensor(indices[start : start + step], sparse=sparse).to(module.device)
        mean, sd = module.observation.encode(rows)
        yield start, mean.cpu(), sd.cpu()
    module.train(was_training)


@torch.no_grad()
def encode_components(module: GDEModule, table: CellTable, indices: np.ndarray) -> np.ndarray:
    """Cells as they were before anything was learned from labels of populations, ``(len(indices), r)``, double precision.

    See :meth:`scgde.observations.ObservationModel.components`.
    """
    blocks = np.array_split(indices, len(indices) // _CELLS_PER_PASS + 1)
    return np.concatenate([components_of(module, table.matrix[block]) for block in blocks])


@torch.no_grad()
def components_of(module: GDEModule, rows: Any) -> np.ndarray:
    """The same of rows ``(cells, n_vars)`` as they are given."""
    sparse = module.observation.reads_sparse and supports_sparse(module.device)
    return module.observation.components(as_tensor(rows, sparse=sparse).to(module.device)).double().cpu().numpy()


@dataclass(frozen=True)
class Embedding:
    """Embeddings of the populations of a table.

    Attributes
    ----------
    labels
        Labels of the populations that have cells, ``K`` of them.
    codes
        Position of each cell's population in ``labels``; -1 for cells in none, ``(cells,)``.
    n_cells
        Cells per population, ``(K,)``.
    z
        Population embeddings, ``(K, n_embedding)``.
    cells
        Per-cell vectors, whose mean over a population is its embedding, ``(cells, n_embedding)``; no rows where they were not kept.
    standard_error
        Standard error of each coordinate, ``(K, n_embedding)``; NaN for one cell.
    """

    labels: list[str]
    codes: np.ndarray
    n_cells: np.ndarray
    z: np.ndarray
    cells: np.ndarray
    standard_error: np.ndarray


def embed(
    encoder: SetEncoder,
    u: Tensor | Callable[[np.ndarray], Tensor],
    codes: np.ndarray,
    labels: list[str],
    reference: Tensor | None,
    *,
    vectors: bool = True,
    keep_cells: bool | Callable[[np.ndarray, Tensor], None] = True,
) -> Embedding:
    r"""Embed ragged sets with per-cell vectors and standard errors by the (infinitesimal) jackknife.

    A population of n cells of more than ``encoder.jackknife_max``, or any population under a linear encoder, has the vectors
    :math:`z + \psi_j` with the influences :math:`\psi_j`. A smaller one has the jackknife pseudo-values
    :math:`n z - (n - 1) z_{(-j)}`, whose mean is the embedding with its bias of order 1/n removed. Either way the
    population's embedding is the mean of its vectors, and its standard error their standard deviation over
    :math:`n^{1/2}`.

    Parameters
    ----------
    encoder
        Set encoder.
    u
        Cell latents, ``(cells, n_latent)``, or a function that gives those of some cells: whole populations are asked for, as many
        at a time as make some thousand cells.
    codes
        Population of each cell, -1 for none.
    labels
        Labels of the codes; populations without cells are left out.
    reference
        Latents of a fixed sample of assigned training cells. Cells in no population get the influence of adding them
        to it at weight zero, so that every cell has a finite vector.
    vectors
        Whether vectors of cells and standard errors are wanted. Without them the same ``z`` takes a fraction of the time for
        encoders that pool more than once; ``cells`` has no rows and ``standard_error`` is missing.
    keep_cells
        Whether vectors of cells are kept, which are as many numbers as cells times coordinates; or a function that is given some
        cells and their vectors as they come.
    """
    latents = u if callable(u) else lambda members: u[torch.from_numpy(members)]
    # few arrays as long as there are cells: millions may be
    counts = np.bincount(codes + 1)[1:] if len(codes) else np.zeros(0, dtype=np.int64)
    present = np.flatnonzero(counts)
    sizes = counts[present]
    place = np.full(len(counts) + 1, UNASSIGNED_CODE)
    place[present + 1] = np.arange(len(present))
    dense = place[codes + 1]
    width = encoder.n_embedding
    kept = vectors and keep_cells is True
    cells = torch.zeros((len(codes) if kept else 0, width), dtype=torch.float64)

    def keep(members: np.ndarray, own: Tensor) -> None:
        if kept:
            cells[torch.from_numpy(members)] = own
        elif callable(keep_cells):
            keep_cells(members, own)

    z = torch.zeros((len(present), width), dtype=torch.float64)
    variance = torch.full((len(present), width), torch.nan, dtype=torch.float64)

    order = np.flatnonzero(dense >= 0)
    if (np.diff(dense[order]) < 0).any():
        order = order[np.argsort(dense[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    group = 0
    while group < len(present):
        # whole populations, as many as fit a pass
        stop = max(int(np.searchsorted(starts, starts[group] + _CELLS_PER_PASS, side="right")) - 1, group + 1)
        members = order[starts[group] : starts[stop]]
        segment = torch.from_numpy(dense[members] - group)
        own = cell_vectors(encoder, latents(members), segment, stop - group, influences=vectors)
        n = torch.from_numpy(sizes[group:stop]).double()[:, None]
        mean = torch.zeros((stop - group, width), dtype=torch.float64).index_add_(0, segment, own) / n
        z[group:stop] = mean
        if vectors:
            keep(members, own)
            square = torch.zeros_like(mean).index_add_(0, segment, (own - mean[segment]).square())
            variance[group:stop] = torch.where(n > 1, square / (n * (n - 1).clamp_min(1)), torch.nan)
        group = stop

    loose = np.flatnonzero(dense < 0)
    if vectors and keep_cells and len(loose) and reference is not None:
        for part in np.array_split(loose, len(loose) // _CELLS_PER_PASS + 1):
            keep(part, added_influence(encoder, reference, latents(part)))
    return Embedding(
        labels=[labels[c] for c in present],
        codes=dense,
        n_cells=sizes,
        z=z.float().numpy(),
        cells=cells.float().numpy(),
        standard_error=variance.sqrt().float().numpy(),
    )


def cell_vectors(encoder: SetEncoder, u: Tensor, segment: Tensor, n_sets: int, *, influences: bool = True) -> Tensor:
    """Per-cell vectors, ``(cells, n_embedding)`` in double precision; see :func:`embed`.

    Without ``influences`` they are those of large populations less their influences, with the same mean.
    """
    device = next(iter(encoder.state_dict().values())).device
    u, codes = u.to(device), segment.to(device)
    sizes = torch.bincount(codes, minlength=n_sets)
    small = (sizes > 1) & (sizes <= encoder.jackknife_max) & (not encoder.is_linear)
    vectors = torch.empty((len(u), encoder.n_embedding), dtype=torch.float64, device=device)
    for chosen, delete_one in ((~small, False), (small, True)):
        rows = torch.nonzero(chosen[codes]).squeeze(1)
        if not len(rows):
            continue
        relabelled, n_chosen = (torch.cumsum(chosen, 0) - 1)[codes[rows]], int(chosen.sum())
        with torch.no_grad():
            if delete_one:
                z = encoder(u[rows], relabelled, n_sets=n_chosen)[relabelled].double()
                without = encoder.delete_one(u[rows], relabelled, n_chosen).double()
                n = sizes[codes[rows]].double()[:, None]
                vectors[rows] = n * z - (n - 1) * without
            elif not influences:
                vectors[rows] = encoder(u[rows], relabelled, n_sets=n_chosen)[relabelled].double()
            else:
                z, psi = encoder.influence(u[rows], relabelled, n_chosen)
                vectors[rows] = (z[relabelled] + psi).double()
    return vectors.cpu()


def added_influence(encoder: SetEncoder, reference: Tensor, u: Tensor) -> Tensor:
    """Vectors of cells in no population: the influence of adding each, at weight zero, to a reference sample."""
    from scgde.encoders import PooledEncoder

    device = next(iter(encoder.state_dict().values())).device
    reference, u = reference.to(device), u.to(device)
    if isinstance(encoder, PooledEncoder):
        with torch.no_grad():
            pooled = encoder.features(reference).mean(0, keepdim=True)
            z, jacobian = encoder.head_jacobian(pooled)
            return (z + (encoder.features(u) - pooled) @ jacobian[0].T).double().cpu()
    blocks = []
    reference = reference[:: -(-len(reference) // _LOOSE_CELLS_PER_PASS)]
    for start in range(0, len(u), _LOOSE_CELLS_PER_PASS):
        block = u[start : start + _LOOSE_CELLS_PER_PASS]
        joint = torch.cat([reference, block])
        weight = torch.cat([torch.ones(len(reference)), torch.zeros(len(block))]).to(device)
        blocks.append(encoder.weighted_influence(joint, weight)[len(reference) :])
    return torch.cat(blocks).double().cpu()


def coordinate_names(width: int) -> list[str]:
    """Names of the coordinates of an embedding."""
    return [f"GDE_{i}" for i in range(width)]


def check_distance_options(metric: str, bias_correction: bool | None, return_std: bool) -> None:
    """Raise if a metric is unknown, or an option is for the other metric."""
    if metric not in ("latent", "wasserstein"):
        message = f"metric={metric!r} must be 'latent' or 'wasserstein'."
        raise ValueError(message)
    for name, value in (("return_std", return_std), ("bias_correction", bias_correction)):
        if value and metric != "latent":
            message = (
                f"{name}={value!r} is available for metric='latent' only, not for metric={metric!r}; leave it out."
            )
            raise ValueError(message)


def euclidean(z: np.ndarray) -> np.ndarray:
    """Distances between rows, ``(K, K)``."""
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(z))
