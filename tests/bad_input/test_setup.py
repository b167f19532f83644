import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scgde


@pytest.fixture
def adata(make_cells):
    return make_cells(6, n_batches=2)


def setup(adata, *args, **kwargs):
    scgde.GDEModel.setup_anndata(adata, *args, **kwargs)


def test_missing_population_key_lists_candidates(adata):
    with pytest.raises(KeyError, match=r"'nothing'.*could be populations: \['population', 'clone', 'time'"):
        setup(adata, "nothing")


def test_default_key_that_is_absent_lists_candidates(adata):
    del adata.obs["population"]
    with pytest.raises(KeyError, match="clone"):
        setup(adata)


@pytest.mark.parametrize("key", [[], 3, ["clone", "clone"]], ids=str)
def test_keys_of_the_wrong_kind(key, adata):
    with pytest.raises((TypeError, ValueError), match="population_key"):
        setup(adata, key)


def test_all_labels_missing(adata):
    adata.obs["empty"] = np.nan
    with pytest.raises(ValueError, match="there is no population"):
        setup(adata, "empty")


def test_missing_labels_are_counted(adata, scgde_log):
    adata.obs["population"] = adata.obs["population"].astype(object)
    adata.obs.iloc[:7, adata.obs.columns.get_loc("population")] = np.nan
    setup(adata)
    assert f"7 of {adata.n_obs} cells" in scgde_log.text
    assert (adata.obs["_scvi_population"].to_numpy()[:7] == -1).all()


def test_unassigned_label(adata):
    label = adata.obs["population"].astype(str).iloc[0]
    setup(adata, unassigned=label)
    assert ((adata.obs["_scvi_population"] == -1) == (adata.obs["population"] == label)).all()


@pytest.mark.parametrize(
    ("value", "message"), [(-1.0, "negative values"), (0.5, "not integers")], ids=["negative", "fraction"]
)
@pytest.mark.parametrize("dense", [True, False])
def test_what_is_no_count(value, message, dense, adata):
    adata.X = adata.X.toarray()
    adata.X[3, 2] = value
    if not dense:
        adata.X = sp.csr_matrix(adata.X)
    setup(adata)
    with pytest.raises(ValueError, match=f"{message}.*layer="):
        scgde.GDEModel(adata)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite(value, adata):
    adata.X.data[5] = value
    with pytest.raises(ValueError, match="1 entries of the rows are NaN or infinite"):
        setup(adata)


def test_view(adata):
    with pytest.raises(ValueError, match=r"adata = adata.copy\(\)"):
        setup(adata[:50])


def test_backed(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"to_memory\(\)"):
        setup(backed)
    backed.file.close()


def test_dask(adata):
    dask = pytest.importorskip("dask.array", reason="dask is not installed")
    adata.X = dask.from_array(adata.X.toarray())
    with pytest.raises(ValueError, match=r"compute\(\)"):
        setup(adata)


def test_duplicate_genes(adata):
    adata.var_names = ["same", "same", *adata.var_names[2:]]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        setup(adata)


def test_one_population(adata):
    adata.obs["all"] = "one"
    setup(adata, "all")
    with pytest.raises(ValueError, match="at least two"):
        scgde.GDEModel(adata)


def test_no_cells(adata):
    with pytest.raises(ValueError, match="no population"):
        setup(adata[:0].copy())


def test_layer_and_obsm_key(adata):
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(ValueError, match="pass one of them"):
        setup(adata, layer="counts", obsm_key="X_true_latent")


@pytest.mark.parametrize("option", ["layer", "obsm_key", "batch_key", "size_factor_key"])
def test_absent_places(option, adata):
    with pytest.raises(KeyError, match="nothing"):
        setup(adata, **{option: "nothing"})


def test_missing_batches(adata):
    adata.obs["batch"] = adata.obs["batch"].astype(object).where(np.arange(adata.n_obs) > 3, np.nan)
    with pytest.raises(ValueError, match="'batch'.*missing values"):
        setup(adata, batch_key="batch")


@pytest.mark.parametrize("option", ["continuous_covariate_keys", "size_factor_key"])
@pytest.mark.parametrize("values", ["text", np.inf], ids=str)
def test_numbers_must_be_finite_numbers(adata, option, values):
    adata.obs["age"] = values
    with pytest.raises(ValueError, match="'age'"):
        setup(adata, **{option: ["age"] if option.endswith("s") else "age"})


def test_size_factors_must_be_positive(adata, make_model, train):
    adata.obs["size"] = 0.0
    with pytest.raises(ValueError, match="not positive"):
        train(make_model(adata, {"size_factor_key": "size"}))


def test_count_likelihood_with_continuous_rows(adata):
    setup(adata, obsm_key="X_true_latent")
    with pytest.raises(ValueError, match="'normal'"):
        scgde.GDEModel(adata, gene_likelihood="nb")


def test_covariates_with_continuous_rows(adata):
    setup(adata, obsm_key="X_true_latent", batch_key="batch")
    with pytest.raises(ValueError, match="corrected already"):
        scgde.GDEModel(adata)


