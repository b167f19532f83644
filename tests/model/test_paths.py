import numpy as np
import ot as pot
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal

import scgde
from scgde import ot
from scgde.inference import encode_cells
from scgde.paths import check_weights, latent_path, path_frames, transport_score


@pytest.fixture(scope="module")
def labels(trained):
    return list(trained.get_population_embedding().index)


@pytest.fixture(scope="module")
def gaussians(train):
    """Gaussian populations in the plane, whose latent is the row up to a scale; means, roots and a model of them."""
    rng = np.random.default_rng(0)
    k, n = 16, 250
    mean = rng.normal(size=(k, 2)) * 2
    angle, spread = rng.uniform(0, np.pi, k), np.exp(0.6 * rng.normal(size=(k, 2)))
    axes = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], 1).reshape(k, 2, 2)
    root = np.einsum("kij,kj,klj->kil", axes, spread, axes)
    x = mean[:, None] + rng.normal(size=(k, n, 2)) @ root
    obs = pd.DataFrame({"population": np.repeat([f"p{i:02}" for i in range(k)], n)}).set_index(
        np.arange(k * n).astype(str)
    )
    adata = AnnData(np.zeros((k * n, 1), np.float32), obs=obs, obsm={"X_pca": x.reshape(-1, 2).astype(np.float32)})
    scgde.GDEModel.setup_anndata(adata, obsm_key="X_pca")
    model = train(scgde.GDEModel(adata, n_embedding=5, n_hidden=32), 30)
    return model, mean, root


@pytest.fixture(scope="module")
def simulated(make_cells, make_model, train):
    """Populations of counts that can be told apart, with a held-out half of cells."""
    adata = make_cells(8, (120, 120), design="independent", n_genes=60)
    held_out = np.arange(adata.n_obs) % 2 == 0
    model = train(make_model(adata[~held_out].copy(), n_embedding=16, n_hidden=32), 40)
    return model, adata[held_out].copy()


def rows_of(cells):
    return cells.obsm["X_pca"].reshape(-1, 2)


# ------------------------------------------------------------------------ paths


@pytest.mark.parametrize("method", ["latent", "displacement"])
def test_path_holds_counts_step_by_step(trained, labels, method):
    path = trained.interpolate(labels[3], labels[5], n_steps=3, n_cells=4, method=method, seed=0)
    assert path.shape == (12, trained.adata.n_vars) and (path.X.data == np.round(path.X.data)).all()
    assert path.obs["gde_t"].tolist() == list(np.repeat([0, 0.5, 1], 4))
    assert path.obs["gde_step"].tolist() == list(np.repeat([0, 1, 2], 4))
    assert path.obs["gde_cell"].tolist() == list(range(4)) * 3
    assert set(path.obs["gde_source"]) == {labels[3]} and set(path.obs["gde_target"]) == {labels[5]}
    assert set(trained.sample(labels[3], 2).obs) < set(path.obs)
    z = trained.get_population_embedding(path)
    assert list(z.index) == sorted(f"{labels[3]}->{labels[5]}@{t}" for t in (0.0, 0.5, 1.0))
    assert np.isfinite(z).all(axis=None)


def test_path_is_repeatable_and_seeds_differ(trained, labels):
    one, two, three = (trained.interpolate(*labels[3:5], n_steps=2, n_cells=3, seed=s).X.toarray() for s in (1, 1, 2))
    assert (one == two).all() and (one != three).any()


