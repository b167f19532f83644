"""Properties of the comparison of real and generated cells."""

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scgde import pl

N_GENES = 40


def make_counts(seed: int, n_cells: int = 120) -> AnnData:
    """Two populations that differ in ten genes."""
    rng = np.random.default_rng(seed)
    rate = np.random.default_rng(99).gamma(1.0, 4.0, size=N_GENES)
    late = np.arange(n_cells) % 2 == 1
    rates = np.where(late[:, None] & (np.arange(N_GENES) < 10), 6 * rate, rate)
    obs = pd.DataFrame({"population": np.where(late, "late", "early")}, index=[f"cell_{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)])
    return AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=var)


@pytest.fixture
def real():
    yield make_counts(0)
    plt.close("all")


@pytest.fixture
def generated():
    return make_counts(1, n_cells=80)


def log_normalized(adata: AnnData) -> np.ndarray:
    x = adata.X.toarray().astype(float)
    return np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))


def test_pca_is_fitted_on_the_real_cells(real, generated):
    ax = pl.real_vs_generated(real, generated)
    real_points, generated_points = (np.asarray(c.get_offsets()) for c in ax.collections)
    assert (len(real_points), len(generated_points)) == (120, 80)
    x = log_normalized(real)
    leading = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1][:2]
    np.testing.assert_allclose(np.cov(real_points.T), np.diag(leading), atol=1e-4 * leading[0])
    # The same two populations: the first axis separates both sets in the same place.
    centre = [points[:, 0].mean() for points in (real_points, generated_points)]
    assert abs(centre[0] - centre[1]) < 0.1 * np.ptp(real_points[:, 0])
    # More generated cells leave the plane as it is.
    again = np.asarray(pl.real_vs_generated(real, generated[:10]).collections[0].get_offsets())
    np.testing.assert_allclose(again, real_points)


def test_genes_compares_the_means_of_log_counts(real, generated):
    ax = pl.real_vs_generated(real, generated, kind="genes")
    points = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(points[:, 0], log_normalized(real).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(points[:, 1], log_normalized(generated).mean(axis=0), rtol=1e-5)
    assert f"r = {np.corrcoef(points.T)[0, 1]:.3f}" in ax.texts[0].get_text()


def test_genes_are_matched_by_name(real, generated):
    shuffled = real[:, np.random.default_rng(0).permutation(N_GENES)].copy()
    extra = AnnData(np.zeros((real.n_obs, 1), dtype=np.float32), obs=real.obs, var=pd.DataFrame(index=["other"]))
    wider = AnnData(
        sparse.hstack([extra.X, shuffled.X]).tocsr(), obs=real.obs, var=pd.concat([extra.var, shuffled.var])
    )
    first = pl.real_vs_generated(real, generated, kind="genes").collections[0].get_offsets()
    second = pl.real_vs_generated(wider, generated, kind="genes").collections[0].get_offsets()
    np.testing.assert_allclose(first, second)


def test_population_restricts_both_sets(real, generated):
    ax = pl.real_vs_generated(real, generated, population="late")
    assert [len(c.get_offsets()) for c in ax.collections] == [60, 40]
    assert ax.get_title() == "late"


def test_a_layer_holds_the_counts(real, generated):
    expected = pl.real_vs_generated(real, generated, kind="genes").collections[0].get_offsets()
    real.layers["counts"] = real.X.copy()
    real.X = sparse.csr_matrix(log_normalized(real))
    got = pl.real_vs_generated(real, generated, kind="genes", layer="counts").collections[0].get_offsets()
    np.testing.assert_allclose(got, expected)


def test_continuous_values_are_left_as_they_are():
    rng = np.random.default_rng(3)
    real, generated = AnnData(rng.normal(size=(30, 5))), AnnData(rng.normal(size=(20, 5)))
    points = np.asarray(pl.real_vs_generated(real, generated, kind="genes").collections[0].get_offsets())
    np.testing.assert_allclose(points[:, 0], real.X.mean(axis=0))
    plt.close("all")


def test_max_cells_caps_what_is_drawn(real, generated):
    ax = pl.real_vs_generated(real, generated, max_cells=50)
    assert [len(c.get_offsets()) for c in ax.collections] == [50, 50]


def test_inputs_stay_as_they_were(real, generated):
    before = real.X.toarray(), generated.X.toarray()
    pl.real_vs_generated(real, generated)
    np.testing.assert_array_equal(real.X.toarray(), before[0])
    np.testing.assert_array_equal(generated.X.toarray(), before[1])


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"kind": "umap"}, ValueError, "'pca' or 'genes'"),
        ({"layer": "counts"}, KeyError, "not a layer"),
        ({"population": "never"}, ValueError, "at least 2"),
        ({"population": "late", "population_key": "clone"}, KeyError, "population_key"),
        ({"max_cells": 1}, ValueError, "max_cells"),
    ],
    ids=["kind", "layer", "population", "key", "max_cells"],
)
def test_wrong_arguments_say_what_to_do(real, generated, kwargs, error, match):
    with pytest.raises(error, match=match):
        pl.real_vs_generated(real, generated, **kwargs)
    assert not plt.get_fignums()


def test_unknown_genes_are_listed(real, generated):
    with pytest.raises(KeyError, match="lacks 30 of the 40.*gene_10"):
        pl.real_vs_generated(real[:, :10], generated)
