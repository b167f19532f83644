"""Generate cells of populations from a trained module."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from scgde.data.populations import as_label
from scgde.inference import coordinate_names, embed
from scgde.observations import Context
from scgde.population_phase import encode_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scgde.data import CellTable
    from scgde.data.latents import Latents
    from scgde.inference import Embedding
    from scgde.module import GDEModule

MAX_CONTEXTS = 100
"""Contexts kept per population."""


class RowContexts(NamedTuple):
    """What each of a number of cells is decoded under.

    Attributes
    ----------
    library, batch
        Library sizes and batch codes, ``(cells,)``.
    categorical, continuous
        Covariates, ``(cells, n)``.
    """

    library: np.ndarray
    batch: np.ndarray
    categorical: np.ndarray
    continuous: np.ndarray


@dataclass(frozen=True)
class CellContexts:
    """Library sizes, batches and covariates of a sample of each population's cells.

    They are kept with the model, so that it generates with the population's own depth and mix of batches when its
    AnnData is gone. Drawing whole contexts keeps what depends on what (a batch that was sequenced deeper).

    Attributes
    ----------
    offsets
        Contexts of population k are rows ``offsets[k]`` to ``offsets[k + 1]``, ``(K + 1,)``.
    library, batch
        ``(rows,)``.
    expected
        Library sizes expected from the cells' latents, ``(rows,)``. A generated cell gets the size expected from its
        own latent times the ratio of ``library`` to ``expected`` of the context drawn for it: depth and state go
        together, and drawn apart they give cells that do not exist.
    categorical, continuous
        ``(rows, n)``.
    """

    offsets: np.ndarray
    library: np.ndarray
    expected: np.ndarray
    batch: np.ndarray
    categorical: np.ndarray
    continuous: np.ndarray

    @classmethod
    def from_table(
        cls,
        table: CellTable,
        expected: Callable[[np.ndarray], np.ndarray],
        codes: Iterable[int],
        gain: float,
        rng: np.random.Generator,
    ) -> CellContexts:
        """Contexts of the populations ``codes``, ascending, from a table.

        ``expected`` gives the library sizes that are expected from the latents of cells.
        """
        codes = np.asarray(list(codes), dtype=np.int64)
        order = np.argsort(table.codes, kind="stable")
        sizes = np.bincount(table.codes[table.codes >= 0], minlength=int(codes.max()) + 1)
        ends = np.cumsum(sizes) + (table.codes < 0).sum()
        chosen, offsets = [], [0]
        for code in codes:
            rows = order[ends[code] - sizes[code] : ends[code]]
            chosen.append(rows if len(rows) <= MAX_CONTEXTS else rng.choice(rows, MAX_CONTEXTS, replace=False))
            offsets.append(offsets[-1] + len(chosen[-1]))
        rows = np.concatenate(chosen)
        return cls(
            np.array(offsets),
            table.library(rows, gain),
            expected(rows).astype(np.float32),
            table.batch[rows],
            table.categorical[rows],
            table.continuous[rows],
        )

    def draw(self, populations: np.ndarray, rng: np.random.Generator, batch: int | None = None) -> np.ndarray:
        """A random row of contexts for each entry of ``populations``, with replacement.

        With ``batch``, rows of that batch: the population's own, or any population's where it has none.
        """
        start, stop = self.offsets[populations], self.offsets[populations + 1]
        if batch is None:
            return start + np.floor(rng.random(len(populations)) * (stop - start)).astype(np.int64)
        within = np.flatnonzero(self.batch == batch)
        if len(within) == 0:
            return self.draw(populations, rng)
        first, last = np.searchsorted(within, start), np.searchsorted(within, stop)
        none = first == last
        first, last = np.where(none, 0, first), np.where(none, len(within), last)
        return within[first + np.floor(rng.random(len(populations)) * (last - first)).astype(np.int64)]

    def matched_library(self, rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """Library sizes ``(cells,)`` of new cells with contexts ``rows`` and the sizes expected from their latents.

        They stay within the range of the contexts: an expectation far from any training cell means little.
        """
        library = expected * (self.library[rows] / np.maximum(self.expected[rows], 1e-6))
        return np.clip(library, self.library.min(), self.library.max()).astype(np.float32)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Plain arrays by name."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, arrays: dict[str, Any]) -> CellContexts:
        """Inverse of :meth:`to_dict`."""
        return cls(**{name: np.asarray(value) for name, value in arrays.items()})


@torch.no_grad()
def embed_with_contexts(
    module: GDEModule, table: CellTable, rng: np.random.Generator, latents: Latents | None = None
) -> tuple[Embedding, CellContexts, Latents]:
    """Embeddings (without vectors of cells) and contexts of all populations of a table, and the latents of its cells."""
    if latents is None:
        latents = encode_table(module, table)
    module.eval()
    embedding = embed(
        module.set_encoder, lambda rows: latents.rows(rows)[0], table.codes, table.labels, None, vectors=False
    )

    def expected(rows: np.ndarray) -> np.ndarray:
        # from draws of the posterior, which is what the generator imitates
        blocks = []
        for part in np.array_split(rows, len(rows) // 16_384 + 1):
            mean, sd = latents.rows(part)
            draws = mean + sd * torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
            blocks.append(module.observation.log_library(draws.to(module.device))[:, 0].exp().cpu().numpy())
        return np.concatenate(blocks)

    position = {label: code for code, label in enumerate(table.labels)}
    codes = [position[label] for label in embedding.labels]
    gain = float(module.observation.size_factor_gain)
    return embedding, CellContexts.from_table(table, expected, codes, gain, rng), latents


@torch.no_grad()
def generate_latents(
    module: GDEModule, z: np.ndarray, generator: torch.Generator, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """One latent ``(cells, n_latent)`` for each embedding ``(cells, n_embedding)``, and its expected library size."""
    module.eval()
    latents = []
    for start in range(0, len(z), chunk):
        block = torch.from_numpy(z[start : start + chunk]).to(module.device)
        latents.append(module.sample_latent(block, generator).cpu().numpy())
    u = np.concatenate(latents)
    return u, expected_library(module, u)


@torch.no_grad()
def expected_library(module: GDEModule, u: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Library sizes ``(cells,)`` expected from latents ``(cells, n_latent)``."""
    blocks = [torch.from_numpy(u[start : start + chunk]).to(module.device) for start in range(0, len(u), chunk)]
    return np.concatenate([module.observation.log_library(block)[:, 0].exp().cpu().numpy() for block in blocks])