def test_contexts_pass_from_those_of_the_source_to_those_of_the_target(make_cells, quick_model):
    adata = make_cells(4, (60, 60), n_batches=2)
    names = sorted(adata.obs["population"].unique())
    in_first = adata.obs["population"].isin(names[:2]).to_numpy()
    adata = adata[(adata.obs["batch"] == "batch_0").to_numpy() == in_first].copy()
    model = quick_model(adata, {"batch_key": "batch"}, {"max_epochs": 2})
    path = model.interpolate(names[0], names[2], n_steps=5, n_cells=400, seed=0).obs
    share = (path["batch"] == "batch_1").groupby(path["gde_t"]).mean()
    assert share[0.0] == 0 and share[1.0] == 1
    # a share of 400 draws has a standard error of 0.025
    np.testing.assert_allclose(share, share.index, atol=0.1)
    # each cell turns once and does not turn back
    late = (path["batch"] == "batch_1").to_numpy().reshape(5, 400)
    assert (np.diff(late.astype(int), axis=0) >= 0).all()
    fixed = model.interpolate(names[0], names[2], n_steps=2, n_cells=5, batch="batch_1", library_size=300.0, seed=0)
    assert set(fixed.obs["batch"]) == {"batch_1"} and set(fixed.obs["gde_library_size"]) == {300.0}


def test_crossed_labels_keep_the_parts_that_ends_share(make_cells, quick_model):
    model = quick_model(make_cells(6), {"population_key": ["clone", "time"]}, {"max_epochs": 2})
    index = [label.split("|") for label in model.get_population_embedding().index]
    clone, time = index[0]
    other = next(t for c, t in index if c == clone and t != time)
    path = model.interpolate((clone, time), (clone, other), n_steps=2, n_cells=2, seed=0)
    assert set(path.obs["clone"]) == {clone}
    assert set(path.obs["time"]) == {f"{time}->{other}@0.0", f"{time}->{other}@1.0"}
    assert path.obs["gde_population"].iloc[0] == f"{clone}|{time}->{other}@0.0"


def test_latent_path_follows_cells_and_has_the_moments_of_the_geodesic(gaussians):
    model, mean, root = gaussians
    path = model.interpolate("p00", "p01", n_steps=5, n_cells=2000, seed=0)
    x = rows_of(path).reshape(5, 2000, 2)
    # the noise is shared: a cell moves by a fraction of its whole way at each step
    whole = np.linalg.norm(x[4] - x[0], axis=1)
    step = np.linalg.norm(np.diff(x, axis=0), axis=2)
    assert (step.sum(0) < 1.2 * whole + 0.1).mean() > 0.95
    distance = [
        pot.gaussian.bures_wasserstein_distance(mean[0], x[i].mean(0), root[0] @ root[0], np.cov(x[i].T))
        for i in range(5)
    ]
    total = pot.gaussian.bures_wasserstein_distance(mean[0], mean[1], root[0] @ root[0], root[1] @ root[1])
    # constant speed along a geodesic, within what 250 cells tell about a population
    np.testing.assert_allclose(np.array(distance) / total, np.linspace(0, 1, 5), atol=0.1)


