import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from scgde.datasets import simulate_cells, simulate_populations
from scgde.ot import gaussian_wasserstein, wasserstein

SMALL = {"n_populations": 12, "n_genes": 40, "n_latent": 4, "cells_per_population": (20, 40)}
DESIGNS = ["lineage", "perturbation", "independent"]


def simulate(**changes):
    return simulate_populations(**{**SMALL, **changes})


def expected_proportions(latent, truth, batch=0):
    rate = np.exp(latent @ truth["loadings"] + truth["offsets"] + truth["batch_shift"][batch])
    return rate / rate.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("design", DESIGNS)
def test_counts_are_integers_in_single_precision_rows(design):
    adata = simulate(design=design)
    assert scipy.sparse.isspmatrix_csr(adata.X) or isinstance(adata.X, scipy.sparse.csr_array)
    assert adata.X.dtype == np.float32
    assert (adata.X.data >= 0).all() and (adata.X.data == np.round(adata.X.data)).all()
    assert adata.obs_names.is_unique
    assert adata.var_names[:2].tolist() == ["gene_0", "gene_1"]
    sizes = adata.obs["population"].value_counts()
    assert len(sizes) == 12 and sizes.between(20, 40).all()
    assert set(sizes.index) == set(adata.uns["simulation"]["populations"])


def test_sizes_cover_the_range_with_both_ends():
    sizes = simulate(n_populations=200, design="independent", cells_per_population=(3, 5)).obs["population"]
    assert set(sizes.value_counts()) == {3, 4, 5}


def test_lineage_labels():
    obs = simulate(n_populations=14).obs
    assert list(obs["time"].cat.categories) == ["d2", "d4", "d6"]
    # 14 is rounded down to 4 clones at 3 time points.
    assert obs["population"].nunique() == 12 and obs["clone"].nunique() == 4
    assert (obs["population"].astype(str) == obs["clone"].astype(str) + "|" + obs["time"].astype(str)).all()
    assert (obs.groupby("clone", observed=True)["fate"].nunique() == 1).all()
    assert obs["fate"].nunique() == 4


def test_lineage_fates_move_apart_and_spread_with_time():
    truth = simulate(n_populations=120, n_latent=8).uns["simulation"]
    mean = truth["mean"].reshape(40, 3, 8)
    # The clones' own origin has variance 0.25 in each of 8 directions at every time; fates add to it.
    variance = mean.var(axis=0).sum(axis=-1)
    assert (np.diff(variance) > 0).all()
    trace = np.trace(truth["covariance"], axis1=1, axis2=2).reshape(40, 3)
    np.testing.assert_allclose(trace[:, 2] / trace[:, 0], 1.5 / (0.5 + 1 / 3), rtol=1e-9)


def test_perturbation_labels_and_additive_means():
    adata = simulate(design="perturbation")
    obs, truth = adata.obs, adata.uns["simulation"]
    assert obs["context"].nunique() == 3 and obs["perturbation"].nunique() == 4
    assert "control" in obs["perturbation"].cat.categories
    assert (obs["population"].astype(str) == obs["context"].astype(str) + "|" + obs["perturbation"].astype(str)).all()
    mean = truth["mean"].reshape(3, 4, -1)
    assert truth["populations"][0] == "context_0|control"
    shift = mean - mean[:, :1]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-12)
    assert (np.linalg.norm(shift[0, 1:], axis=-1) > 0).all()


def test_independent_laws_have_the_stated_moments():
    d = 5
    truth = simulate(design="independent", n_populations=1200, n_latent=d, cells_per_population=(1, 1)).uns[
        "simulation"
    ]
    # Standard errors: 1 / sqrt(1200) = 0.029 for a mean, 0.041 for a variance; atol is four of them.
    np.testing.assert_allclose(truth["mean"].mean(0), 0, atol=0.12)
    np.testing.assert_allclose(np.cov(truth["mean"].T), np.eye(d), atol=0.17)
    # E[A A'] = d (0.25 / d) I; the standard error of an entry is at most 0.005.
    np.testing.assert_allclose(truth["covariance"].mean(0), 0.3 * np.eye(d), atol=0.02)
    # The variance of a diagonal entry of A A' is that of a sum of d squares: 2 d (0.25 / d)^2.
    diagonal = np.diagonal(truth["covariance"], axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal.var(0), 2 * 0.25**2 / d, rtol=0.25)
    assert np.linalg.eigvalsh(truth["covariance"]).min() >= 0.05 - 1e-9


