import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from sparse import GCXS

import scgde


@pytest.fixture(scope="module")
def labels(trained):
    return list(trained.get_population_embedding().index)


def test_samples_are_counts_of_the_asked_populations(trained, labels):
    cells = trained.sample(labels[3:6], 7, seed=0)
    assert cells.shape == (21, trained.adata.n_vars) and list(cells.var_names) == list(trained.adata.var_names)
    assert cells.obs["gde_population"].tolist() == list(np.repeat(labels[3:6], 7))
    assert (cells.X.data == np.round(cells.X.data)).all() and cells.X.min() == 0
    assert np.isfinite(trained.get_population_embedding(cells)).all(axis=None)


def test_sampling_is_repeatable_and_seeds_differ(trained, labels):
    one, two, three = (trained.sample(labels[3], 5, seed=s).X.toarray() for s in (1, 1, 2))
    assert (one == two).all() and (one != three).any()


def test_library_size_sets_the_total(trained, labels):
    cells = trained.sample(labels[2], 400, library_size=500.0, seed=0)
    # a total of negative binomials is over-dispersed: ten percent is several standard errors of its mean
    assert float(cells.X.sum(1).mean()) == pytest.approx(500, rel=0.1)
    own = trained.sample(labels[2], 400, seed=0).X.sum(1).mean()
    real = trained.adata[trained.adata.obs["population"] == labels[2]].X.sum(1).mean()
    assert float(own) == pytest.approx(float(real), rel=0.2)


def test_batches_are_the_populations_own_or_the_asked_one(trained, labels):
    assert set(trained.sample(labels[2], 50, seed=0).obs["batch"]) == {"batch_0", "batch_1"}
    assert set(trained.sample(labels[2], 50, batch="batch_1").obs["batch"]) == {"batch_1"}


def test_populations_of_a_query_keep_their_own_depth_and_embedding(trained, labels):
    query = trained.adata[trained.adata.obs["population"].isin(labels[:2])].copy()
    query.obs["population"] = query.obs["population"].astype(str).replace({labels[0]: "new", labels[1]: "other"})
    query.X = query.X * 4  # sequenced four times deeper, a depth that no training population has
    cells = trained.sample(["new"], 300, adata=query, seed=0)
    assert set(cells.obs["gde_population"]) == {"new"} and set(cells.obs["population"]) == {"new"}
    deep = query[query.obs["population"] == "new"].X.sum(1).mean()
    assert float(cells.X.sum(1).mean()) == pytest.approx(float(deep), rel=0.2)
    z = trained.get_population_embedding(query)
    by_frame = trained.sample(z.loc[["new"]], 300, adata=query, seed=0)
    assert (by_frame.X != cells.X).nnz == 0
    with pytest.raises(KeyError, match="not among the 2 known"):
        trained.sample(labels[0], 3, adata=query)
    with pytest.raises(KeyError, match="not among the 2 known"):
        trained.sample(z.rename(index={"new": "unheard"}), 3, adata=query)


def test_a_query_of_one_cell_is_embedded_and_sampled(trained, labels):
    query = trained.adata[np.flatnonzero(trained.adata.obs["population"] == labels[3])[:1]].copy()
    assert np.isfinite(trained.get_population_embedding(query).to_numpy()).all()
    assert trained.sample(labels[3], 4, adata=query, seed=0).n_obs == 4


def test_populations_of_an_unseen_batch_ask_for_a_batch(trained, labels):
    query = trained.adata[trained.adata.obs["population"] == labels[0]].copy()
    query.obs["batch"] = "later"
    with pytest.warns(UserWarning, match="later"), pytest.raises(ValueError, match="Pass batch= one of"):
        trained.sample(labels[0], 3, adata=query)
    with pytest.warns(UserWarning, match="later"):
        cells = trained.sample(labels[0], 3, adata=query, batch="batch_1")
    assert set(cells.obs["batch"]) == {"batch_1"}


def test_embeddings_and_tuples_name_populations(make_cells, quick_model):
    model = quick_model(make_cells(6), {"population_key": ["clone", "time"]}, {"max_epochs": 2})
    z = model.get_population_embedding()
    parts = tuple(z.index[0].split("|"))
    by_tuple, by_label = (model.sample(p, 4, seed=0) for p in (parts, z.index[0]))
    assert (by_tuple.X != by_label.X).nnz == 0
    assert set(by_tuple.obs["clone"]) == {parts[0]} and set(by_tuple.obs["time"]) == {parts[1]}
    middle = pd.DataFrame([(z.iloc[0] + z.iloc[1]) / 2], index=["between"])
    cells = model.sample(middle, 4, seed=0)
    assert cells.n_obs == 4 and set(cells.obs["gde_population"]) == {"between"}
    assert list(model.get_population_distances(populations=[parts]).index) == [z.index[0]]