def test_frames_of_a_path_are_the_geodesic_of_those_of_the_ends_and_its_cells_have_them(gaussians):
    model, _, _ = gaussians
    z = model.get_population_embedding().loc[["p00", "p01"]].to_numpy()
    times = np.array([0.0, 0.3, 1.0])
    mean, root = path_frames(model.module, *z, times)
    distance = ot.gaussian_wasserstein(mean[0], root[0] @ root[0], mean, root @ root)
    np.testing.assert_allclose(distance / distance[2], times, atol=1e-3)
    ends = [x.detach().double().numpy() for x in model.module.skeleton(torch.from_numpy(z).float())]
    np.testing.assert_allclose(mean[[0, 2]], ends[0], atol=1e-5)
    np.testing.assert_allclose(root[[0, 2]], ends[1], atol=1e-4)
    u = latent_path(model.module, *z, times, 20_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(u.mean(1), mean, atol=0.03)
    np.testing.assert_allclose([np.cov(x.T) for x in u], root @ root, atol=0.05 * np.square(root).sum())


def test_displacement_moves_matched_cells_on_straight_lines(gaussians):
    model, _, _ = gaussians
    path = model.interpolate("p02", "p03", n_steps=3, n_cells=60, method="displacement", seed=0)
    x = rows_of(path).reshape(3, 60, 2)
    np.testing.assert_allclose(x[1], (x[0] + x[2]) / 2, atol=1e-4)
    cost = cdist(x[0], x[2], "sqeuclidean")
    rows, columns = linear_sum_assignment(cost)
    assert np.trace(cost) == pytest.approx(cost[rows, columns].sum(), rel=1e-4)
    # constant speed is what makes it a geodesic of the sample
    assert ot.wasserstein(x[0], x[1]) == pytest.approx(ot.wasserstein(x[0], x[2]) / 2, rel=1e-4)


def test_ends_of_a_path_may_be_embeddings_or_populations_of_a_query(trained, labels):
    z = trained.get_population_embedding()
    by_frame = trained.interpolate(z.iloc[[3]], z.iloc[[4]], n_steps=2, n_cells=3, seed=0)
    by_label = trained.interpolate(labels[3], labels[4], n_steps=2, n_cells=3, seed=0)
    # training kept the same embeddings, up to the jackknife's rounding
    assert abs(by_frame.X - by_label.X).mean() < 0.05 * by_label.X.mean()
    query = trained.adata[trained.adata.obs["population"].isin(labels[3:5])].copy()
    query.obs["population"] = query.obs["population"].astype(str).replace({labels[3]: "new", labels[4]: "other"})
    path = trained.interpolate("new", "other", n_steps=2, n_cells=3, adata=query, seed=0)
    assert set(path.obs["gde_source"]) == {"new"}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_steps": 1}, ValueError, "n_steps=1 must be an integer of at least 2"),
        ({"n_steps": 2.0}, ValueError, "n_steps=2.0 must be an integer"),
        ({"n_cells": 2.5}, ValueError, "n_cells=2.5 must be a positive integer"),
        ({"n_cells": True}, ValueError, "n_cells=True"),
        ({"library_size": -1}, ValueError, "library_size=-1"),
        ({"method": "straight"}, ValueError, "method='straight' must be one of"),
        ({"batch": "nowhere"}, KeyError, "batch"),
        ({"source": "unheard"}, KeyError, "source: 'unheard' is not among"),
        ({"target": "unheard"}, KeyError, "target: 'unheard' is not among"),
        ({"covariates": {"age": 1}}, KeyError, "age"),
    ],
)
def test_paths_refuse_what_they_cannot_do(trained, labels, options, error, match):
    options = {"source": labels[3], "target": labels[4], "n_cells": 2, "n_steps": 2} | options
    with pytest.raises(error, match=match):
        trained.interpolate(options.pop("source"), options.pop("target"), **options)


def test_an_end_is_one_population(trained, labels):
    with pytest.raises(ValueError, match="source names 2 populations"):
        trained.interpolate(labels[:2], labels[3])


# -------------------------------------------------------------------- transport


def test_transport_moves_the_given_cells(trained, labels):
    cells = trained.adata[trained.adata.obs["population"] == labels[4]].copy()
    moved = trained.transport(cells, labels[4], labels[2], seed=0)
    assert moved.obs["gde_source_cell"].tolist() == list(cells.obs_names)
    assert set(moved.obs["gde_source"]) == {labels[4]} and set(moved.obs["gde_target"]) == {labels[2]}
    assert set(moved.obs["population"]) == {labels[2]} and (moved.X.data == np.round(moved.X.data)).all()
    assert moved.obs["batch"].tolist() == cells.obs["batch"].tolist()
    np.testing.assert_allclose(moved.obs["gde_library_size"], np.asarray(cells.X.sum(1)).ravel())
    score = moved.uns["gde_transport"]
    assert 0 < score["gaussian_ratio"] <= score["ratio"] <= 1 and score["n_cells"] == len(cells)
    assert set(trained.transport(cells, labels[4], labels[2], batch="batch_1").obs["batch"]) == {"batch_1"}
    again = trained.transport(cells, labels[4], labels[2], seed=0)
    assert (again.X != moved.X).nnz == 0 and again.uns["gde_transport"] == score


