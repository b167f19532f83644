import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scgde.encoders import ENCODERS


def snapshot(adata):
    return (list(adata.obs), list(adata.uns), list(adata.obsm), list(adata.obsp), list(adata.layers), adata.X.copy())


@pytest.fixture(scope="module", params=ENCODERS)
def encoded(request, make_cells, quick_model):
    adata = make_cells(exact_sizes=[1, 2, 320, *range(20, 38, 2)], unassigned_fraction=0.02)
    return quick_model(adata, encoder=request.param, train_options={"max_epochs": 2})


def test_mean_of_cell_vectors_is_the_embedding(encoded):
    embedding, cells = encoded.get_population_embedding(), encoded.get_cell_embedding()
    labels = encoded.adata.obs["population"]
    assert np.isfinite(cells).all() and cells.shape == (encoded.adata.n_obs, 6)
    for label in embedding.index:
        assert np.abs(cells[(labels == label).to_numpy()].mean(0) - embedding.loc[label]).max() < 1e-5


def test_standard_errors_are_missing_for_one_cell_only(encoded):
    errors = encoded.get_population_standard_error()
    sizes = encoded.adata.obs["population"].value_counts().loc[errors.index]
    assert errors[sizes == 1].isna().all(axis=None)
    assert (errors[sizes > 1] >= 0).all(axis=None) and errors[sizes > 1].sum(axis=1).gt(0).all()


def test_large_population_is_known_better_than_small_ones(trained):
    errors = trained.get_population_standard_error().pow(2).sum(axis=1)
    sizes = trained.adata.obs["population"].value_counts().loc[errors.index]
    assert errors[sizes == 320].iloc[0] < 0.3 * errors[(sizes > 15) & (sizes < 40)].mean()


def test_getters_write_nothing(trained):
    before = snapshot(trained.adata)
    trained.get_population_embedding()
    trained.get_population_adata()
    trained.get_cell_embedding()
    trained.get_normalized_expression(indices=[0, 1])
    trained.sample(trained.get_population_embedding().index[3], 3)
    after = snapshot(trained.adata)
    assert before[:-1] == after[:-1] and (before[-1] != after[-1]).nnz == 0


def test_indices_choose_the_cells_that_form_populations(trained):
    labels = trained.adata.obs["population"]
    label = labels.value_counts().index[0]
    rows = np.flatnonzero(labels == label)[:30]
    part = trained.get_population_embedding(indices=rows)
    whole = trained.get_population_embedding(trained.adata[rows].copy())
    assert list(part.index) == [label]
    np.testing.assert_allclose(part, whole, atol=1e-5)


def test_batch_size_does_not_matter(trained):
    np.testing.assert_allclose(
        trained.get_latent_representation(batch_size=7), trained.get_latent_representation(), atol=1e-5
    )


def test_embed_populations_writes_its_keys_and_no_others(trained, tmp_path):
    adata = trained.adata.copy()
    adata.uns["mine"], adata.obsm["X_mine"] = {"a": 1}, np.ones((adata.n_obs, 2))
    before = set(adata.uns), set(adata.obsm), list(adata.obs)
    trained.embed_populations(adata)
    trained.embed_populations(adata, key_added="again")
    assert set(adata.uns) - before[0] == {"gde", "again"}
    assert set(adata.obsm) - before[1] == {"X_gde", "X_gde_population", "X_again", "X_again_population"}
    assert list(adata.obs) == before[2]
    loose = adata.obs["population"].isna().to_numpy()
    assert np.isnan(adata.obsm["X_gde_population"]).all(1).tolist() == loose.tolist()
    for write, read in (("write_h5ad", ad.read_h5ad), ("write_zarr", ad.read_zarr)):
        path = tmp_path / write
        getattr(adata, write)(path)
        back = read(path)
        pd.testing.assert_frame_equal(
            back.uns["gde"]["populations"], adata.uns["gde"]["populations"], check_names=False
        )
        assert (np.asarray(back.uns["gde"]["n_cells"]) == adata.uns["gde"]["n_cells"]).all()
        np.testing.assert_array_equal(back.obsm["X_gde"], adata.obsm["X_gde"])


def test_scanpy_runs_on_the_results(trained):
    population = trained.get_population_adata()
    sc.pp.neighbors(population, use_rep="X_gde", n_neighbors=4)
    sc.tl.umap(population)
    sc.tl.leiden(population, flavor="igraph", n_iterations=2, directed=False)
    assert population.obsm["X_umap"].shape == (population.n_obs, 2) and "leiden" in population.obs
    cells = trained.adata.copy()
    trained.embed_populations(cells)
    sc.pp.neighbors(cells, use_rep="X_gde")
    assert cells.obsp["distances"].nnz > 0