def test_wide_continuous_rows(adata):
    adata.obsm["wide"] = np.random.default_rng(0).normal(size=(adata.n_obs, 400))
    setup(adata, obsm_key="wide")
    with pytest.raises(ValueError, match="principal components"):
        scgde.GDEModel(adata)


def test_column_with_a_name_of_ours(adata):
    adata.obs["gde_n_cells"] = 1
    with pytest.raises(ValueError, match="rename"):
        setup(adata)


@pytest.mark.parametrize(
    ("option", "value"),
    [("n_latent", 0), ("n_latent", 2.5), ("n_embedding", -1), ("encoder", "best"), ("generator", "gan2"),
     ("geometry", "flat"), ("gene_likelihood", "gamma"), ("dispersion", "cell")],
)  # fmt: skip
def test_model_options(option, value, adata):
    setup(adata)
    with pytest.raises(ValueError, match=f"{option}={value!r}"):
        scgde.GDEModel(adata, **{option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "max_epochs=0"),
        ({"train_size": 1.5}, "train_size=1.5"),
        ({"split_by": "gene"}, "split_by='gene'"),
        ({"populations_per_batch": 0}, "populations_per_batch=0"),
        ({"mixing": 2.0}, "mixing=2.0"),
        ({"train_size": 1.0, "early_stopping": True}, "needs validation cells"),
        ({"split_by": "population", "train_size": 0.1}, "fewer than two"),
    ],
    ids=str,
)
def test_training_options(options, message, make_cells, make_model, train):
    with pytest.raises(ValueError, match=message):
        train(make_model(make_cells(6)), **({"max_epochs": 2} | options))


def test_split_column(make_cells, make_model, train):
    adata = make_cells(6)
    adata.obs["part"] = "train"
    adata.obs.iloc[0, -1] = "holdout"
    with pytest.raises(ValueError, match="holdout"):
        train(make_model(adata), split_key="part")
    with pytest.raises(KeyError, match="nothing"):
        train(make_model(adata), split_key="nothing")


@pytest.mark.parametrize("getter", ["get_population_embedding", "get_latent_representation", "get_population_adata"])
def test_getters_of_an_untrained_model(getter, adata, make_model):
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        getattr(make_model(adata), getter)()


def test_what_a_set_model_does_not_do(trained):
    with pytest.raises(TypeError, match="get_population_embedding"):
        trained.load_query_data(trained.adata, "folder")
    with pytest.raises(TypeError, match="setup_anndata"):
        trained.setup_annbatch("collection")


@pytest.mark.parametrize("kind", ["integers", "categories", "floats", "booleans", "slashes"])
def test_labels_of_every_kind(kind, make_cells, quick_model, tmp_path):
    adata = make_cells(6)
    codes = pd.Series(pd.factorize(adata.obs["population"])[0], index=adata.obs_names)
    values = {
        "integers": codes,
        "floats": codes.astype(float).where(codes > 0, np.nan),
        "booleans": codes > 2,
        "categories": pd.Categorical(codes.astype(str), categories=[*"0123456789"]),
        "slashes": "a/b|" + codes.astype(str),
    }[kind]
    adata.obs["label"] = values
    expected = {
        "integers": [*"012345"],
        "floats": [*"12345"],
        "booleans": ["False", "True"],
        "categories": [*"012345"],
        "slashes": [f"a/b|{i}" for i in range(6)],
    }[kind]
    model = quick_model(adata, {"population_key": "label"}, {"max_epochs": 2})
    assert list(model.get_population_embedding().index) == expected
    assert model.sample(expected[0], 2).n_obs == 2
    model.embed_populations()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert list(ad.read_h5ad(tmp_path / "cells.h5ad").uns["gde"]["populations"].index) == expected


def test_empty_cells_and_genes(make_cells, quick_model):
    adata = make_cells(6)
    x = adata.X.toarray()
    x[4], x[:, 7] = 0, 0
    adata.X = sp.csr_matrix(x)
    model = quick_model(adata, train_options={"max_epochs": 3})
    assert np.isfinite(model.get_population_embedding()).all(axis=None)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.sample("clone_0|d2", 20).X.toarray()).all()


def test_populations_of_one_cell_are_allowed_with_a_warning(make_cells, make_model, train):
    adata = make_cells(exact_sizes=[1, 1, 30, 30, 30, 30])
    with pytest.warns(UserWarning, match="2 of 6 populations have one cell"):
        model = train(make_model(adata), 2)
    errors = model.get_population_standard_error()
    assert errors.isna().all(axis=1).sum() == 2
    assert np.isfinite(model.get_population_embedding()).all(axis=None)


def test_all_populations_of_one_cell(make_cells, make_model, train):
    adata = make_cells(exact_sizes=[1] * 12)
    with pytest.warns(UserWarning, match="12 of 12"):
        model = train(make_model(adata), 2, train_size=1.0)
    assert np.isfinite(model.get_population_embedding()).all(axis=None)
    assert model.sample("clone_0|d2", 3).n_obs == 3
