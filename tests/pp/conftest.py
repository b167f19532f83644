"""Cells with columns of every kind, and how they are written and compared."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scgde
from scgde.data import _sorting, _store

GENES = [f"gene_{i}" for i in range(40)]


def _cells(n=300, seed=0, *, prefix="cell", labels="abcdefg", real=False):
    """Sparse counts with populations of all sizes, some cells in none, and a column of each kind."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(len(labels) + 1))
    population = rng.choice([*labels, None], n, p=share)
    matrix = rng.poisson(0.4, (n, len(GENES))).astype(np.float32)
    if real:
        matrix = matrix * rng.normal(size=matrix.shape).astype(np.float32)
    obs = pd.DataFrame(
        {
            "population": population,
            "batch": pd.Categorical(rng.choice(["y", "x"], n), categories=["y", "x"]),
            "plate": pd.Categorical(rng.choice([3, 1], n)),
            "time": rng.choice(["d2", "d4"], n),
            "depth": matrix.sum(1),
            "age": np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 9, n)),
            "count": rng.integers(0, 9, n),
            "good": rng.random(n) < 0.5,
            "doublet": False,  # chunks of nothing but the fill value
        },
        index=[f"{prefix}_{i}" for i in range(n)],
    )
    obs.loc[obs.index[0], "population"] = labels[0]
    return ad.AnnData(sp.csr_matrix(matrix), obs, pd.DataFrame(index=GENES))


def _write(adata, path, *args, **options):
    scgde.pp.write_populations(adata, path, *args, **{"progress": False, "memory": 10_000_000} | options)
    return ad.read_zarr(path)


def _contents(folder):
    """Bytes of every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks and shards so small that little data has many, and blocks and buckets of about hundred cells."""
    monkeypatch.setattr(_store, "CHUNK_ENTRIES", 100)
    monkeypatch.setattr(_store, "CHUNK_CELLS", 25)
    monkeypatch.setattr(_store, "SHARD_CHUNKS", 5)
    monkeypatch.setattr(_sorting, "MAX_ENTRIES", 2000)


@pytest.fixture(scope="session")
def cells():
    return _cells


@pytest.fixture(scope="session")
def write():
    return _write


@pytest.fixture(scope="session")
def contents():
    return _contents
