"""From predicted embeddings to cells: control cells moved, or cells generated."""

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
    from scgde.module import GDEModule


@dataclass(frozen=True)
class ControlCells:
    """Control cells of a context and their embedding.

    Attributes
    ----------
    context
        Its name; None if it has none.
    z, variance
        Embedding and squared standard errors, ``(n_embedding,)``.
    adata, rows
        Where the cells are; ``adata`` is None where only the embedding is known.
    """

    context: str | None
    z: np.ndarray
    variance: np.ndarray
    adata: AnnData | None
    rows: np.ndarray


class CellMover:
    """Turns embeddings of one context into cells, with the same control cells for all of them.

    Parameters
    ----------
    model
        Trained model.
    controls
        Control cells.
    batch
        Batch to decode under; each cell's own by default.
    seed
        Seed of all draws.
    """

    def __init__(self, model: GDEModel, controls: ControlCells, *, batch: Any = None, seed: int | None = None) -> None:
        self.model, self.controls, self.batch = model, controls, batch
        self.rng, self.generator = model._randomness(seed)
        if controls.adata is None:
            return
        module = model.module
        table = model._table(controls.adata)
        self.table = table
        rows = controls.rows
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
        """Draws from the posterior of control cells, ``(cells, n_latent)``: generators know draws, and means spread less."""
        noise = self.rng.standard_normal((len(rows), self.mean.shape[1]), dtype=np.float32)
        return self.mean[rows] + self.sd[rows] * noise

    def choose(self, n_cells: int | None) -> np.ndarray:
        """Control cells to move: in random order, all of them before one comes again."""
        n = len(self.controls.rows)
        if n_cells is None:
            return np.arange(n)
        rounds = [self.rng.permutation(n) for _ in range(-(-n_cells // n))]
        return np.concatenate(rounds)[:n_cells]

    def move(self, target: np.ndarray, chosen: np.ndarray, effects: dict[int, float] | None = None) -> AnnData:
        """Move the control cells ``chosen`` to a population with the embedding ``target`` ``(n_embedding,)``, target genes by known ``effects``."""
        module = self.model.module
        u = self.latents(chosen)
        moved = move_latents(module, u, self.controls.z, target)
        before, after = (RowContexts(*(values[chosen] for values in c)) for c in (self.before, self.after))
        if module.observation.is_count:
            x = move_counts(module, self.x[chosen], u, moved, before, after, self.generator, effects)
        else:
            # rows of a continuous model are their latents
            x = generate_rows(module, moved, after, self.generator)
        source = self.table.obs.iloc[self.controls.rows[chosen]]
        return self._adata(x, source, after)

    def generate(self, target: np.ndarray, n_cells: int | None) -> AnnData:
        """Generate cells of a population with the embedding ``target``, at the depths of the nearest training population."""
        frame = pd.DataFrame(target[None], index=["predicted"], columns=coordinate_names(len(target)))
        count = len(self.controls.rows) if n_cells is None else n_cells
        seed = int(self.rng.integers(2**31))
        cells = self.model.sample(frame.astype(np.float32), count, batch=self.batch, seed=seed)
        cells.obs.index = [f"{OWN_PREFIX}{i}" for i in range(cells.n_obs)]
        return cells

    def _adata(self, x: np.ndarray, source: pd.DataFrame, context: RowContexts) -> AnnData:
        model, args = self.model, self.model.registry_["setup_args"]
        keys = [*model._population_keys(), *(args["categorical_covariate_keys"] or [])]
        obs = pd.DataFrame(index=pd.Index([f"{OWN_PREFIX}{i}" for i in range(len(x))]))
        for key in keys:
            if key in source:
                obs[key] = np.asarray(source[key].astype(object))
        for i, key in enumerate(args["continuous_covariate_keys"] or []):
            obs[key] = context.continuous[:, i]
        if args["batch_key"] is not None:
            names = np.array(model._mapping("batch", args["batch_key"]), dtype=object)
            obs[args["batch_key"]] = pd.Categorical(names[context.batch])
        obs[f"{OWN_PREFIX}source_cell"] = np.asarray(source.index, dtype=object)
        return model._rows_adata(x, obs, context)


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