def test_transport_between_gaussians_is_the_optimal_map(gaussians):
    model, mean, root = gaussians
    rng = np.random.default_rng(1)
    x = (mean[4] + rng.normal(size=(1500, 2)) @ root[4]).astype(np.float32)
    query = AnnData(np.zeros((1500, 1), np.float32), obs=pd.DataFrame({"population": ["p04"] * 1500}, dtype="category"))
    query.obs_names = query.obs_names.astype(str)
    query.obsm["X_pca"] = x
    moved = model.transport(query, "p04", "p05", seed=0)
    inner = np.real(sqrtm(root[4] @ root[5] @ root[5] @ root[4]))
    optimal = mean[5] + (x - mean[4]) @ np.linalg.inv(root[4]) @ inner @ np.linalg.inv(root[4])
    error = np.sqrt(np.square(rows_of(moved) - optimal).sum(1).mean())
    # the populations are known from 250 cells: a tenth of their spread
    assert error < 0.25 * np.sqrt(np.square(optimal - mean[5]).sum(1).mean())
    score = moved.uns["gde_transport"]
    assert score["n_cells"] == 1000 and score["ratio"] > 0.99 and score["gaussian_ratio"] > 0.99


def test_noise_is_rotated_so_that_the_map_is_symmetric(gaussians):
    model, _, _ = gaussians
    module = model.module
    z = torch.from_numpy(np.asarray(model.populations_["z"]))
    flow = module.generator
    try:
        module.generator = type(flow)(2, 5, 32)  # untrained: the map is the affine one of the frames
        with torch.no_grad():
            origin = module.transport_latent(torch.zeros(1, 2), z[6], z[7])
            linear = module.transport_latent(torch.eye(2), z[6], z[7]) - origin
            roots = module.skeleton(z[6:8])[1]
        plain = roots[1] @ torch.linalg.inv(roots[0])
        assert (plain - plain.T).abs().max() > 0.05, "the populations under test must not commute"
        assert (linear - linear.T).abs().max() < 0.02 and torch.linalg.eigvalsh((linear + linear.T) / 2).min() > 0
        covariance = linear @ roots[0] @ roots[0] @ linear.T
        torch.testing.assert_close(covariance, roots[1] @ roots[1], rtol=0.05, atol=0.02)
    finally:
        module.generator = flow


def test_transport_to_its_own_population_leaves_cells_where_they_are(gaussians):
    model, _, _ = gaussians
    moved = model.transport(model.adata[:250].copy(), "p00", "p00", seed=0)
    # the flow's steps do not quite close
    assert moved.uns["gde_transport"]["cost"] < 0.05


def test_transported_cells_resemble_the_target(simulated):
    model, held_out = simulated
    labels = list(model.get_population_embedding().index)
    cells = held_out[held_out.obs["population"] == labels[0]].copy()
    moved = model.transport(cells, labels[0], labels[1], seed=0)
    u, there = model.get_latent_representation(moved), held_out[held_out.obs["population"] == labels[1]].copy()
    target, start = model.get_latent_representation(there), model.get_latent_representation(cells)
    assert ot.wasserstein(u, target) < 0.6 * ot.wasserstein(start, target)


def test_transport_takes_draws_of_the_posterior(simulated, monkeypatch):
    model, held_out = simulated
    cells = held_out[:200].copy()
    mean, sd = encode_cells(model.module, model._table(cells), np.arange(200))
    seen = []
    monkeypatch.setattr("scgde._model_paths.transport_cells", lambda module, u, *ends: seen.append(u) or u)
    for seed in range(10):
        model.transport(cells, *list(model.populations_["labels"])[:2], seed=seed)
    noise = (np.stack(seen) - mean.numpy()) / sd.numpy()
    # a standard error of 0.01 and less from 8,000 values
    assert noise.mean() == pytest.approx(0, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)


