"""A small screen in three contexts, and a predictor of it with held-out populations."""

import numpy as np
import pytest

import scgde

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
HELD = ["context_2|p0", "context_0|p0+p2"]
"""One perturbation and one combination that are missing from one context; p1 is seen nowhere, and p0+p4 is no combination of the screen."""


@pytest.fixture(scope="session")
def screen():
    adata = scgde.datasets.simulate_screen(
        6, 8, n_contexts=3, n_genes=60, n_latent=4, cells_per_population=(20, 30), control_cells=60, seed=1
    )
    adata.obs["mode"] = "crispr"
    adata.obs["varying"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    return adata


@pytest.fixture(scope="session")
def split(screen):
    """Training cells and held-out cells."""
    held = screen.obs["population"].isin(HELD).to_numpy() | screen.obs["perturbation"].str.contains("p1").to_numpy()
    return screen[~held].copy(), screen[held].copy()


@pytest.fixture(scope="session")
def features(screen):
    import pandas as pd

    truth = screen.uns["simulation"]
    x = np.eye(8)[truth["pathway"]] * truth["strength"][:, None]
    return pd.DataFrame(x, index=truth["perturbations"])


@pytest.fixture(scope="session")
def model(split, quick_model):
    return quick_model(split[0], n_latent=5, n_embedding=20, train_options={"max_epochs": 20})


@pytest.fixture(scope="session")
def predictor(model, features):
    return scgde.PerturbationPredictor(model, features=features, **KEYS).fit()