def test_generated_populations_resemble_their_own(make_model, train):
    adata = scgde.datasets.simulate_populations(
        12, design="independent", cells_per_population=(80, 100), n_genes=60, n_latent=3, seed=0
    )
    model = train(make_model(adata, n_embedding=16, n_hidden=64), 60)
    labels = list(model.get_population_embedding().index)
    made = model.sample(labels, 200, seed=0)
    again = model.get_population_embedding(made).loc[labels].to_numpy()
    z = model.get_population_embedding().loc[labels].to_numpy()
    distance = np.linalg.norm(again[:, None] - z[None], axis=-1)
    own = np.diag(distance)
    others = (distance.sum() - own.sum()) / (distance.size - len(own))
    # what the embedding of 90 cells and of 200 cells of one law differ by, against distances between laws
    assert own.mean() < 0.4 * others
    losses = model.history["elbo_train"].dropna().to_numpy(dtype=float)
    assert losses[-1] < losses[0] - 1


def test_normalized_expression(trained):
    rows = [0, 5, 9]
    frame = trained.get_normalized_expression(indices=rows, library_size=1e4)
    assert list(frame.index) == list(trained.adata.obs_names[rows])
    np.testing.assert_allclose(frame.sum(axis=1), 1e4, rtol=1e-4)
    genes = list(trained.adata.var_names[[4, 2]])
    part = trained.get_normalized_expression(indices=rows, library_size=1e4, gene_list=genes)
    np.testing.assert_allclose(part, frame[genes], rtol=1e-5)
    own = trained.get_normalized_expression(indices=rows, library_size="latent", return_numpy=True)
    np.testing.assert_allclose(own.sum(1), np.asarray(trained.adata[rows].X.sum(1)).ravel(), rtol=1e-4)
    a, b = (trained.get_normalized_expression(indices=rows, transform_batch=f"batch_{i}") for i in (0, 1))
    assert np.abs(a - b).max(axis=None) > 0
    draws = trained.get_normalized_expression(indices=rows, n_samples=3, return_mean=False, seed=0)
    assert draws.shape == (3, 3, trained.adata.n_vars) and np.ptp(draws, axis=0).max() > 0


def test_posterior_predictive_samples(trained):
    one = trained.posterior_predictive_sample(indices=range(6), seed=0)
    three = trained.posterior_predictive_sample(
        indices=range(6), n_samples=3, gene_list=trained.adata.var_names[:5], seed=0
    )
    assert isinstance(one, GCXS) and one.shape == (6, trained.adata.n_vars) and three.shape == (6, 5, 3)
    values = three.todense()
    assert (values == np.round(values)).all() and (values >= 0).all()


def test_depth_and_state_of_generated_cells_go_together(make_model, train):
    # cells of high depth express the first half of the genes, cells of low depth the second
    rng = np.random.default_rng(0)
    deep = rng.random(1200) < 0.5
    profile = np.where(deep[:, None] == (np.arange(20) < 10), 1.0, 0.05)
    counts = rng.poisson(profile / profile.sum(1, keepdims=True) * np.where(deep, 400, 100)[:, None])
    labels = np.repeat(["a", "b", "c"], 400)
    adata = AnnData(
        sp.csr_matrix(counts.astype(np.float32)), obs=pd.DataFrame({"population": labels}, dtype="category")
    )
    adata.obs_names = adata.obs_names.astype(str)
    scgde.GDEModel.setup_anndata(adata)
    model = train(scgde.GDEModel(adata, n_latent=3, n_embedding=6, n_hidden=32), 60)
    made = model.sample(["a", "b"], 500, seed=0).X.toarray()
    total = made.sum(1)
    share = made[:, :10].sum(1) / total
    assert np.corrcoef(share, np.log(total))[0, 1] > 0.8
    fixed = model.sample("a", 500, library_size=200.0, seed=0).X.toarray().sum(1)
    assert np.log(fixed).std() < 0.5 * np.log(total).std()
