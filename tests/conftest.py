"""Small simulated cells and briefly trained models, shared by the tests of the model."""

import logging

import numpy as np
import pytest

import scgde

LIGHTNING = {"accelerator": "cpu", "enable_progress_bar": False}


def _make_cells(n_populations=12, sizes=(15, 40), *, design="lineage", n_genes=60, seed=0, exact_sizes=None, **options):
    """Simulated counts; ``exact_sizes`` gives the cells of each population, in the order of sorted labels."""
    if exact_sizes is not None:
        n_populations, sizes = len(exact_sizes), (max(exact_sizes),) * 2
    adata = scgde.datasets.simulate_populations(
        n_populations, cells_per_population=sizes, design=design, n_genes=n_genes, n_latent=4, seed=seed, **options
    )
    del adata.uns["simulation"]
    if exact_sizes is not None:
        labels = adata.obs["population"]
        keep = [np.flatnonzero(labels.isna())]
        for label, size in zip(sorted(labels.dropna().unique()), exact_sizes, strict=True):
            keep.append(np.flatnonzero(labels == label)[:size])
        adata = adata[np.sort(np.concatenate(keep))].copy()
    return adata


def _make_model(adata, setup=None, **options):
    """Set up ``adata`` and build a small untrained model."""
    scgde.GDEModel.setup_anndata(adata, **(setup or {}))
    return scgde.GDEModel(adata, **{"n_latent": 4, "n_embedding": 6, "n_hidden": 16} | options)


def _train(model, max_epochs=4, seed=0, **options):
    """Train briefly on the CPU and return the model."""
    model.train(max_epochs=max_epochs, seed=seed, **LIGHTNING | options)
    return model


@pytest.fixture(scope="session")
def make_cells():
    return _make_cells


@pytest.fixture(scope="session")
def make_model():
    return _make_model


@pytest.fixture(scope="session")
def train():
    return _train


@pytest.fixture(scope="session")
def quick_model():
    """A model of ``adata`` trained for a few epochs, from setup to the end of training."""

    def build(adata, setup=None, train_options=None, **options):
        return _train(_make_model(adata, setup, **options), **(train_options or {}))

    return build


@pytest.fixture(scope="session")
def trained(quick_model):
    """Populations of 1, 2, 320 and about 30 cells in two batches, with unassigned cells; nobody may change it."""
    sizes = [1, 2, 320, *range(20, 38, 2)]
    adata = _make_cells(exact_sizes=sizes, n_batches=2, unassigned_fraction=0.02)
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    return quick_model(adata, {"batch_key": "batch"})


@pytest.fixture
def scgde_log(caplog):
    """Messages logged by the package at level INFO."""
    logger = logging.getLogger("scgde")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = True
    caplog.set_level(logging.INFO, logger="scgde")
    yield caplog
    logger.setLevel(level)
    logger.propagate = propagate
