"""Groups of populations as distributions of populations."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import scgde


def make_patients(seed=0, n_patients=12, n_clones=12, n_cells=25):
    """Continuous cells of clones of patients; patients differ in the centre of their clones, and every other one in their spread."""
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(0, 1.5, (n_patients // 2, 4)), 2, axis=0)
    spread = np.tile([0.4, 2.0], n_patients // 2)
    clone = centre[:, None] + spread[:, None, None] * rng.normal(size=(n_patients, n_clones, 4))
    x = clone[:, :, None] + 0.5 * rng.normal(size=(n_patients, n_clones, n_cells, 4))
    obs = pd.DataFrame(
        {
            "patient": np.repeat([f"patient_{i}" for i in range(n_patients)], n_clones * n_cells),
            "clone": np.tile(np.repeat([f"clone_{j}" for j in range(n_clones)], n_cells), n_patients),
        }
    )
    obs["spread"] = np.repeat(["narrow", "wide"] * (n_patients // 2), n_clones * n_cells)
    obs["cell_half"] = np.where(np.arange(len(obs)) % 2, "a", "b")
    obs.index = [f"cell_{seed}_{i}" for i in range(len(obs))]
    cells = ad.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)
    cells.obsm["markers"] = x.reshape(-1, 4).astype(np.float32)
    return cells, clone.mean(1), spread


@pytest.fixture(scope="module")
def patients():
    return make_patients()


@pytest.fixture(scope="module")
def model(patients):
    cells = patients[0]
    scgde.GDEModel.setup_anndata(cells, population_key=["patient", "clone"], obsm_key="markers")
    model = scgde.GDEModel(cells, n_embedding=16)
    model.train(max_epochs=10, seed=0, accelerator="cpu", enable_progress_bar=False)
    return model


class TestGroups:
    """Distances, weights and queries."""

    def test_distances_are_those_of_distributions_of_populations(self, model):
        groups = model.get_group_embedding("patient")
        population = model.get_population_adata()
        patient = population.obs["patient"].astype(str).to_numpy()
        names = list(groups.index)
        found, exact = [], []
        for i, a in enumerate(names):
            for b in names[:i]:
                found.append(np.linalg.norm(groups.loc[a] - groups.loc[b]))
                exact.append(scgde.ot.wasserstein(population.X[patient == a], population.X[patient == b]))
        assert spearmanr(found, exact)[0] > 0.9
        assert np.median(np.array(found) / exact) == pytest.approx(1.0, abs=0.2)

    def test_spread_of_clones_is_told_from_their_mean(self, model, patients):
        groups = model.get_group_embedding("patient")
        spread = pd.Series(patients[2], index=[f"patient_{i}" for i in range(12)]).loc[groups.index]
        x, y = groups.to_numpy(dtype=np.float64), (spread > 1).to_numpy(dtype=np.float64)
        centred = x - x.mean(0)
        # one direction of the embedding parts narrow from wide patients
        axis = centred[y == 1].mean(0) - centred[y == 0].mean(0)
        score = centred @ axis
        assert score[y == 1].min() > score[y == 0].max()

    def test_order_of_populations_has_no_meaning(self, model, patients):
        shuffled = patients[0][np.random.default_rng(0).permutation(patients[0].n_obs)].copy()
        one, other = model.get_group_embedding("patient"), model.get_group_embedding("patient", shuffled)
        assert other.loc[one.index].to_numpy() == pytest.approx(one.to_numpy(), abs=1e-4)
        assert one.attrs["n_populations"] == [12] * 12

    def test_new_groups_are_embedded_on_the_same_axes(self, model, patients):
        fresh = make_patients(seed=1)[0]
        fresh.obs["patient"] = fresh.obs["patient"].str.replace("patient", "new")
        both = ad.concat([patients[0], fresh], merge="same")
        apart, joined = model.get_group_embedding("patient", fresh), model.get_group_embedding("patient", both)
        assert joined.loc[apart.index].to_numpy() == pytest.approx(apart.to_numpy(), abs=1e-4)

    def test_populations_weigh_by_cells_where_that_is_asked_for(self, model, patients):
        few = patients[0][(patients[0].obs["clone"] != "clone_0") | (np.arange(patients[0].n_obs) % 5 == 0)].copy()
        equal, cells = (model.get_group_embedding("patient", few, weights=w) for w in ("equal", "cells"))
        assert np.abs(equal - cells).to_numpy().max() > 0.01
        equal, cells = (model.get_group_embedding("patient", weights=w) for w in ("equal", "cells"))
        assert equal.to_numpy() == pytest.approx(cells.to_numpy(), abs=1e-5)

    def test_crossed_and_coarser_groups(self, model):
        assert list(model.get_group_embedding("spread").index) == ["narrow", "wide"]
        assert model.get_group_embedding(["spread", "patient"]).shape[0] == 12
        assert model.get_group_embedding("patient", n_components=2).shape == (12, 5)

    def test_input_that_cannot_be(self, model, patients):
        with pytest.raises(KeyError, match="hospital"):
            model.get_group_embedding("hospital")
        with pytest.raises(ValueError, match="varies within"):
            model.get_group_embedding("cell_half")
        with pytest.raises(ValueError, match="weights="):
            model.get_group_embedding("patient", weights="n")
        with pytest.raises(ValueError, match="n_components=0"):
            model.get_group_embedding("patient", n_components=0)
        with pytest.raises(ValueError, match="at least two"):
            patients[0].obs["one"] = "all"
            model.get_group_embedding("one")