def test_latents_follow_the_law_of_their_population():
    adata = simulate(design="independent", n_populations=2, cells_per_population=(5000, 5000))
    truth = adata.uns["simulation"]
    for i, label in enumerate(truth["populations"]):
        u = adata.obsm["X_true_latent"][adata.obs["population"] == label]
        # Five standard errors of a mean of 5,000 values of variance below one.
        np.testing.assert_allclose(u.mean(0), truth["mean"][i], atol=0.07)
        np.testing.assert_allclose(np.cov(u.T), truth["covariance"][i], atol=0.07)


def test_gene_means_agree_with_the_truth():
    adata = simulate(cells_per_population=(300, 300), depth_sd=0.0, dispersion=5.0)
    truth = adata.uns["simulation"]
    mean = 2000 * expected_proportions(adata.obsm["X_true_latent"], truth)
    variance = mean + mean**2 / 5.0
    z = (np.asarray(adata.X.sum(0)).ravel() - mean.sum(0)) / np.sqrt(variance.sum(0))
    # 40 standard normal values: none beyond 4.5, and their spread is one.
    assert np.abs(z).max() < 4.5
    assert 0.6 < z.std() < 1.5


def test_count_variance_is_negative_binomial():
    # Without loadings all cells share their rates, so the variance of a gene is that of one count.
    adata = simulate(cells_per_population=(400, 400), depth_sd=0.0, loadings_sd=0.0, dispersion=2.0)
    counts = adata.X.toarray()
    mean = counts.mean(0)
    ratio = counts.var(0) / (mean + mean**2 / 2.0)
    # Each ratio has a standard error of about 5 % with 4,800 cells.
    assert np.median(ratio) == pytest.approx(1, abs=0.05)


def test_libraries_are_log_normal():
    # Almost Poisson counts of a large depth: the total is the library size up to 1 %.
    adata = simulate(cells_per_population=(300, 300), depth=20000.0, depth_sd=0.4, dispersion=1e6)
    log_total = np.log(np.asarray(adata.X.sum(1)).ravel())
    # 3,600 cells: standard errors 0.4 / 60 = 0.007 and 0.005.
    assert log_total.mean() == pytest.approx(np.log(20000), abs=0.03)
    assert log_total.std() == pytest.approx(0.4, abs=0.02)
    assert ((log_total - log_total.mean()) ** 3).mean() / log_total.std() ** 3 == pytest.approx(0, abs=0.2)


def test_extreme_arguments_give_finite_counts():
    adata = simulate(depth=0.5, dispersion=0.01, loadings_sd=30.0, offsets_sd=30.0)
    assert np.isfinite(adata.X.data).all() and np.isfinite(adata.obsm["X_true_latent"]).all()
    assert (np.asarray(adata.X.sum(1)) == 0).any()


def test_seed_decides_everything():
    first, second, other = simulate(), simulate(), simulate(seed=1)
    assert (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, second.obs)
    assert not np.array_equal(first.uns["simulation"]["mean"], other.uns["simulation"]["mean"])
    assert not np.array_equal(first.uns["simulation"]["loadings"], other.uns["simulation"]["loadings"])


def test_laws_do_not_depend_on_sizes_depth_or_batches():
    first, second = simulate(), simulate(cells_per_population=(50, 60), depth=500.0, n_batches=3)
    for key in ("mean", "covariance", "loadings", "offsets"):
        np.testing.assert_array_equal(first.uns["simulation"][key], second.uns["simulation"][key])


