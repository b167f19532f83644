import warnings

import numpy as np
import pytest

import scgde


@pytest.fixture
def query(trained):
    """The training cells as if they came from elsewhere."""
    adata = trained.adata.copy()
    adata.obs = adata.obs[["population", "batch"]].copy()
    adata.uns.clear()
    return adata


@pytest.fixture(scope="module")
def expected(trained):
    return trained.get_population_embedding()


def test_reordered_genes(trained, query, expected):
    shuffled = query[:, np.random.default_rng(0).permutation(query.n_vars)].copy()
    np.testing.assert_allclose(trained.get_population_embedding(shuffled), expected, atol=1e-6)
    assert list(shuffled.obs) == ["population", "batch"] and not shuffled.uns


def test_extra_genes(trained, query, expected):
    wide = scgde.datasets.simulate_populations(6, n_genes=80)[: query.n_obs]
    import anndata as ad

    extra = ad.AnnData(X=np.ones((query.n_obs, 3), dtype=np.float32), obs=query.obs.copy())
    extra.var_names = ["x", "y", "z"]
    joint = ad.concat([extra, query], axis=1, merge="same")
    assert joint.n_vars == query.n_vars + 3 and wide.n_vars == 80
    np.testing.assert_allclose(trained.get_population_embedding(joint), expected, atol=1e-6)


def test_view_as_a_query(trained, query, expected):
    np.testing.assert_allclose(trained.get_population_embedding(query[:]), expected, atol=1e-6)


def test_missing_and_renamed_genes_are_listed(trained, query):
    with pytest.raises(ValueError, match=r"1 of the model's 60 genes are missing.*gene_0.*prepare_query_anndata"):
        trained.get_population_embedding(query[:, 1:].copy())
    query.var_names = [f"mouse_{g}" for g in query.var_names]
    with pytest.raises(ValueError, match="60 of the model's 60 genes are missing"):
        trained.get_population_embedding(query)
    with pytest.raises(ValueError, match="None of the model's 60 genes"):
        scgde.GDEModel.prepare_query_anndata(query, trained)


def test_missing_genes_are_filled_on_request(trained, query, tmp_path):
    part = query[:, 3:].copy()
    part.layers["copy"] = part.X.copy()
    filled = scgde.GDEModel.prepare_query_anndata(part, trained, inplace=False)
    assert list(filled.var_names) == list(trained.adata.var_names) and part.n_vars == 57
    assert filled[:, :3].X.sum() == 0 and (filled[:, 3:].X != part.X).nnz == 0
    assert (filled.layers["copy"] != filled.X).nnz == 0
    trained.save(tmp_path / "m")
    assert scgde.GDEModel.prepare_query_anndata(part, tmp_path / "m") is None
    assert part.n_vars == 60
    np.testing.assert_array_equal(trained.get_population_embedding(part), trained.get_population_embedding(filled))
    names = scgde.GDEModel.prepare_query_anndata(part, trained, return_reference_var_names=True)
    assert list(names) == list(trained.adata.var_names)


def test_few_shared_genes_warn(trained, query):
    with pytest.warns(UserWarning, match="Only 50%"):
        scgde.GDEModel.prepare_query_anndata(query[:, :30].copy(), trained)


def test_unseen_batch_is_embedded_with_one_warning_and_not_decoded(trained, query, expected):
    query.obs["batch"] = "new"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embedding = trained.get_population_embedding(query)
    assert sum("batches the model was not trained with" in str(w.message) for w in caught) == 1
    np.testing.assert_allclose(embedding, expected, atol=1e-6)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="batch="):
        trained.get_normalized_expression(query)
    with pytest.warns(UserWarning):
        decoded = trained.get_normalized_expression(query, transform_batch="batch_0")
    assert np.isfinite(decoded).all(axis=None)


def test_negative_counts_in_a_query(trained, query):
    query.X.data[0] = -2
    with pytest.raises(ValueError, match="negative"):
        trained.get_population_embedding(query)


def test_query_without_the_key(trained, query):
    del query.obs["population"]
    with pytest.raises(KeyError, match="population"):
        trained.get_population_embedding(query)


def test_query_without_assigned_cells(trained, query):
    query.obs["population"] = np.nan
    with pytest.raises(ValueError, match="None of the given cells"):
        trained.get_population_embedding(query)


def test_query_of_one_population(trained, query):
    label = query.obs["population"].value_counts().index[0]
    one = query[query.obs["population"] == label].copy()
    assert list(trained.get_population_embedding(one).index) == [label]
    assert trained.get_population_distances(one).shape == (1, 1)


@pytest.mark.parametrize("call", ["sample", "distances"])
def test_unknown_population_suggests_a_spelling(call, trained, expected):
    label = expected.index[3]
    wrong = label + "x"
    with pytest.raises(KeyError, match=f"{label.replace('|', '.')}"):
        trained.sample(wrong, 3) if call == "sample" else trained.get_population_distances(populations=[wrong])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_cells": 0}, ValueError, "n_cells=0"),
        ({"n_cells": 2.5}, ValueError, "n_cells=2.5"),
        ({"library_size": -1}, ValueError, "library_size=-1"),
        ({"library_size": np.nan}, ValueError, "library_size"),
        ({"batch": "nothing"}, KeyError, "batch_0"),
        ({"populations": []}, ValueError, "at least one"),
    ],
    ids=str,
)
def test_sampling_options(options, error, message, trained, expected):
    arguments = {"populations": expected.index[3], "n_cells": 3} | options
    with pytest.raises(error, match=message):
        trained.sample(**arguments)


def test_embeddings_of_the_wrong_shape(trained, expected):
    with pytest.raises(ValueError, match="have 2 columns"):
        trained.sample(expected.iloc[:, :2], 3)
    broken = expected.copy()
    broken.iloc[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        trained.sample(broken, 3)


def test_other_arguments(trained):
    with pytest.raises(ValueError, match="metric='cosine'"):
        trained.get_population_distances(metric="cosine")
    with pytest.raises(ValueError, match="return_std"):
        trained.get_population_distances(metric="wasserstein", return_std=True)
    with pytest.raises(ValueError, match="bias_correction=True"):
        trained.get_population_distances(metric="wasserstein", bias_correction=True)
    with pytest.raises(KeyError, match="gene_list"):
        trained.get_normalized_expression(gene_list=["nothing"])
    with pytest.raises(ValueError, match="view"):
        trained.embed_populations(trained.adata[:50])