@torch.no_grad()
def generate_rows(
    module: GDEModule,
    u: np.ndarray,
    contexts: RowContexts,
    generator: torch.Generator,
    chunk: int = 4096,
) -> np.ndarray:
    """One row ``(cells, n_vars)`` for each latent ``(cells, n_latent)`` under the context of each."""
    module.eval()
    device = module.device
    rows = []
    for start in range(0, len(u), chunk):
        part = slice(start, start + chunk)
        library, batch, categorical, continuous = (values[part] for values in contexts)
        context = make_context(library, batch, categorical, continuous, device)
        law = module.observation.decode(torch.from_numpy(u[part]).to(device), context)
        rows.append(module.observation.draw(law, generator).cpu().numpy())
    return np.concatenate(rows)


def make_context(
    library: np.ndarray, batch: np.ndarray, categorical: np.ndarray, continuous: np.ndarray, device: torch.device
) -> Context:
    """Decoder context from arrays with one row per cell."""

    def tensor(values: np.ndarray, dtype: type) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype)).to(device)

    return Context(
        library=tensor(library, np.float32)[:, None],
        batch=tensor(batch, np.int64)[:, None],
        categorical=tensor(categorical, np.int64) if categorical.shape[1] else None,
        continuous=tensor(continuous, np.float32) if continuous.shape[1] else None,
    )


def find_labels(wanted: Iterable[str], known: list[str], argument: str = "populations") -> np.ndarray:
    """Positions of labels among the known ones; an unknown one raises and names its likely spelling.

    Raises
    ------
    KeyError
        If a label is unknown.
    """
    position = {label: i for i, label in enumerate(known)}
    found = []
    for label in wanted:
        if label not in position:
            close = difflib.get_close_matches(label, known, n=3) or known[:5]
            message = f"{argument}: {label!r} is not among the {len(known)} known labels. Did you mean one of {close}?"
            raise KeyError(message)
        found.append(position[label])
    return np.array(found, dtype=np.int64)


def as_labels(populations: Any) -> list[str]:
    """Labels of one or several populations; none for a DataFrame, which holds embeddings."""
    if isinstance(populations, pd.DataFrame):
        return []
    single = isinstance(populations, str | tuple) or np.isscalar(populations)
    return [as_label(p) for p in ([populations] if single else populations)]


def resolve_populations(
    populations: Any, known: list[str], known_z: np.ndarray, *, by_label: bool, argument: str = "populations"
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels and embeddings of the asked populations, and for each the known population that lends its contexts.

    That is the one of its own label; for embeddings, unless ``by_label``, the nearest one.
    """
    if isinstance(populations, pd.DataFrame):
        expected = coordinate_names(known_z.shape[1])
        if set(expected) == set(populations.columns):
            populations = populations[expected]
        z = populations.to_numpy(dtype=np.float32)
        if z.ndim != 2 or z.shape[1] != known_z.shape[1]:
            message = f"{argument}: embeddings have {z.shape[1]} columns and the model's have {known_z.shape[1]}."
            raise ValueError(message)
        if len(z) == 0 or not np.isfinite(z).all():
            message = f"{argument}: embeddings are empty or hold NaN or infinite values."
            raise ValueError(message)
        labels = [as_label(i) for i in populations.index]
        if by_label:
            return labels, z, find_labels(labels, known, argument)
        return labels, z, np.array([int(np.square(known_z - row).sum(1).argmin()) for row in z])
    labels = as_labels(populations)
    if not labels:
        message = f"{argument} is empty; give at least one label."
        raise ValueError(message)
    found = find_labels(labels, known, argument)
    return labels, known_z[found], found