def test_global_random_state_is_untouched():
    before = np.random.get_state()[1].copy()
    simulate()
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_chunks_do_not_repeat_noise(monkeypatch):
    monkeypatch.setattr("scgde.datasets.simulate._CHUNK_ENTRIES", 400)
    counts = simulate(loadings_sd=0.0).X.toarray()
    assert len(np.unique(counts, axis=0)) == len(counts)


def test_true_distances_are_those_of_the_laws():
    adata = simulate(design="independent", n_populations=6)
    truth = adata.uns["simulation"]
    expected = gaussian_wasserstein(truth["mean"][1], truth["covariance"][1], truth["mean"][4], truth["covariance"][4])
    assert truth["w2"][1, 4] == pytest.approx(expected, rel=1e-9)
    assert (np.diag(truth["w2"]) == 0).all() and (truth["w2"] == truth["w2"].T).all()
    samples = [simulate_cells(adata, truth["populations"][i], 500).obsm["X_true_latent"] for i in (1, 4)]
    # Exact transport between samples overestimates by some hundredths at 500 points in 4 dimensions.
    assert wasserstein(*samples) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("file", ["truth.h5ad", "truth.zarr"])
def test_truth_survives_a_round_trip(tmp_path, file):
    adata = simulate(n_batches=2, unassigned_fraction=0.1)
    path = tmp_path / file
    if file.endswith("h5ad"):
        adata.write_h5ad(path)
        back = anndata.read_h5ad(path)
    else:
        adata.write_zarr(path)
        back = anndata.read_zarr(path)
    truth, restored = adata.uns["simulation"], back.uns["simulation"]
    assert restored.keys() == truth.keys()
    for key, value in truth.items():
        np.testing.assert_array_equal(np.asarray(restored[key], dtype=np.asarray(value).dtype), value)
    assert back.obs["population"].isna().equals(adata.obs["population"].isna())
    fresh = [simulate_cells(data, "clone_0|d2", 5, seed=3) for data in (adata, back)]
    np.testing.assert_array_equal(fresh[0].X.toarray(), fresh[1].X.toarray())


def test_every_population_is_in_every_batch_evenly():
    obs = simulate(n_batches=3).obs
    assert list(obs["batch"].cat.categories) == ["batch_0", "batch_1", "batch_2"]
    table = pd.crosstab(obs["population"], obs["batch"])
    assert (table.max(axis=1) - table.min(axis=1) <= 1).all()


def test_batch_effect_is_the_stated_fold_change():
    adata = simulate(n_batches=3, n_genes=60, batch_effect=2.0, batch_genes=1 / 3)
    shift = adata.uns["simulation"]["batch_shift"]
    assert (shift[0] == 0).all()
    assert ((shift[1:] != 0).sum(axis=1) == 20).all()
    np.testing.assert_allclose(np.abs(shift[shift != 0]), np.log(2))
    assert set(np.sign(shift[1])) == {-1, 0, 1}
    assert not np.array_equal(shift[1], shift[2])

    # Relative to the unshifted genes, the softmax keeps the ratio of the rates.
    totals = [np.asarray(simulate_cells(adata, "clone_0|d2", 4000, batch=b).X.sum(0)).ravel() for b in (0, 1)]
    unshifted = shift[1] == 0
    change = np.log(totals[1] / totals[1][unshifted].sum()) - np.log(totals[0] / totals[0][unshifted].sum())
    # The standard error of a log total of 4,000 over-dispersed counts is about 2 % for all but the rarest genes.
    common = totals[0] > 2000
    np.testing.assert_allclose(change[common], shift[1][common], atol=0.15)


