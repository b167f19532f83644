"""Simulated atlases written to disk piece by piece, of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Iterator

N_FACTORS = 8
"""Dimensions that cells differ along."""


class AtlasLaw:
    """Negative-binomial populations of a factor model: each has a mean and a spread of its own.

    Parameters
    ----------
    n_genes
        Genes.
    density
        Share of entries that are not zero, about.
    seed
        Seed of genes; populations have their own.
    """

    def __init__(self, n_genes: int = 2000, density: float = 0.1, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 0])
        self.seed = seed
        self.n_genes = n_genes
        self.baseline = rng.normal(0.0, 1.2, n_genes)
        self.loadings = rng.normal(0.0, 0.35, (N_FACTORS, n_genes))
        self.effects = rng.normal(0.0, 0.5, (100_000, N_FACTORS)).astype(np.float32)
        # total counts that leave the wanted share of zeros
        share = np.exp(self.baseline)
        share /= share.sum()
        totals = np.geomspace(10, 100 * n_genes, 60)
        filled = [1 - np.mean((1 + 0.5 * t * share) ** -2.0) for t in totals]
        self.depth = float(np.interp(density, filled, totals))

    def cells(self, mean: np.ndarray, sd: np.ndarray, n: int, rng: np.random.Generator) -> sp.csr_matrix:
        """Counts of ``n`` cells of a population, ``(n, n_genes)``."""
        u = mean + sd * rng.normal(size=(n, N_FACTORS))
        logits = (u @ self.loadings + self.baseline).astype(np.float32)
        mu = np.exp(logits - logits.max(1, keepdims=True))
        mu *= (self.depth * rng.lognormal(0.0, 0.3, (n, 1)) / mu.sum(1, keepdims=True)).astype(np.float32)
        mu *= rng.standard_gamma(2.0, mu.shape, dtype=np.float32) / 2.0
        return sp.csr_matrix(rng.poisson(mu).astype(np.float32))

    def population(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviations, ``(N_FACTORS,)`` each, of a population."""
        rng = np.random.default_rng([self.seed, 1, number])
        return rng.normal(0.0, 1.0, N_FACTORS), rng.uniform(0.4, 1.2, N_FACTORS)


def atlas_pieces(
    law: AtlasLaw, n_populations: int, cells_per_population: int, n_pieces: int, *, contexts: int = 0
) -> Iterator[AnnData]:
    """Pieces of an atlas, each with its share of the populations; those at the border of two pieces are in both.

    With ``contexts`` populations are perturbations in contexts: number ``p * contexts + c`` is perturbation ``p`` (0: the
    control) in context ``c``, whose mean is that of the context and a shift that the contexts share.
    """
    bounds = np.linspace(0, n_populations * cells_per_population, n_pieces + 1).astype(int)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        numbers = np.arange(start // cells_per_population, -(-stop // cells_per_population))
        blocks, labels = [], []
        for number in numbers:
            first = max(start, number * cells_per_population)
            n = min(stop, (number + 1) * cells_per_population) - first
            rng = np.random.default_rng([law.seed, 2, number, first])
            mean, sd = law.population(number if not contexts else 1_000_000 + number % contexts)
            if contexts and number >= contexts:
                mean = mean + law.effects[number // contexts]
            blocks.append(law.cells(mean, sd, n, rng))
            labels += [number] * n
        codes = np.array(labels)
        obs = pd.DataFrame(index=[f"cell{i}" for i in range(start, stop)])
        if contexts:
            perturbation = np.where(codes < contexts, "control", np.char.add("p", (codes // contexts).astype(str)))
            obs["perturbation"] = pd.Categorical(perturbation)
            obs["context"] = pd.Categorical(np.char.add("c", (codes % contexts).astype(str)))
        else:
            obs["population"] = pd.Categorical(np.char.add("pop", np.char.zfill(codes.astype(str), 5)))
        obs["donor"] = pd.Categorical(np.char.add("d", (np.arange(start, stop) % 4).astype(str)))
        rows = sp.vstack(blocks, format="csr")
        # cells of an experiment come in no order
        order = np.random.default_rng([law.seed, 3, start]).permutation(len(codes))
        yield AnnData(rows[order], obs=obs.iloc[order], var=pd.DataFrame(index=[f"g{i}" for i in range(law.n_genes)]))


def write_pieces(folder: Path, pieces: Iterator[AnnData], stem: str = "piece") -> list[Path]:
    """Write pieces as ``.h5ad`` files; those that are there already are left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, piece in enumerate(pieces):
        path = folder / f"{stem}{i:03d}.h5ad"
        piece.write_h5ad(path)
        paths.append(path)
    return paths