def test_population_adata_carries_constant_columns(make_cells, quick_model, tmp_path):
    adata = make_cells(6, n_batches=2)
    adata.obs["depth"] = np.asarray(adata.X.sum(1)).ravel()
    model = quick_model(adata, {"population_key": ["clone", "time"]}, {"max_epochs": 2})
    population = model.get_population_adata()
    assert {"clone", "time", "fate", "population", "gde_n_cells", "gde_split"} <= set(population.obs)
    assert not {"depth", "batch"} & set(population.obs)
    assert not [c for c in population.obs if c.startswith("_scvi")]
    assert (
        population.obs["clone"].astype(str) + "|" + population.obs["time"].astype(str) == population.obs_names
    ).all()
    assert population.obs["gde_n_cells"].sum() == adata.n_obs
    np.testing.assert_allclose(population.obsp["gde_distances"], model.get_population_distances(), atol=1e-5)
    population.write_h5ad(tmp_path / "p.h5ad")
    assert ad.read_h5ad(tmp_path / "p.h5ad").uns["gde"]["params"]["encoder"] == "residual"


@pytest.mark.parametrize("by", ["cell", "population", "column"])
def test_split_is_reported(by, make_cells, make_model, train):
    adata = make_cells(12)
    labels = sorted(adata.obs["population"].unique())
    adata.obs["part"] = np.where(adata.obs["population"].isin(labels[:3]), "test", "train")
    model = make_model(adata)
    options = {"split_key": "part"} if by == "column" else {"split_by": by, "train_size": 0.75}
    train(model, 2, **options)
    split = model.get_population_adata().obs["gde_split"].value_counts()
    expected = {"cell": {"train": 12}, "population": {"train": 9, "validation": 3}, "column": {"train": 9, "test": 3}}
    assert split.to_dict() == expected[by]
    held_out = (
        model.adata.obs["population"]
        .isin(model.get_population_adata().obs.query("gde_split != 'train'").index)
        .to_numpy()
    )
    assert not held_out[model.train_indices].any()
    assert set(model.get_population_adata(adata.copy()).obs["gde_split"]) == {"query"}


def test_distances(trained):
    frame = trained.get_population_distances()
    values = frame.to_numpy()
    assert np.allclose(values, values.T) and (np.diag(values) == 0).all() and (values >= 0).all()
    z = trained.get_population_embedding()
    assert values[3, 5] == pytest.approx(np.linalg.norm(z.iloc[3] - z.iloc[5]), rel=1e-5)
    chosen = trained.get_population_distances(populations=list(z.index[[5, 3]]))
    assert list(chosen.index) == list(z.index[[5, 3]]) and chosen.iloc[0, 1] == pytest.approx(values[3, 5])


def test_corrected_distances_lack_the_squared_standard_errors(trained):
    frame, errors = trained.get_population_distances(return_std=True)
    raw, se = trained.get_population_distances(), trained.get_population_standard_error()
    noise = np.square(se.to_numpy()).sum(1)
    expected = np.sqrt(np.maximum(np.square(raw.to_numpy()) - noise[:, None] - noise[None, :], 0.0))
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(frame, expected, rtol=1e-3, atol=1e-3)
    pd.testing.assert_frame_equal(frame, trained.get_population_distances(bias_correction=True))
    # one cell says nothing about the noise, of it alone
    single = np.isnan(se.to_numpy()).any(1)
    unknown = (single[:, None] | single[None, :]) & ~np.eye(len(single), dtype=bool)
    assert (
        single.sum() == 1 and (errors.isna().to_numpy() == unknown).all() and (errors.to_numpy()[~unknown] >= 0).all()
    )
    plain, same = trained.get_population_distances(return_std=True, bias_correction=False)
    pd.testing.assert_frame_equal(plain, raw)
    pd.testing.assert_frame_equal(same, errors)
    # asked in another order and twice
    labels = [raw.index[k] for k in (5, 3, 5)]
    pd.testing.assert_frame_equal(
        trained.get_population_distances(populations=labels, return_std=True)[1], errors.loc[labels, labels]
    )


def test_exact_wasserstein_distances_are_those_of_the_latents(trained):
    import scgde

    labels = trained.get_population_embedding().index[[4, 7]]
    frame = trained.get_population_distances(populations=labels, metric="wasserstein")
    u, column = trained.get_latent_representation(), trained.adata.obs["population"]
    x, y = (u[(column == label).to_numpy()] for label in labels)
    assert frame.iloc[0, 1] == pytest.approx(scgde.ot.wasserstein(x, y), rel=1e-4)


def test_new_populations_need_no_training(trained, make_cells):
    query = make_cells(9, seed=5, n_batches=2)
    query.obs["population"] = "new_" + query.obs["population"].astype(str)
    embedding = trained.get_population_embedding(query)
    assert len(embedding) == 9 and embedding.index.str.startswith("new_").all()
    assert "_scvi_population" not in query.obs
