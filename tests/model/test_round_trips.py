"""What one method returns must be accepted by the next, whatever the setup."""

import random
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi

import scgde
from scgde.data.cells import locate_matrix

QUICK = {"max_epochs": 2}


@pytest.fixture
def rich_cells(make_cells):
    """Cells with everything that a setup may name."""
    adata = make_cells(6, n_batches=2)
    total = np.asarray(adata.X.sum(1)).ravel()
    adata.layers["counts"] = adata.X.copy()
    adata.obs["size"], adata.obs["age"] = total / total.mean(), np.linspace(0, 1, adata.n_obs)
    adata.obsm["X_rows"] = np.asarray(adata.obsm["X_true_latent"], dtype=np.float32)
    return adata


SETUPS = {
    "plain": {},
    "layer": {"layer": "counts"},
    "batch": {"batch_key": "batch"},
    "size factor": {"size_factor_key": "size"},
    "covariates": {"categorical_covariate_keys": ["batch"], "continuous_covariate_keys": ["age"]},
    "crossed": {"population_key": ["clone", "time"]},
    "obsm": {"obsm_key": "X_rows"},
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_samples_are_embedded_like_any_other_cells(setup, rich_cells, quick_model):
    model = quick_model(rich_cells, setup, QUICK)
    z = model.get_population_embedding()
    again = model.get_population_embedding(model.sample(z.index[:3], 30, seed=0))
    assert sorted(again.index) == sorted(z.index[:3]) and np.isfinite(again).all(axis=None)


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_models_of_every_setup_are_the_same_after_loading(setup, rich_cells, quick_model, tmp_path):
    model = quick_model(rich_cells, setup, QUICK)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = scgde.GDEModel.load(tmp_path / "model", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_population_embedding(), model.get_population_embedding())
    label = model.get_population_embedding().index[0]
    one, two = (np.asarray(sp.csr_matrix(m.sample(label, 5, seed=1).X).todense()) for m in (model, loaded))
    np.testing.assert_array_equal(one, two)


def test_samples_are_written_and_read(trained, tmp_path):
    cells = trained.sample(trained.get_population_embedding().index[3:5], 4, seed=0)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (back.X != cells.X).nnz == 0 and list(back.obs) == list(cells.obs)


def test_embeddings_read_back_from_disk_can_be_sampled(trained, tmp_path):
    adata = trained.adata.copy()
    trained.embed_populations(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    frame = ad.read_h5ad(tmp_path / "cells.h5ad").uns["gde"]["populations"]
    by_frame, by_label = (trained.sample(p, 3, seed=0) for p in (frame.iloc[[4]], frame.index[4]))
    assert (by_frame.X != by_label.X).nnz == 0


def test_loading_with_reordered_genes(trained, tmp_path):
    trained.save(tmp_path / "model")
    order = np.random.default_rng(0).permutation(trained.adata.n_vars)
    loaded = scgde.GDEModel.load(tmp_path / "model", trained.adata[:, order].copy(), accelerator="cpu")
    np.testing.assert_allclose(loaded.get_population_embedding(), trained.get_population_embedding(), atol=1e-5)


def test_loading_with_renamed_genes_is_refused(trained, tmp_path):
    trained.save(tmp_path / "model")
    renamed = trained.adata.copy()
    renamed.var_names = [f"mouse_{g}" for g in renamed.var_names]
    with pytest.raises(ValueError, match="60 genes are missing.*gene_0"):
        scgde.GDEModel.load(tmp_path / "model", renamed, accelerator="cpu").get_population_embedding()


def test_a_loaded_model_can_be_trained_further_and_saved_again(trained, train, tmp_path):
    trained.save(tmp_path / "model")
    loaded = scgde.GDEModel.load(tmp_path / "model", trained.adata.copy(), accelerator="cpu")
    train(loaded, 2)
    loaded.save(tmp_path / "again")
    back = scgde.GDEModel.load(tmp_path / "again", loaded.adata.copy(), accelerator="cpu")
    np.testing.assert_array_equal(back.get_population_embedding(), loaded.get_population_embedding())
    assert np.abs(loaded.get_population_embedding() - trained.get_population_embedding()).max(axis=None) > 0


def test_an_untrained_model_can_be_saved(make_cells, make_model, tmp_path):
    adata = make_cells(6)
    make_model(adata).save(tmp_path / "model")
    loaded = scgde.GDEModel.load(tmp_path / "model", adata, accelerator="cpu")
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        loaded.get_population_embedding()


def test_prepared_queries_keep_what_belongs_to_cells(trained):
    query = trained.adata[:, 5:].copy()
    query.obsm["X_mine"], query.uns["mine"] = np.ones((query.n_obs, 2)), {"a": 1}
    query.obsp["mine"] = sp.identity(query.n_obs, format="csr")
    prepared = scgde.GDEModel.prepare_query_anndata(query, trained, inplace=False)
    assert "X_mine" in prepared.obsm and prepared.uns["mine"] == {"a": 1}
    assert "mine" in prepared.obsp
    pd.testing.assert_frame_equal(prepared.obs, query.obs)


def test_boolean_indices_are_a_mask(trained):
    mask = (trained.adata.obs["batch"] == "batch_0").to_numpy()
    masked, listed = (trained.get_population_embedding(indices=i) for i in (mask, np.flatnonzero(mask)))
    pd.testing.assert_frame_equal(masked, listed)
    assert trained.get_cell_embedding(indices=mask).shape[0] == mask.sum()


def test_training_for_one_epoch_gives_a_usable_model(make_cells, quick_model):
    model = quick_model(make_cells(6), train_options={"max_epochs": 1})
    assert np.isfinite(model.get_population_embedding()).all(axis=None)
    assert model.sample(model.get_population_embedding().index[0], 3).n_obs == 3


def test_global_seed_of_scvi_tools_is_the_default(make_cells, quick_model):
    try:
        embeddings = []
        for seed in (7, 7, 8):
            scvi.settings.seed = seed
            model = quick_model(make_cells(6), train_options=QUICK | {"seed": None})
            embeddings.append(model.get_population_embedding().to_numpy())
            if seed == 7:
                samples = [model.sample("clone_0|d2", 3).X.toarray() for _ in range(2)]
                assert np.array_equal(*samples)
    finally:
        scvi.settings._seed = None  # the setter has no way back
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    assert np.abs(embeddings[0] - embeddings[2]).max() > 1e-3


def test_without_a_seed_models_and_samples_differ(make_cells, quick_model):
    random.seed(0)
    state = random.getstate()
    one, two = (quick_model(make_cells(6), train_options=QUICK | {"seed": None}) for _ in range(2))
    assert np.abs(one.get_population_embedding() - two.get_population_embedding()).max(axis=None) > 1e-3
    assert (one.sample("clone_0|d2", 5).X != one.sample("clone_0|d2", 5).X).nnz > 0
    assert random.getstate() == state


def test_continuous_rows_in_x_generate_floats(rich_cells, quick_model):
    adata = ad.AnnData(rich_cells.obsm["X_rows"], obs=rich_cells.obs[["population"]].copy())
    model = quick_model(adata, {}, QUICK, gene_likelihood="normal")
    cells = model.sample(model.get_population_embedding().index[:2], 20, seed=0)
    assert cells.X.dtype.kind == "f" and (cells.X != np.round(cells.X)).any() and cells.n_vars == adata.n_vars


def test_continuous_rows_have_no_library_size(rich_cells, quick_model):
    model = quick_model(rich_cells, SETUPS["obsm"], QUICK)
    obs = model.sample(model.get_population_embedding().index[0], 20, seed=0).obs
    assert "gde_library_size" not in obs or (obs["gde_library_size"] == 1).all()


class Lazy:
    """An array that is not in memory."""

    shape, dtype = (5, 3), np.dtype("float32")


@pytest.mark.parametrize("place", ["X", "layer", "obsm"])
def test_lazy_arrays_name_their_place_and_the_remedy(place):
    adata = SimpleNamespace(isbacked=False, X=Lazy(), layers={"counts": Lazy()}, obsm={"rows": Lazy()})
    arguments = {"X": (None, None), "layer": ("counts", None), "obsm": (None, "rows")}[place]
    where = {"X": r"adata\.X", "layer": r"adata\.layers\['counts'\]", "obsm": r"adata\.obsm\['rows'\]"}[place]
    with pytest.raises(ValueError, match=rf"{where} is a .*Lazy, which is not in memory.*compute\(\)"):
        locate_matrix(adata, *arguments)


def test_setup_is_shown_in_a_fresh_interpreter(tmp_path):
    code = """
        import scgde
        adata = scgde.datasets.simulate_populations(6, cells_per_population=(5, 9), n_genes=20)
        scgde.GDEModel.setup_anndata(adata)
        scgde.GDEModel(adata).view_anndata_setup()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0 and "Populations" in done.stdout, done.stderr[-1000:]