def test_score_is_one_for_an_optimal_map_and_less_otherwise():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(300, 2))
    stretch = transport_score(u, u @ np.diag([3.0, 0.5]) + 1, rng)
    assert stretch["ratio"] == pytest.approx(1, abs=1e-6) and stretch["gaussian_ratio"] == pytest.approx(1, abs=1e-6)
    turned = transport_score(u, u @ np.array([[0.0, 1.0], [-1.0, 0.0]]), rng)
    exact = pot.emd2([], [], cdist(u, u @ np.array([[0.0, 1.0], [-1.0, 0.0]]), "sqeuclidean")) ** 0.5
    assert turned["wasserstein"] == pytest.approx(exact, rel=1e-6)
    assert turned["ratio"] == pytest.approx(exact / turned["cost"], rel=1e-6)
    assert turned["gaussian_ratio"] <= turned["ratio"] < 0.4
    assert transport_score(u, u.copy(), rng)["ratio"] == 1


def test_transport_refuses_what_it_cannot_do(trained, labels, make_cells, quick_model):
    cells = trained.adata[:5].copy()
    with pytest.raises(KeyError, match="target: 'unheard' is not among"):
        trained.transport(cells, labels[0], "unheard")
    with pytest.raises(ValueError, match=r"(?i)genes|missing"):
        trained.transport(trained.adata[:5, :10].copy(), labels[0], labels[1])
    with pytest.raises(ValueError, match="adata has no cells"):
        trained.transport(trained.adata[:0].copy(), labels[0], labels[1])
    strange = cells.copy()
    strange.obs["batch"] = "later"
    with pytest.warns(UserWarning, match="later"), pytest.raises(ValueError, match="Pass batch= one of"):
        trained.transport(strange, labels[0], labels[1])
    vae = quick_model(make_cells(4), None, {"max_epochs": 2}, generator="vae")
    with pytest.raises(TypeError, match="train a model with generator='flow' or 'diffusion'"):
        vae.transport(vae.adata, *list(vae.populations_["labels"])[:2])
    assert vae.interpolate(*list(vae.populations_["labels"])[:2], n_steps=2, n_cells=2).n_obs == 4


def test_transport_from_a_population_of_the_given_cells(trained, labels):
    cells = trained.adata[trained.adata.obs["population"] == labels[4]].copy()
    known = trained.transport(cells, labels[4], labels[2], seed=0)
    cells.obs["population"] = "new"
    moved = trained.transport(cells, "new", labels[2], seed=0)
    # the same cells, hence the same embedding
    assert moved.uns["gde_transport"]["cost"] == pytest.approx(known.uns["gde_transport"]["cost"], rel=1e-3)


# ------------------------------------------------------------------ barycentres


def test_barycenter_is_that_of_gaussians(gaussians):
    model, mean, root = gaussians
    names, weights = ["p08", "p09", "p10"], np.array([0.5, 0.3, 0.2])
    z = model.get_population_barycenter(names, weights * 10)
    assert z.shape == (1, 5) and list(z.columns) == [f"GDE_{i}" for i in range(5)]
    x = rows_of(model.sample(z, 4000, seed=0))
    cov = root @ root
    middle, spread = pot.gaussian.bures_wasserstein_barycenter(mean[8:11], cov[8:11], weights)
    distance = pot.gaussian.bures_wasserstein_distance(middle, x.mean(0), spread, np.cov(x.T))
    ends = [
        pot.gaussian.bures_wasserstein_distance(m, middle, c, spread)
        for m, c in zip(mean[8:11], cov[8:11], strict=True)
    ]
    # populations known from 250 cells, and embeddings that are isometric to a few per cent
    assert distance < 0.1 * np.mean(ends)
    mixture = weights @ (np.square(mean[8:11] - middle).sum(1) + np.trace(cov[8:11], axis1=1, axis2=2))
    assert np.cov(x.T).trace() < 0.7 * mixture, "the mixture of the populations would spread further"


