import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import ks_2samp

import scgde
from scgde.observations.thinning import matching_shares, thin_counts


@pytest.fixture
def lanes():
    adata = scgde.datasets.simulate_populations(4, design="independent", cells_per_population=(300, 300), n_genes=80)
    rng = np.random.default_rng(0)
    shallow = rng.random(adata.n_obs) < 0.5
    adata.X = thin_counts(adata.X, np.where(shallow, 0.25, 1.0), rng)
    adata.obs["lane"] = np.where(shallow, "shallow", "deep")
    return adata


def test_groups_have_one_distribution_of_depth_and_no_count_grows(lanes):
    matched = scgde.pp.match_depth(lanes, "lane", seed=0)
    before, after = (np.asarray(a.X.sum(1)).reshape(-1) for a in (lanes, matched))
    deep = (lanes.obs["lane"] == "deep").to_numpy()
    assert np.median(before[deep]) > 3 * np.median(before[~deep])
    assert ks_2samp(after[deep], after[~deep]).pvalue > 0.05
    assert (lanes.X - matched.X).min() >= 0
    # the shallow lane is below the deep one at every quantile, and stays as it is
    np.testing.assert_array_equal(after[~deep], before[~deep])


def test_thinned_counts_are_binomial():
    counts = sp.csr_matrix(np.full((4000, 1), 40.0, dtype=np.float32))
    thinned = thin_counts(counts, np.full(4000, 0.3), np.random.default_rng(0)).toarray()
    # mean 12 and variance 8.4 within five standard errors
    assert abs(thinned.mean() - 12) < 5 * np.sqrt(8.4 / 4000)
    assert abs(thinned.var() / 8.4 - 1) < 5 * np.sqrt(2 / 4000)
    assert counts.toarray().min() == 40


def test_each_quantile_comes_down_to_the_smallest_group_there():
    # groups that cross: neither is below the other everywhere
    total = np.array([10.0, 20, 30, 40, 15, 18, 25, 80, 7])
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1])
    keep = matching_shares(total, codes, np.random.default_rng(0))
    np.testing.assert_allclose(keep * total, [10, 18, 25, 40, 10, 18, 25, 40, 7])


def test_groups_are_matched_within_blocks():
    total = np.array([10.0, 20, 100, 200, 20, 10, 50, 400, 7])
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    block = np.array([0, 0, 1, 1, 0, 0, 1, 1, 2])
    keep = matching_shares(total, codes, np.random.default_rng(0), block)
    np.testing.assert_allclose(keep * total, [10, 20, 50, 200, 20, 10, 50, 200, 7])


def test_a_layer_and_some_groups_are_matched(lanes):
    lanes.layers["raw"] = lanes.X.copy()
    lanes.obs["three"] = np.where(np.arange(lanes.n_obs) % 5 == 0, "other", lanes.obs["lane"])
    matched = scgde.pp.match_depth(lanes, "three", groups=["deep", "shallow"], layer="raw", seed=0)
    other = (lanes.obs["three"] == "other").to_numpy()
    assert (matched.layers["raw"][other] != lanes.X[other]).nnz == 0
    assert (matched.X != lanes.X).nnz == 0
    assert matched.layers["raw"].sum() < lanes.X.sum()
    again = scgde.pp.match_depth(lanes, "three", groups=["deep", "shallow"], layer="raw", seed=0)
    assert (again.layers["raw"] != matched.layers["raw"]).nnz == 0


def test_what_cannot_be_matched_is_an_error(lanes):
    with pytest.raises(KeyError, match="groupby='no'"):
        scgde.pp.match_depth(lanes, "no")
    with pytest.raises(KeyError, match="layer='no'"):
        scgde.pp.match_depth(lanes, "lane", layer="no")
    with pytest.raises(KeyError, match="groups="):
        scgde.pp.match_depth(lanes, "lane", groups=["deep", "none"])
    with pytest.raises(TypeError, match="groups=1 must be a list"):
        scgde.pp.match_depth(lanes, "lane", groups=1)
    with pytest.raises(KeyError, match="block_key='no'"):
        scgde.pp.match_depth(lanes, "lane", block_key="no")
    with pytest.raises(TypeError, match="seed='a'"):
        scgde.pp.match_depth(lanes, "lane", seed="a")
    with pytest.raises(TypeError, match="adata is a DataFrame"):
        scgde.pp.match_depth(lanes.obs, "lane")
    with pytest.raises(ValueError, match="fewer than two groups"):
        scgde.pp.match_depth(lanes, "lane", groups=["deep"])
    lanes.X = lanes.X * 0.5
    with pytest.raises(ValueError, match="raw counts"):
        scgde.pp.match_depth(lanes, "lane")
