"""From predicted embeddings to cells: real cells moved, or cells generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgde import ot
from scgde._constants import OWN_PREFIX
from scgde.generation import RowContexts, generate_rows
from scgde.inference import coordinate_names, encode_cells
from scgde.paths import transport_cells
from scgde.perturbation.decoding import move_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgde import GDEModel
    from scgde.data import CellTable
    from scgde.module import GDEModule


SEEN_SHARE = 0.75
"""Share of the cells of a pair that was seen which start from its own cells, as long as there are enough of them."""

MIN_REPLICATES = 2
"""Replicates of a pair before its own cells say what another replicate is like."""


@dataclass(frozen=True)
class SourceCells:
    """Cells of one population that are to be moved (the controls of a context; a replicate of what was seen) and their embedding.

    Attributes
    ----------
    context
        Name of the context; None if it has none.
    z, variance
        Embedding and squared standard errors, ``(n_embedding,)``.
    adata, rows
        Where the cells are; ``adata`` is None where only the embedding is known.
    table
        ``adata`` as the model reads it, where that has been done.
    is_own
        Whether these are the model's own controls of the context, those that trained it.
    """

    context: str | None
    z: np.ndarray
    variance: np.ndarray
    adata: AnnData | None
    rows: np.ndarray
    table: CellTable | None = None
    is_own: bool = False


class CellMover:
    """Turns embeddings of one context into cells, with the same source cells for all of them.

    Parameters
    ----------
    model
        Trained model.
    source
        Control cells, or those of a replicate.
    batch
        Batch to decode under; each cell's own by default.
    seed
        Seed of all draws.
    start
        What the source is, for ``obs["gde_start"]``.
    """

    def __init__(
        self,
        model: GDEModel,
        source: SourceCells,
        *,
        batch: Any = None,
        seed: int | None = None,
        start: str = "control",
    ) -> None:
        self.model, self.source, self.batch, self.start = model, source, batch, start
        self.rng, self.generator = model._randomness(seed)
        if source.adata is None:
            return
        module = model.module
        table = model._table(source.adata) if source.table is None else source.table
        self.table = table
        rows = source.rows
        self.x = table.rows(rows)
        mean, sd = encode_cells(module, table, rows)
        self.mean, self.sd = mean.numpy(), sd.numpy()
        codes = table.batch[rows]
        asked = codes if batch is None else np.full(len(rows), model._batch_code(batch))
        model._check_batches(asked, "batch=")
        library = table.library(rows, float(module.observation.size_factor_gain))
        # cells of a batch that the model does not know are taken for cells of the one that is asked for
        before = np.where(codes < 0, asked, codes)
        self.before = RowContexts(library, before, table.categorical[rows], table.continuous[rows])
        self.after = self.before._replace(batch=asked)

    def latents(self, rows: np.ndarray) -> np.ndarray:
        """Draws from the posterior of source cells, ``(cells, n_latent)``: generators know draws, and means spread less."""
        noise = self.rng.standard_normal((len(rows), self.mean.shape[1]), dtype=np.float32)
        return self.mean[rows] + self.sd[rows] * noise

    def choose(self, n_cells: int | None) -> np.ndarray:
        """Source cells to move: in random order, all of them before one comes again."""
        n = len(self.source.rows)
        if n_cells is None:
            return np.arange(n)
        rounds = [self.rng.permutation(n) for _ in range(-(-n_cells // n))]
        return np.concatenate(rounds)[:n_cells]

    def move(self, target: np.ndarray, chosen: np.ndarray, effects: dict[int, float] | None = None) -> AnnData:
        """Move the source cells ``chosen`` to a population with the embedding ``target`` ``(n_embedding,)``, target genes by known ``effects``."""
        module = self.model.module
        u = self.latents(chosen)
        moved = move_latents(module, u, self.source.z, target)
        before, after = (RowContexts(*(values[chosen] for values in c)) for c in (self.before, self.after))
        if module.observation.is_count:
            x = move_counts(module, self.x[chosen], u, moved, before, after, self.generator, effects)
        else:
            # rows of a continuous model are their latents
            x = generate_rows(module, moved, after, self.generator)
        origin = self.table.obs.iloc[self.source.rows[chosen]]
        return self._adata(x, origin, after)

    def generate(self, target: np.ndarray, n_cells: int | None) -> AnnData:
        """Generate cells of a population with the embedding ``target``, at the depths of the nearest training population."""
        frame = pd.DataFrame(target[None], index=["predicted"], columns=coordinate_names(len(target)))
        count = len(self.source.rows) if n_cells is None else n_cells
        seed = int(self.rng.integers(2**31))
        cells = self.model.sample(frame.astype(np.float32), count, batch=self.batch, seed=seed)
        cells.obs.index = [f"{OWN_PREFIX}{i}" for i in range(cells.n_obs)]
        return cells

    def _adata(self, x: np.ndarray, origin: pd.DataFrame, context: RowContexts) -> AnnData:
        return derived_cells(self.model, x, origin, context, self.start)


def derived_cells(model: GDEModel, x: Any, origin: pd.DataFrame, context: RowContexts, start: str) -> AnnData:
    """AnnData of rows ``x`` ``(cells, n_vars)`` that were made of the cells ``origin``, with the columns of the model and where they are from."""
    args = model.registry_["setup_args"]
    keys = [*model._population_keys(), *(args["categorical_covariate_keys"] or [])]
    obs = pd.DataFrame(index=pd.Index([f"{OWN_PREFIX}{i}" for i in range(x.shape[0])]))
    for key in keys:
        if key in origin:
            obs[key] = np.asarray(origin[key].astype(object))
    for i, key in enumerate(args["continuous_covariate_keys"] or []):
        obs[key] = context.continuous[:, i]
    if args["batch_key"] is not None:
        names = np.array(model._mapping("batch", args["batch_key"]), dtype=object)
        obs[args["batch_key"]] = pd.Categorical(names[context.batch])
    obs[f"{OWN_PREFIX}source_cell"] = np.asarray(origin.index, dtype=object)
    obs[f"{OWN_PREFIX}start"] = start
    return model._rows_adata(x, obs, context)


class SeenCells:
    """Cells of a pair of context and perturbation that was seen, each replicate of it moved from its own embedding.

    Parameters
    ----------
    model
        Trained model.
    replicates
        Its replicates.
    batch, seed
        As of :class:`CellMover`.
    """

    def __init__(
        self, model: GDEModel, replicates: Sequence[SourceCells], *, batch: Any = None, seed: int | None = None
    ) -> None:
        self.rng = model._randomness(seed)[0]
        seeds = self.rng.integers(2**31, size=len(replicates))
        self.movers = [
            CellMover(model, r, batch=batch, seed=int(s), start="perturbed")
            for r, s in zip(replicates, seeds, strict=True)
        ]
        self.replicate = np.repeat(np.arange(len(replicates)), [len(r.rows) for r in replicates])
        self.position = np.concatenate([np.arange(len(r.rows)) for r in replicates])

    def move(self, target: np.ndarray, n_cells: int) -> list[AnnData]:
        """Move ``n_cells`` of them, each at most once, in random order to the embedding ``target`` ``(n_embedding,)``."""
        chosen = self.rng.permutation(len(self.position))[:n_cells]
        moved = []
        for i in np.unique(self.replicate[chosen]):
            own = chosen[self.replicate[chosen] == i]
            moved.append(self.movers[i].move(target, self.position[own]))
        return moved


def move_both(
    mover: CellMover, seen: SeenCells, target: np.ndarray, n_cells: int, effects: dict[int, float] | None = None
) -> AnnData:
    """Cells of a population with the embedding ``target``: :data:`SEEN_SHARE` moved cells of the pair itself, each once, the others moved control cells.

    Control cells know nothing of what the embedding does not hold of the perturbed ones; those are few, and know too much of their own
    replicates. A mixture is nearer to a new replicate in distribution than moved control cells, and nearer in the mean than their own.
    """
    n_seen = min(int(SEEN_SHARE * n_cells), len(seen.position))
    blocks = [mover.move(target, mover.choose(n_cells - n_seen), effects), *seen.move(target, n_seen)]
    return joined(blocks)[seen.rng.permutation(n_cells)].copy()


def move_latents(module: GDEModule, u: np.ndarray, z_source: np.ndarray, z_target: np.ndarray) -> np.ndarray:
    """Latents ``(cells, n_latent)`` carried from one population to another.

    By the flow where the generator can be run backwards, else by the optimal map between normal populations with the means and
    covariances that are read off the embeddings.
    """
    if module.generator.can_invert:
        return transport_cells(module, u, z_source, z_target)
    z = torch.from_numpy(np.stack([z_source, z_target]).astype(np.float32)).to(module.device)
    with torch.no_grad():
        mean, root = (values.double().cpu().numpy() for values in module.skeleton(z))
    slope, offset = ot.gaussian_map(mean[0], root[0] @ root[0], mean[1], root[1] @ root[1])
    return (u @ slope.T + offset).astype(np.float32)


def joined(blocks: Sequence[AnnData]) -> AnnData:
    """Blocks of cells one below the other, with names that do not repeat."""
    import anndata as ad

    starts = np.cumsum([0, *(block.n_obs for block in blocks)])
    for start, block in zip(starts[:-1], blocks, strict=True):
        block.obs_names = [f"{OWN_PREFIX}{start + i}" for i in range(block.n_obs)]
    cells = blocks[0] if len(blocks) == 1 else ad.concat(blocks, merge="same")
    for column in cells.obs:
        if cells.obs[column].dtype == object:
            cells.obs[column] = cells.obs[column].astype("category")
    return cells