def test_barycenter_of_labels_frames_and_queries(trained, labels):
    z = trained.get_population_embedding()
    expected = z.iloc[3:6].mean().to_numpy()
    for given in (labels[3:6], z.iloc[3:6]):
        np.testing.assert_allclose(trained.get_population_barycenter(given).to_numpy()[0], expected, atol=1e-5)
    one = trained.get_population_barycenter(labels[3:6], [0, 2, 0])
    np.testing.assert_allclose(one.to_numpy()[0], z.iloc[4], atol=1e-5)
    query = trained.adata[trained.adata.obs["population"] == labels[4]].copy()
    query.obs["population"] = "new"
    by_query = trained.get_population_barycenter("new", adata=query)
    np.testing.assert_allclose(by_query.to_numpy()[0], z.iloc[4], atol=1e-4)
    with pytest.raises(KeyError, match="unheard"):
        trained.get_population_barycenter(["unheard"])


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, np.nan], "ab"])
def test_weights_must_fit(weights):
    with pytest.raises((ValueError, TypeError)):
        check_weights(weights, 2)


# ------------------------------------------------------------------ likelihoods


def test_log_likelihood_is_that_of_the_gaussians(gaussians):
    model, mean, root = gaussians
    frame = model.get_log_likelihood(populations=["p11", "p12"], indices=range(0, 4000, 20))
    x = model.adata.obsm["X_pca"][::20]
    assert frame.shape == (200, 2) and list(frame.columns) == ["p11", "p12"]
    assert list(frame.index) == list(model.adata.obs_names[::20])
    scale = float(model.module.observation.scale)
    for k, name in ((11, "p11"), (12, "p12")):
        truth = multivariate_normal(mean[k], root[k] @ root[k]).logpdf(x) + 2 * np.log(scale)
        near = truth > truth.max() - 3
        # parameters from 250 cells
        np.testing.assert_allclose(frame[name][near], truth[near], atol=0.75)
        assert np.abs(frame[name][near] - truth[near]).mean() < 0.25


@pytest.mark.parametrize("generator", ["flow", "vae"])
def test_log_likelihood_finds_the_population_of_held_out_cells(simulated, make_model, train, generator):
    model, held_out = simulated
    if generator == "vae":
        model = train(make_model(model.adata.copy(), n_embedding=16, n_hidden=32, generator="vae"), 20)
    cells = held_out[::4].copy()
    frame = model.get_log_likelihood(cells, n_samples=8, seed=0)
    found = frame.idxmax(axis=1).to_numpy() == cells.obs["population"].astype(str).to_numpy()
    assert frame.shape == (cells.n_obs, 8) and np.isfinite(frame).all(axis=None)
    # chance is one in eight
    assert found.mean() > 0.6


def test_log_likelihood_does_not_depend_on_blocks_or_other_populations(trained, labels):
    rows = np.arange(0, 60, 5)
    whole = trained.get_log_likelihood(indices=rows)
    parts = trained.get_log_likelihood(indices=rows, batch_size=5)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-3)
    one = trained.get_log_likelihood(indices=rows, populations=labels[3])
    np.testing.assert_allclose(one[labels[3]], whole[labels[3]], rtol=1e-4, atol=1e-3)
    by_frame = trained.get_log_likelihood(indices=rows, populations=trained.get_population_embedding().iloc[[3]])
    np.testing.assert_allclose(by_frame, one, rtol=1e-2, atol=0.05)


def test_log_likelihood_refuses_what_it_cannot_do(trained):
    with pytest.raises(KeyError, match="unheard"):
        trained.get_log_likelihood(populations=["unheard"])
    for name in ("n_samples", "batch_size"):
        with pytest.raises(ValueError, match=f"{name}=0 must be a positive integer"):
            trained.get_log_likelihood(**{name: 0})
    with pytest.raises(ValueError, match=r"(?i)genes|missing"):
        trained.get_log_likelihood(trained.adata[:5, :10].copy())


def test_nothing_is_done_before_training(make_cells, make_model):
    model = make_model(make_cells(4))
    for call in (
        lambda: model.interpolate("a", "b"),
        lambda: model.transport(model.adata, "a", "b"),
        lambda: model.get_population_barycenter(["a"]),
        lambda: model.get_log_likelihood(),
    ):
        with pytest.raises(RuntimeError, match="not trained"):
            call()
