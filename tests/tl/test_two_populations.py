"""Tests between populations and ranking of genes, on cells that say what the answer is."""

from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import scgde
from scgde.tl._depth import depths_differ


def _split(adata, n_groups, seed=0):
    """Cells of one population, assigned at random to groups of equal size: no two of these differ."""
    rng = np.random.default_rng(seed)
    largest = adata.obs["population"].value_counts().idxmax()
    cells = adata[(adata.obs["population"] == largest).to_numpy()].copy()
    codes = rng.permutation(np.arange(cells.n_obs) % n_groups)
    cells.obs["population"] = pd.Categorical([f"group_{k:02d}" for k in codes])
    return cells


@pytest.mark.parametrize("block_key", [None, "batch"])
def test_groups_of_one_population_are_found_as_often_as_they_should(trained, block_key):
    cells = _split(trained.adata, 32)
    groups = sorted(cells.obs["population"].unique())
    sources, targets = (groups * 8)[:128], [groups[(k % 32 + 1 + k // 32) % 32] for k in range(128)]
    table = scgde.tl.test_populations(
        trained, sources, targets, adata=cells, block_key=block_key, n_permutations=99, seed=0
    )
    p = table["p_value"].to_numpy()
    # ten cells a group: a Wald test would call nearly all of them; pairs share groups, so bounds are wide
    assert (p <= 0.05).mean() < 0.12 and 0.4 < p.mean() < 0.62
    assert (table["p_adjusted"] >= p - 1e-12).all() and (table["p_adjusted"] > 0.05).mean() > 0.95
    assert table["statistic"].mean() == pytest.approx(1, abs=0.2)


def test_vectors_do_not_know_the_populations(trained):
    # all 35 ways to split eight cells into two fours, each as a pair of populations of its own
    splits = [(0, *c) for c in combinations(range(1, 8), 3)]
    rows, labels = [], []
    for i, first in enumerate(splits):
        second = [k for k in range(8) if k not in first]
        rows += [*first, *second]
        labels += [f"a{i:02d}"] * 4 + [f"b{i:02d}"] * 4
    largest = trained.adata.obs["population"].value_counts().idxmax()
    cells = trained.adata[np.flatnonzero(trained.adata.obs["population"] == largest)[rows]].copy()
    cells.obs["population"] = labels
    cells.obs_names_make_unique()
    pairs = [sorted({label for label in labels if label[0] == side}) for side in "ab"]
    table = scgde.tl.test_populations(
        trained, *pairs, adata=cells, block_key=False, match_depth=False, n_permutations=2000, seed=0
    )
    # vectors are the same ones in every split: the splits are the permutation distribution itself
    statistic = table["statistic"].to_numpy()
    assert statistic.mean() == pytest.approx(1, rel=1e-4)
    rank = (statistic[None, :] >= statistic[:, None] - 1e-6).mean(1)
    np.testing.assert_allclose(table["p_value"], rank, atol=0.05)


def test_populations_against_a_control(trained):
    known = list(trained.get_population_embedding().index)
    sizes = trained.adata.obs["population"].value_counts()
    single, control = sizes.index[sizes == 1][0], known[5]
    table = scgde.tl.test_populations(trained, control=control, n_permutations=199, seed=1)
    assert list(table.columns) == [
        *("source", "target", "n_source", "n_target"),
        *("distance", "statistic", "p_value", "p_adjusted", "matched_depth"),
    ]
    assert table.attrs == {"representation": "components", "block_key": "batch"}
    assert list(table["source"]) == [label for label in known if label != control]
    assert (table["target"] == control).all() and (table["n_source"] == sizes[table["source"]].to_numpy()).all()
    distances = trained.get_population_distances(bias_correction=True)
    np.testing.assert_allclose(table["distance"], distances.loc[table["source"], control], rtol=1e-4, atol=1e-4)
    row = table.set_index("source").loc[single]
    assert np.isnan([row["p_value"], row["p_adjusted"], row["distance"]]).all()
    # populations of other fates are far away: nearly all are found
    assert (table["p_value"] <= 0.01).sum() >= 8
    pd.testing.assert_frame_equal(
        table, scgde.tl.test_populations(trained, control=control, n_permutations=199, seed=1)
    )


def test_sides_are_alike_and_pairs_can_be_listed(trained):
    a, b, c = trained.get_population_embedding().index[[3, 5, 7]]
    options = {"n_permutations": 19, "match_depth": False, "seed": 0}  # thinning draws anew for each pair
    table = scgde.tl.test_populations(trained, [a, b, c], [b, a, a], correction=None, **options)
    assert table["statistic"][0] == pytest.approx(table["statistic"][1], rel=1e-4)
    assert list(zip(table["source"], table["target"], strict=True)) == [(a, b), (b, a), (c, a)]
    one = scgde.tl.test_populations(trained, c, a, **options)
    assert one["statistic"][0] == pytest.approx(table["statistic"][2], rel=1e-4)
    some = scgde.tl.test_populations(trained, [b, c], control=a, **options)
    assert list(some["target"]) == [a, a]


@pytest.fixture(scope="module")
def one_law():
    """Twelve populations of one law that a model was trained on, as long as by default, and as many fresh ones."""
    source = scgde.datasets.simulate_populations(
        2, design="independent", cells_per_population=(10, 10), n_genes=60, seed=7
    )
    drawn = []
    for start in (100, 500):
        parts = [scgde.datasets.simulate_cells(source, "population_0", 50, seed=start + k) for k in range(12)]
        for k, part in enumerate(parts):
            part.obs["population"] = f"guide_{k:02d}"
        drawn.append(ad.concat(parts))
        drawn[-1].obs_names_make_unique()
    scgde.GDEModel.setup_anndata(drawn[0])
    model = scgde.GDEModel(drawn[0])
    model.train(seed=0, enable_progress_bar=False, accelerator="cpu")
    return model, drawn[1]


@pytest.mark.parametrize("which", ["trained", "fresh"])
def test_populations_that_trained_the_model_are_not_different_for_it(one_law, which):
    model, fresh = one_law
    adata = None if which == "trained" else fresh
    labels = [f"guide_{k:02d}" for k in range(12)]
    sources, targets = zip(*combinations(labels, 2), strict=True)
    table = scgde.tl.test_populations(
        model, list(sources), list(targets), adata=adata, n_permutations=99, correction=None, seed=0
    )
    # 66 pairs of 12 populations; with what training learned from labels, all of them were found
    assert (table["p_value"] <= 0.05).mean() < 0.2
    distance, error = model.get_population_distances(adata, return_std=True)
    pairs = np.triu_indices(12, 1)
    beyond = distance.to_numpy()[pairs] > 2 * error.to_numpy()[pairs]
    assert beyond.mean() < 0.2


def test_depths_are_matched_where_they_differ(trained):
    largest = trained.adata.obs["population"].value_counts().idxmax()
    cells = trained.adata[(trained.adata.obs["population"] == largest).to_numpy()].copy()
    cells = ad.concat([cells] * 3)
    cells.obs_names_make_unique()
    rng = np.random.default_rng(0)
    deep = rng.permutation(cells.n_obs) < cells.n_obs // 2
    counts = cells.X.toarray()
    counts[~deep] = rng.binomial(counts[~deep].astype(int), 0.3)
    cells.X = counts.astype(np.float32)
    cells.obs["population"] = np.where(deep, "deep", "shallow")

    def p_value(**options):
        return scgde.tl.test_populations(trained, "deep", "shallow", adata=cells, seed=0, **options).iloc[0]

    with pytest.warns(UserWarning, match="more than 2-fold"):
        assert p_value(match_depth=False)["p_value"] <= 0.01
    row = p_value()
    assert row["matched_depth"] and row["p_value"] > 0.05


def test_depths_are_matched_within_blocks(trained):
    # lanes differ in depth, and the two populations in their shares of the lanes: in each lane there is nothing to match
    largest = trained.adata.obs["population"].value_counts().idxmax()
    cells = ad.concat([trained.adata[(trained.adata.obs["population"] == largest).to_numpy()]] * 4)
    cells.obs_names_make_unique()
    rng = np.random.default_rng(0)
    deep, first = (rng.permutation(cells.n_obs) < cells.n_obs // 2 for _ in range(2))
    first = np.where(rng.random(cells.n_obs) < 0.6, deep, first)
    cells.X = np.where(deep[:, None], cells.X.toarray(), rng.binomial(cells.X.toarray().astype(int), 0.25))
    cells.X = cells.X.astype(np.float32)
    cells.obs["lane"], cells.obs["population"] = np.where(deep, "deep", "shallow"), np.where(first, "one", "two")
    options = {"adata": cells, "seed": 0, "n_permutations": 99}
    apart = [
        scgde.tl.test_populations(trained, "one", "two", block_key="lane", match_depth=m, **options)
        for m in (True, False)
    ]
    assert apart[0]["statistic"][0] < 1.6 and apart[1]["statistic"][0] < 1.6
    whole = scgde.tl.test_populations(trained, "one", "two", block_key=False, match_depth=False, **options)
    assert whole["statistic"][0] > 2  # so much is between lanes


def test_depths_that_differ_by_chance_alone_are_left_alone():
    rng = np.random.default_rng(0)

    def share(ratio, n_blocks, cells):
        block = np.repeat(np.arange(n_blocks), sum(cells))
        codes = np.tile(np.repeat([0, 1], cells), n_blocks)
        draws = [np.exp(rng.normal(7, 0.5, len(codes))) * np.where(codes == 1, ratio, 1) for _ in range(200)]
        return np.mean([depths_differ(total, codes, block) for total in draws])

    for n_blocks, cells in ((1, (20, 40)), (1, (300, 300)), (20, (2, 30)), (3, (30, 60))):
        assert share(1.0, n_blocks, cells) < 0.15
        assert share(3.0, n_blocks, cells) > 0.95
    draws = [np.exp(rng.normal(7, 0.5, 240)) for _ in range(200)]
    assert np.mean([depths_differ(total, np.arange(240) % 8, None) for total in draws]) < 0.15
    # a few empty cells hide nothing
    codes, empty = np.arange(240) % 2, np.arange(240) % 20 < 2
    assert np.mean([depths_differ(np.where(empty, 0, t * (1 + codes)), codes, None) for t in draws]) > 0.95
    assert share(1.05, 1, (100_000, 100_000)) == 0
    # one block of which differs, or all a little
    total = np.exp(rng.normal(7, 0.5, 800))
    codes, block = np.tile([0, 1], 400), np.repeat(np.arange(4), 200)
    assert depths_differ(np.where((block == 2) & (codes == 1), 2 * total, total), codes, block)
    assert depths_differ(np.where(codes == 1, 1.25 * total, total), codes, block)
    # groups that share no block
    assert not depths_differ(np.where(block == 3, 3 * total, total), np.where(block == 3, 2, 0), block)


def test_arguments_of_a_test_are_checked(trained):
    pair = trained.get_population_embedding().index[:2]
    for options, error, message in (
        ({"match_depth": "yes"}, TypeError, "match_depth='yes'"),
        ({"block_key": 0}, TypeError, "block_key=0"),
        ({"block_key": ""}, TypeError, "block_key=''"),
        ({"n_permutations": 10**12}, ValueError, "from 1 to 10,000,000"),
        ({"seed": 1.5}, TypeError, "seed=1.5"),
    ):
        with pytest.raises(error, match=message):
            scgde.tl.test_populations(trained, *pair, **options)


def test_cells_without_counts_are_not_matched(trained):
    cells = trained.adata[:60].copy()
    cells.obs["population"] = np.where(np.arange(60) < 30, "empty", "full")
    cells.X = np.where(np.arange(60)[:, None] < 30, 0.0, cells.X.toarray()).astype(np.float32)
    options = {"adata": cells, "block_key": False, "seed": 0}
    row = scgde.tl.test_populations(trained, "empty", "full", **options).iloc[0]
    assert row["p_value"] <= 0.01 and not row["matched_depth"]
    with pytest.warns(UserWarning, match="all alike"):
        table = scgde.tl.test_populations(trained, "empty", "full", match_depth=True, **options)
    assert table["p_value"].isna().all()


def test_pairs_of_different_batches_have_no_p_value_unless_blocks_are_ignored(trained):
    cells = trained.adata[:200].copy()
    cells.obs["population"] = np.where(cells.obs["batch"] == "batch_0", "one", "two")
    with pytest.warns(UserWarning, match="block_key=False"):
        table = scgde.tl.test_populations(trained, "one", "two", adata=cells, seed=0)
    assert table["p_value"].isna().all()
    assert (
        scgde.tl.test_populations(trained, "one", "two", adata=cells, block_key=False, seed=0)["p_value"].notna().all()
    )


@pytest.mark.parametrize("encoder", ["mean", "kernel_mean"])
def test_every_encoder(make_cells, quick_model, encoder):
    model = quick_model(make_cells(6), encoder=encoder)
    labels = model.get_population_embedding().index
    table = scgde.tl.test_populations(model, labels[0], labels[1], n_permutations=19, seed=0)
    assert 0 < table["p_value"][0] <= 1


def test_bad_pairs(trained):
    a, b, c = trained.get_population_embedding().index[:3]
    test = scgde.tl.test_populations
    with pytest.raises(TypeError, match="AnnData"):
        test(trained.adata, a, b)
    for arguments, message in [
        ({}, "source= and target="),
        ({"source": a}, "source= and target="),
        ({"source": a, "target": b, "control": c}, "both given"),
        ({"source": [a, b, c], "target": [a, b]}, "3 labels and target"),
        ({"source": a, "target": a}, "against itself"),
        ({"source": a, "target": b, "n_permutations": 0}, "n_permutations=0"),
        ({"source": a, "target": b, "correction": "holm"}, "correction='holm'"),
    ]:
        with pytest.raises(ValueError, match=message):
            test(trained, **arguments)
    with pytest.raises(KeyError, match="target"):
        test(trained, a, "nobody")
    with pytest.raises(KeyError, match="block_key='nothing'"):
        test(trained, a, b, block_key="nothing")


def test_genes_are_ranked_by_decoded_means(trained):
    a, b = trained.get_population_embedding().index[[4, 7]]
    table = scgde.tl.rank_genes_between(trained, a, b, batch="batch_0", seed=0)
    assert set(table["names"]) == set(trained.adata.var_names) and table["scores"].is_monotonic_decreasing
    column = trained.adata.obs["population"]
    parts = [
        trained.get_normalized_expression(
            indices=np.flatnonzero(column == label), transform_batch="batch_0", library_size=1e4
        )[table["names"]]
        for label in (a, b)
    ]
    logs = [np.log1p(part) for part in parts]
    difference = logs[0].mean() - logs[1].mean()
    error = np.sqrt(sum(part.var() / len(part) for part in logs))
    np.testing.assert_allclose(table["difference"], difference, atol=1e-5)
    np.testing.assert_allclose(table["scores"], difference / error, rtol=1e-3)
    np.testing.assert_allclose(table["logfoldchanges"], np.log2(parts[0].mean() / parts[1].mean()), atol=1e-4)
    back = scgde.tl.rank_genes_between(trained, b, a, batch="batch_0", seed=0).set_index("names")
    np.testing.assert_allclose(back.loc[table["names"], "scores"], -table["scores"], rtol=1e-5)


def test_batches_are_averaged_over(trained):
    a, b = trained.get_population_embedding().index[[4, 7]]
    both = scgde.tl.rank_genes_between(trained, a, b).set_index("names")
    column = trained.adata.obs["population"]
    one = [
        trained.get_normalized_expression(
            indices=np.flatnonzero(column == a), transform_batch=batch, library_size=1e4, return_numpy=True
        )
        for batch in ("batch_0", "batch_1")
    ]
    expected = pd.Series(np.log1p(np.mean(one, axis=0)).mean(0), index=trained.adata.var_names)
    np.testing.assert_allclose(both["mean_source"], expected[both.index], rtol=1e-4)


def test_ranks_are_those_of_the_true_change_of_expression(quick_model):
    adata = scgde.datasets.simulate_populations(
        12, design="independent", cells_per_population=(60, 90), n_genes=80, n_latent=4, seed=0
    )
    truth = adata.uns.pop("simulation")
    model = quick_model(adata, train_options={"max_epochs": 60})
    a, b = truth["populations"][:2]
    table = scgde.tl.rank_genes_between(model, a, b, seed=0).set_index("names").loc[truth["genes"]]
    rng = np.random.default_rng(0)
    means = []
    for k in range(2):
        u = rng.multivariate_normal(truth["mean"][k], truth["covariance"][k], 20_000)
        rates = np.exp(u @ truth["loadings"] + truth["offsets"])
        means.append((rates / rates.sum(1, keepdims=True)).mean(0))
    change = np.log2(means[0] / means[1])
    assert np.corrcoef(table["logfoldchanges"], change)[0, 1] > 0.9
    assert spearmanr(table["scores"], change)[0] > 0.85
    # shrunken or not, the size is right
    assert np.polyfit(change, table["logfoldchanges"], 1)[0] == pytest.approx(1, abs=0.25)


def test_columns_of_continuous_rows_are_ranked(make_model, train):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 5)).astype(np.float32)
    population = np.repeat([f"p{k}" for k in range(6)], 40)
    x[population == "p1", 2] += 3.0
    adata = ad.AnnData(
        X=np.zeros((240, 1), dtype=np.float32), obs=pd.DataFrame({"population": population}), obsm={"X_pca": x}
    )
    adata.obs_names = [f"cell_{k}" for k in range(240)]
    model = train(make_model(adata, {"obsm_key": "X_pca"}), 2)
    table = scgde.tl.rank_genes_between(model, "p1", "p0", n_cells=30, seed=0)
    assert table["names"][0] == "X_pca_2" and "logfoldchanges" not in table
    assert table["difference"][0] == pytest.approx(3.0, abs=0.7)


def test_bad_arguments_of_gene_ranks(trained):
    a, b = trained.get_population_embedding().index[:2]
    with pytest.raises(TypeError, match="AnnData"):
        scgde.tl.rank_genes_between(trained.adata, a, b)
    with pytest.raises(ValueError, match="n_cells=0"):
        scgde.tl.rank_genes_between(trained, a, b, n_cells=0)
    with pytest.raises(ValueError, match="both"):
        scgde.tl.rank_genes_between(trained, a, a)
    with pytest.raises(KeyError, match="target"):
        scgde.tl.rank_genes_between(trained, a, "nobody")
    with pytest.raises(KeyError, match="batch"):
        scgde.tl.rank_genes_between(trained, a, b, batch="nothing")
    # one cell has no spread
    table = scgde.tl.rank_genes_between(trained, a, b)
    assert table["scores"].isna().all() and table["difference"].is_monotonic_decreasing
