"""An atlas on disk, a model of it, and a cluster of two processes that all tests share."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgde

SMALL = {"n_latent": 4, "n_embedding": 6, "n_hidden": 16}
LIGHTNING = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="package")
def store(tmp_path_factory, make_cells):
    """Populations of 1, 2, 400 and about 30 cells, some cells in none; labels that are not in the order of a model's."""
    adata = make_cells(exact_sizes=[1, 2, 400, *range(20, 50, 2)], n_batches=2, unassigned_fraction=0.05)
    labels = adata.obs["population"].astype(str).where(adata.obs["population"].notna(), None)
    number = {label: i for i, label in enumerate(sorted(labels.dropna().unique()))}
    adata.obs["tissue"] = pd.Categorical(["liver" if number.get(x, 0) % 2 else "lung" for x in labels])
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    path = tmp_path_factory.mktemp("atlas") / "atlas.zarr"
    scgde.pp.write_populations(adata, path, progress=False)
    return path


@pytest.fixture(scope="package")
def model(store):
    """Trained on all populations but three, so that those have codes after the others."""
    adata = ad.read_zarr(store)
    train = adata[~adata.obs["population"].isin(["clone_0|d6", "clone_1|d2", "clone_4|d4"]).to_numpy()].copy()
    train = train[:, np.random.default_rng(0).permutation(train.n_vars)].copy()
    scgde.GDEModel.setup_anndata(train, batch_key="batch")
    model = scgde.GDEModel(train, **SMALL)
    model.train(4, seed=0, **LIGHTNING)
    return model


@pytest.fixture(scope="package")
def screen_store(tmp_path_factory):
    adata = scgde.datasets.simulate_screen(
        6, 8, n_contexts=3, n_genes=60, n_latent=4, cells_per_population=(20, 30), control_cells=60, seed=1
    )
    del adata.uns["simulation"]
    path = tmp_path_factory.mktemp("screen") / "screen.zarr"
    scgde.pp.write_populations(adata[adata.obs["population"] != "context_2|p0"].copy(), path, progress=False)
    return path


@pytest.fixture(scope="package")
def predictor(screen_store):
    model = scgde.GDEModel(scgde.GDEModel.setup_zarr(screen_store), n_latent=5, n_embedding=12, n_hidden=16)
    model.train(4, seed=0, **LIGHTNING)
    return scgde.PerturbationPredictor(model, "perturbation", "control", "context").fit()


@pytest.fixture(scope="package")
def client():
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'scgde[cluster]'")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options, silence_logs=logging.CRITICAL) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client