@pytest.mark.parametrize("design", DESIGNS)
def test_unassigned_cells_have_no_label(design):
    adata = simulate(design=design, unassigned_fraction=0.2)
    missing = adata.obs["population"].isna()
    assert missing.mean() == pytest.approx(0.2, abs=0.01)
    for column in {"clone", "fate", "perturbation"} & set(adata.obs):
        assert adata.obs[column].isna().equals(missing)
    for column in {"time", "context", "batch"} & set(adata.obs):
        assert adata.obs[column].notna().all()
    assert not np.isnan(adata.obsm["X_true_latent"]).any()


def test_fresh_cells():
    adata = simulate(n_batches=2)
    fresh = simulate_cells(adata, ["clone_1|d4", "clone_0|d2"], 30, batch=1, seed=0)
    assert fresh.obs["population"].value_counts().to_dict() == {"clone_1|d4": 30, "clone_0|d2": 30}
    assert (fresh.obs["batch"] == "batch_1").all()
    assert fresh.var_names.equals(adata.var_names)
    # No cell of the data is drawn again, though the seeds are equal.
    assert not set(fresh.obsm["X_true_latent"][:, 0]) & set(adata.obsm["X_true_latent"][:, 0])
    again = simulate_cells(adata, ["clone_1|d4", "clone_0|d2"], 30, batch=1, seed=0)
    assert (fresh.X != again.X).nnz == 0
    assert (fresh.X != simulate_cells(adata, ["clone_1|d4", "clone_0|d2"], 30, batch=1, seed=5).X).nnz > 0


def test_fresh_cells_of_a_subset_of_genes_keep_their_rates():
    adata = simulate()
    whole, part = simulate_cells(adata, "clone_0|d2", 20), simulate_cells(adata[:, [7, 3]], "clone_0|d2", 20)
    np.testing.assert_array_equal(part.X.toarray(), whole[:, ["gene_7", "gene_3"]].X.toarray())


def test_fresh_cells_errors():
    adata = simulate(n_batches=2)
    with pytest.raises(KeyError, match=r"'clone_99\|d2'.*clone_0\|d2"):
        simulate_cells(adata, "clone_99|d2", 5)
    with pytest.raises(ValueError, match="batches 0 to 1"):
        simulate_cells(adata, "clone_0|d2", 5, batch=2)
    with pytest.raises(KeyError, match="no 'simulation'"):
        simulate_cells(anndata.AnnData(np.zeros((2, 2))), "clone_0|d2", 5)
    adata.var_names = ["other", *adata.var_names[1:]]
    with pytest.raises(ValueError, match="'other'"):
        simulate_cells(adata, "clone_0|d2", 5)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"design": "tree"}, ValueError, "`design` is 'tree'"),
        ({"n_populations": 2}, ValueError, "`n_populations` is 2 with `n_time_points` 3"),
        ({"n_populations": 5, "design": "perturbation"}, ValueError, "at least 6"),
        ({"n_genes": 0}, ValueError, "`n_genes` is 0"),
        ({"n_genes": 10.0}, TypeError, "`n_genes` is 10.0"),
        ({"cells_per_population": 30}, TypeError, r"\(30, 300\)"),
        ({"cells_per_population": (30, 20)}, ValueError, r"`cells_per_population\[1\]` is 20"),
        ({"cells_per_population": (2, 20), "n_batches": 3}, ValueError, "every batch"),
        ({"depth": 0.0}, ValueError, "`depth` is 0.0"),
        ({"depth_sd": -1.0}, ValueError, "`depth_sd` is -1.0"),
        ({"dispersion": float("inf")}, ValueError, "`dispersion` is inf"),
        ({"batch_genes": 1.5}, ValueError, "`batch_genes` is 1.5"),
        ({"unassigned_fraction": 1.0}, ValueError, "`unassigned_fraction` is 1.0"),
        ({"unassigned_fraction": "half"}, TypeError, "`unassigned_fraction` is 'half'"),
        ({"seed": -1}, ValueError, "`seed` is -1"),
        ({"seed": None}, TypeError, "`seed` is None"),
    ],
)
def test_arguments_are_checked(changes, error, match):
    with pytest.raises(error, match=match):
        simulate(**changes)
