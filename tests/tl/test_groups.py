"""Groups of replicates: the permutation test on arrays, and tables of a model's populations."""

import warnings
from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest

import scgde
from scgde.tl._permanova import all_arrangements, distance_interval, n_arrangements, permanova, squared_distance
from scgde.tl._replicates import as_replicates


def _pseudo_f(x, groups):
    """From the definition of Anderson (2001): sums of squared distances between replicates over their number."""
    squared = np.square(x[:, None] - x[None]).sum(2)
    n, labels = len(x), np.unique(groups)
    total = squared.sum() / 2 / n
    within = sum(squared[np.ix_(groups == g, groups == g)].sum() / 2 / (groups == g).sum() for g in labels)
    return (total - within) / (len(labels) - 1) / (within / (n - len(labels)))


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4), (2, 3, 2)])
def test_enumeration_is_brute_force(sizes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    x = np.random.default_rng(0).normal(size=(len(groups), 5)) + 0.8 * groups[:, None]
    every = np.array(sorted(set(permutations(groups.tolist()))))
    statistics = np.array([_pseudo_f(x, labels) for labels in every])
    test = permanova(x, groups, np.random.default_rng(0), spread=False)
    assert test.enumerated and test.n_arrangements == len(every)
    assert test.statistic == pytest.approx(_pseudo_f(x, groups), rel=1e-9)
    assert test.p_value == pytest.approx((statistics >= test.statistic * (1 - 1e-9)).mean(), abs=1e-12)
    # groups of one size exchange their names without a change of the partition
    assert test.smallest_p == pytest.approx({(3, 3): 2, (2, 4): 1, (2, 3, 2): 2}[sizes] / len(every))
    between = _pseudo_f(x, groups) * (len(sizes) - 1)
    assert test.r2 == pytest.approx(between / (between + len(x) - len(sizes)), rel=1e-9)


def test_every_arrangement_comes_once():
    cells, block = np.array([0, 0, 1, 2, 1, 0, 1]), np.array([0, 0, 0, 0, 0, 1, 1])
    rows = all_arrangements(cells, block)
    assert len(rows) == n_arrangements(cells, block) == 5 * 4 * 3 // 2 * 2
    assert len({tuple(order) for order in cells[rows]}) == len(rows)
    assert (np.sort(cells[rows][:, :5], axis=1) == np.sort(cells[:5])).all()
    assert (np.sort(cells[rows][:, 5:], axis=1) == [0, 1]).all()


@pytest.mark.parametrize("spread", [False, True])
def test_no_group_is_preferred(spread):
    # all 70 assignments of one set of replicates: p-values are what ranks of exchangeable statistics are
    x = np.random.default_rng(1).normal(size=(8, 4))
    p = []
    for first in combinations(range(8), 4):
        groups = np.isin(np.arange(8), first).astype(int)
        p.append(permanova(x, groups, np.random.default_rng(0), spread=spread).p_value)
    np.testing.assert_allclose(np.sort(p), np.repeat(np.arange(2, 71, 2) / 70, 2))


def test_drawn_permutations_have_the_right_size():
    rng = np.random.default_rng(2)
    groups = np.repeat([0, 1], [7, 9])
    p = [permanova(rng.standard_t(3, size=(16, 6)), groups, rng, n_permutations=99).p_value for _ in range(400)]
    # binomial standard errors of .011 and .014
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p) == pytest.approx(0.505, abs=0.045)
    drawn = permanova(rng.normal(size=(16, 6)), groups, rng, n_permutations=99)
    assert not drawn.enumerated and drawn.n_arrangements == 11440 and drawn.smallest_p == 0.01


def test_drawn_permutations_come_to_the_enumerated_p_value():
    x = np.random.default_rng(3).normal(size=(10, 3))
    x[5:] += 0.7
    groups = np.repeat([0, 1], 5)
    exact = permanova(x, groups, np.random.default_rng(0))
    drawn = [permanova(x, groups, np.random.default_rng(s), n_permutations=200) for s in range(20)]
    assert exact.enumerated and not any(test.enumerated for test in drawn)
    assert np.mean([test.p_value for test in drawn]) == pytest.approx(exact.p_value, abs=0.02)


def test_pairs_take_differences_between_blocks_out():
    rng = np.random.default_rng(4)
    block, groups = np.repeat(np.arange(6), 2), np.tile([0, 1], 6)
    x = np.repeat(10 * rng.normal(size=(6, 3)), 2, axis=0) + 0.3 * rng.normal(size=(12, 3)) + 0.4 * groups[:, None]
    paired = permanova(x, groups, rng, block=block, spread=False)
    assert paired.n_arrangements == 64 and paired.enumerated and paired.smallest_p == 2 / 64
    # the same as changing the signs of the differences
    change = x[groups == 1] - x[groups == 0]
    lengths = [np.square((np.array(s)[:, None] * change).sum(0)).sum() for s in product([1, -1], repeat=6)]
    assert paired.p_value == pytest.approx(np.mean(np.array(lengths) >= lengths[0] * (1 - 1e-9)))
    assert paired.p_value < 0.05 < permanova(x, groups, rng).p_value


def test_covariates_are_regressed_out():
    rng = np.random.default_rng(5)
    p, naive = [], []
    for _ in range(300):
        groups = np.repeat([0, 1], 6)
        age = rng.normal(size=12) + 1.5 * groups
        x = age[:, None] * np.array([2.0, -1.0, 0.0]) + rng.normal(size=(12, 3))
        p.append(permanova(x, groups, rng, covariates=age[:, None], n_permutations=99).p_value)
        naive.append(permanova(x, groups, rng, n_permutations=99).p_value)
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.04)  # binomial standard error .013
    assert np.mean(np.array(naive) <= 0.05) > 0.5
    # a category leaves fewer arrangements: those within cells of group and category are alike
    sex = np.tile([0.0, 1.0], 4)[:, None]
    test = permanova(rng.normal(size=(8, 3)), np.repeat([0, 1], 4), rng, covariates=sex, n_permutations=3000)
    assert test.enumerated and test.n_arrangements == 40320 // 16 and test.smallest_p == 2 / test.n_arrangements


def test_nothing_to_compare():
    rng = np.random.default_rng(6)
    groups = np.repeat([0, 1], 3)
    assert np.isnan(permanova(np.ones((6, 2)), groups, rng).p_value)
    with pytest.raises(ValueError, match="follow from"):
        permanova(rng.normal(size=(6, 2)), groups, rng, covariates=2.0 * groups[:, None])
    with pytest.raises(ValueError, match="degree of freedom"):
        permanova(rng.normal(size=(6, 2)), groups, rng, covariates=rng.normal(size=(6, 4)))
    # groups that differ and replicates that do not
    apart = permanova(groups[:, None] * np.ones((6, 2)), groups, rng)
    assert apart.statistic > 1e6 and apart.p_value == 0.1


def test_squared_distances_are_unbiased():
    rng = np.random.default_rng(7)
    groups = np.repeat([0, 1, 2], [3, 4, 5])
    means = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    sd = np.array([0.5, 1.0, 1.5])  # groups vary differently
    values = [
        squared_distance(means[groups] + sd[groups, None] * rng.normal(size=(12, 2)), groups) for _ in range(2000)
    ]
    assert np.mean(values) == pytest.approx((1 + 4 + 5) / 3, abs=4 * np.std(values) / 2000**0.5)
    x = rng.normal(size=(12, 2))
    two = groups[groups < 2]
    parts = [x[:7][two == g] for g in (0, 1)]
    u = np.square(parts[0].mean(0) - parts[1].mean(0)).sum() - sum(
        part.var(0, ddof=1).sum() / len(part) for part in parts
    )
    assert squared_distance(x[:7], two) == pytest.approx(u)
    # pairs: the U-statistic of differences
    change = x[1::2] - x[::2]
    pairs = squared_distance(x, np.tile([0, 1], 6), block=np.repeat(np.arange(6), 2))
    assert pairs == pytest.approx(np.square(change.mean(0)).sum() - change.var(0, ddof=1).sum() / 6)
    age = rng.normal(size=12)
    adjusted = [
        squared_distance(means[groups] + age[:, None] + rng.normal(size=(12, 2)), groups, covariates=age[:, None])
        for _ in range(2000)
    ]
    assert np.mean(adjusted) == pytest.approx((1 + 4 + 5) / 3, abs=4 * np.std(adjusted) / 2000**0.5)
    # a block of one group does not tell groups apart
    assert np.isnan(squared_distance(x[:4], np.array([0, 0, 1, 1]), block=np.array([0, 0, 1, 1])))


@pytest.mark.parametrize(("paired", "n", "shift"), [(False, 4, 1.5), (False, 8, 0.0), (True, 6, 1.0)])
def test_intervals_cover(paired, n, shift):
    rng = np.random.default_rng(8)
    groups, block = (np.tile([0, 1], n), np.repeat(np.arange(n), 2)) if paired else (np.repeat([0, 1], n), None)
    covered = []
    for _ in range(200):
        x = rng.normal(size=(2 * n, 4)) * [1.0, 0.7, 0.5, 0.3]
        x[groups == 1, 0] += shift
        low, high = distance_interval(x, groups, block=block)[1:]
        covered.append(low <= shift**2 <= high)
    assert np.mean(covered) > 0.9
    assert np.isnan(distance_interval(x[groups == 0][:4], np.array([0, 0, 1, 1]))[1:]).all()


@pytest.fixture(scope="module")
def study(make_cells, quick_model):
    """Eight donors x two cell types, four donors of each condition, paired into four families."""
    adata = make_cells(16, (20, 30), design="independent", n_genes=40, n_batches=2)
    number = adata.obs["population"].astype(str).str.split("_").str[1].astype(int).to_numpy()
    donor = number // 2
    adata.obs["donor"] = [f"donor_{k}" for k in donor]
    adata.obs["cell_type"] = np.where(number % 2, "T", "B")
    adata.obs["condition"] = np.where(donor < 4, "control", "treated")
    adata.obs["family"] = [f"family_{k % 4}" for k in donor]
    adata.obs["age"] = np.array([30, 42, 51, 60, 33, 45, 48, 66])[donor]
    adata.obs["sex"] = np.array(list("mfmfmmff"))[donor]
    counts = adata.X.toarray()
    counts[donor >= 4, 0] = 6 * counts[donor >= 4, 0] + 8
    adata.X = counts
    del adata.obs["population"], adata.uns
    return quick_model(adata, {"population_key": ["donor", "cell_type"], "batch_key": "batch"})


def _with(model, **columns):
    """The model's cells with other columns."""
    cells = model.adata.copy()
    for name, values in columns.items():
        cells.obs[name] = values
    return cells


def test_one_test_for_each_cell_type(study):
    table = scgde.tl.test_groups(study, "condition", replicate_key="donor", stratify_by="cell_type", seed=0)
    assert list(table.columns) == [
        *("stratum", "n_replicates", "n_replicates_control", "n_replicates_treated"),
        *("distance", "distance_low", "distance_high", "statistic", "r2", "p_value", "p_adjusted"),
        *("n_arrangements", "enumerated", "smallest_p"),
    ]
    assert list(table["stratum"]) == ["B", "T"] and (table["n_replicates"] == 8).all()
    assert (table["n_arrangements"] == 70).all() and table["enumerated"].all()
    assert table["smallest_p"].tolist() == [2 / 70, 2 / 70]
    z = study.get_population_embedding()
    groups = np.repeat([0, 1], 4)
    x = z.loc[[f"donor_{k}|B" for k in range(8)]].to_numpy(float)
    expected = permanova(x, groups, np.random.default_rng(0))
    assert table["p_value"][0] == pytest.approx(expected.p_value)
    assert table["statistic"][0] == pytest.approx(expected.statistic, rel=1e-6)
    estimate, _, high = distance_interval(x, groups)
    assert table["distance"][0] == pytest.approx(max(estimate, 0) ** 0.5, rel=1e-5)
    assert table["distance_high"][0] == pytest.approx(high**0.5, rel=1e-5)
    assert (table["p_adjusted"] >= table["p_value"]).all()


def test_populations_of_a_replicate_are_averaged_by_cells(study):
    table = scgde.tl.test_groups(study, "condition", replicate_key="donor", seed=0)
    z = study.get_population_embedding()
    donor = z.index.str.split("|").str[0]
    weight = study.get_population_adata().obs["gde_n_cells"].to_numpy(float)
    x = np.stack([np.average(z[donor == d], axis=0, weights=weight[donor == d]) for d in np.unique(donor)])
    expected = permanova(x, np.repeat([0, 1], 4), np.random.default_rng(0))
    assert table["statistic"][0] == pytest.approx(expected.statistic, rel=1e-5)
    assert "stratum" not in table and table["p_value"][0] == expected.p_value == table["p_adjusted"][0]


def test_design_of_pairs_and_covariates(study):
    with pytest.warns(UserWarning, match="can be arranged in 16 ways, and the smallest p-value is 0.125"):
        paired = scgde.tl.test_groups(
            study, "condition", replicate_key="donor", block_key="family", stratify_by="cell_type", n_permutations=16
        )
    assert (paired["n_blocks"] == 4).all() and (paired["n_arrangements"] == 16).all()
    adjusted = scgde.tl.test_groups(
        study, "condition", replicate_key="donor", covariates=["age", "sex"], n_permutations=99, seed=0
    )
    assert (
        not adjusted["enumerated"][0] and adjusted["n_arrangements"][0] == 40320 and adjusted["smallest_p"][0] == 0.01
    )
    again = scgde.tl.test_groups(
        study, "condition", replicate_key="donor", covariates=["age", "sex"], n_permutations=99, seed=0
    )
    pd.testing.assert_frame_equal(adjusted, again)


def test_pairs_of_groups(study):
    donor = study.adata.obs["donor"].str[-1].astype(int)
    cells = _with(study, dose=np.array(["0", "1", "1", "0", "10", "10", "1", "0"])[donor])
    whole = scgde.tl.test_groups(study, "dose", replicate_key="donor", adata=cells, seed=0)
    assert whole["n_arrangements"][0] == 560 and whole["n_replicates_10"][0] == 2
    with pytest.warns(UserWarning, match="cannot give a p-value of 0.05"):
        pairs = scgde.tl.test_groups(study, "dose", replicate_key="donor", adata=cells, pairwise=True)
    assert list(zip(pairs["source"], pairs["target"], strict=True)) == [("0", "1"), ("0", "10"), ("1", "10")]
    assert pairs["n_replicates_10"].tolist() == [0, 2, 2] and pairs["n_arrangements"].tolist() == [20, 10, 10]
    with pytest.warns(UserWarning, match="cannot give"):
        chosen = scgde.tl.test_groups(study, "dose", replicate_key="donor", adata=cells, groups=["10", "1"])
    assert chosen["statistic"][0] == pytest.approx(pairs["statistic"][2], rel=1e-6)


def test_what_too_few_replicates_cannot_say(study):
    few = study.adata[study.adata.obs["donor"].isin(["donor_0", "donor_1", "donor_4", "donor_5"]).to_numpy()].copy()
    with pytest.warns(UserWarning, match="4 replicates can be arranged in 6 ways, and the smallest p-value is 0.333"):
        table = scgde.tl.test_groups(study, "condition", replicate_key="donor", adata=few)
    assert table["smallest_p"][0] == pytest.approx(1 / 3) and np.isnan(table["distance_low"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scgde.tl.test_groups(study, "condition", replicate_key="donor")


def test_blocks_and_strata_that_say_nothing_are_left_out(study):
    cells = study.adata
    lonely = cells[(cells.obs["donor"] != "donor_7").to_numpy()].copy()
    with pytest.warns(UserWarning, match="family_3|can be arranged in 8 ways") as caught:
        table = scgde.tl.test_groups(study, "condition", replicate_key="donor", block_key="family", adata=lonely)
    assert table["n_blocks"][0] == 3 and table["n_replicates"][0] == 6 and len(caught) == 2
    missing = cells[((cells.obs["cell_type"] == "B") | (cells.obs["condition"] == "control")).to_numpy()].copy()
    with pytest.warns(UserWarning, match="1 of 2 tests cannot be made and are NaN, such as T: .*'treated': 0"):
        table = scgde.tl.test_groups(study, "condition", replicate_key="donor", stratify_by="cell_type", adata=missing)
    assert np.isnan(table["p_value"][1]) and table["p_adjusted"][0] == table["p_value"][0]
    assert table["n_replicates"].tolist() == [8, 0] and table["enumerated"].tolist() == [True, False]
    none = missing[(missing.obs["donor"] != "donor_0").to_numpy() & (missing.obs["cell_type"] == "T").to_numpy()].copy()
    with pytest.raises(ValueError, match="gives the groups"):
        scgde.tl.test_groups(study, "condition", replicate_key="donor", stratify_by="cell_type", adata=none)


def test_populations_of_one_to_three_cells(study):
    cells = study.adata
    order = cells.obs.groupby(["donor", "cell_type"], observed=True).cumcount().to_numpy()
    size = cells.obs["donor"].str[-1].astype(int).to_numpy() % 3 + 1
    tiny = cells[order < size].copy()
    table = scgde.tl.test_groups(study, "condition", replicate_key="donor", stratify_by="cell_type", adata=tiny)
    assert np.isfinite(table[["p_value", "statistic", "distance"]].to_numpy()).all()


@pytest.mark.parametrize(
    ("columns", "arguments", "error", "message"),
    [
        ({}, {"groupby": "nothing"}, KeyError, "groupby='nothing' is not in"),
        ({}, {"replicate_key": "nothing"}, KeyError, "replicate_key='nothing' is not in"),
        ({}, {"replicate_key": ["donor"]}, TypeError, "must be the name of a column"),
        ({}, {"block_key": "nothing"}, KeyError, "block_key='nothing' is not in"),
        ({}, {"covariates": "nothing"}, KeyError, "covariates='nothing' is not in"),
        ({}, {"groups": ["control", "other"]}, KeyError, "groups=.'other'. are not in"),
        ({}, {"groups": "control"}, ValueError, "at least two"),
        ({}, {"n_permutations": 0}, ValueError, "n_permutations=0"),
        ({}, {"correction": "holm"}, ValueError, "correction='holm'"),
        ({}, {"groupby": "batch"}, ValueError, "groupby='batch' has the values .* in population 'donor_"),
        (
            {},
            {"replicate_key": "family"},
            ValueError,
            "replicate_key= a column with one value for each family x condition",
        ),
        ({}, {"replicate_key": "family", "block_key": "family"}, ValueError, "its block: replicate_key= a column"),
        ({}, {"block_key": "condition"}, ValueError, "none of the 2 blocks has replicates of two groups"),
        ({}, {"covariates": "condition"}, ValueError, "follow from them"),
        ({"split": "cell_type"}, {"covariates": "split"}, ValueError, "has 2 values in replicate"),
        ({"split": "cell_type"}, {"block_key": "split"}, ValueError, "of block_key='split'"),
        ({"age": np.inf}, {"covariates": "age"}, ValueError, "not finite"),
        ({"condition": None}, {}, ValueError, "groupby='condition' is missing in"),
        ({"condition": "control"}, {}, ValueError, "gives the groups .'control'."),
    ],
)
def test_bad_designs(study, columns, arguments, error, message):
    cells = _with(study, **{name: study.adata.obs[v] if v == "cell_type" else v for name, v in columns.items()})
    with pytest.raises(error, match=message):
        scgde.tl.test_groups(study, **{"groupby": "condition", "replicate_key": "donor", "adata": cells} | arguments)


def test_groups_of_one_replicate(study):
    donor = study.adata.obs["donor"]
    one = study.adata[((donor < "donor_4") | (donor == "donor_6")).to_numpy()].copy()
    with pytest.raises(ValueError, match="two replicates at least, and {'treated': 1} have fewer"):
        scgde.tl.test_groups(study, "condition", replicate_key="donor", adata=one)
    with pytest.raises(ValueError, match="None of 2 tests can be made"):
        scgde.tl.test_groups(study, "condition", replicate_key="donor", adata=one, stratify_by="cell_type")
    with pytest.raises(ValueError, match="two replicates at least"):
        scgde.tl.rank_genes_groups(study, "condition", replicate_key="donor", adata=one)


def test_models_that_cannot_be_asked(study, make_model, tmp_path):
    with pytest.raises(TypeError, match="AnnData"):
        scgde.tl.test_groups(study.adata, "condition", replicate_key="donor")
    untrained = make_model(study.adata.copy(), {"population_key": ["donor", "cell_type"]})
    with pytest.raises(RuntimeError, match="not trained"):
        scgde.tl.test_groups(untrained, "condition", replicate_key="donor")
    study.save(tmp_path / "model")
    alone = scgde.GDEModel.load(tmp_path / "model", adata=False)
    for call in (scgde.tl.test_groups, scgde.tl.rank_genes_groups):
        with pytest.raises(ValueError, match="without its AnnData"):
            call(alone, "condition", replicate_key="donor")
    with pytest.raises(ValueError, match="without its AnnData"):
        scgde.tl.pseudobulk(alone, "donor")
    table = scgde.tl.test_groups(alone, "condition", replicate_key="donor", adata=study.adata.copy())
    assert 0 < table["p_value"][0] <= 1


def test_groups_that_training_knew(study):
    cells = _with(study, batch=study.adata.obs["condition"])
    with pytest.warns(UserWarning, match="is the model's batch_key"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*batch.*not")
        scgde.tl.test_groups(study, "batch", replicate_key="donor", adata=cells)


def test_genes_in_units_of_replicates(study):
    table = scgde.tl.rank_genes_groups(study, "condition", replicate_key="donor", batch="batch_0", seed=0)
    assert (table["group"] == "treated").all() and table["scores"].is_monotonic_decreasing
    # a few epochs find what the counts say
    counts = pd.DataFrame(study.adata.X, columns=study.adata.var_names)
    shares = counts.div(counts.sum(1), axis=0).groupby(study.adata.obs["donor"].to_numpy()).mean()[table["names"]]
    observed = np.log2(shares[4:].mean() / shares[:4].mean())
    assert np.corrcoef(table["logfoldchanges"], observed)[0, 1] > 0.6
    decoded = study.get_normalized_expression(transform_batch="batch_0", library_size=1e4)
    means = np.log1p(decoded).groupby(study.adata.obs["donor"].to_numpy()).mean()[table["names"]]
    parts = means[:4], means[4:]
    error = np.sqrt(sum(part.var() / 4 for part in parts))
    np.testing.assert_allclose(table["difference"], parts[1].mean() - parts[0].mean(), atol=1e-5)
    np.testing.assert_allclose(table["scores"], (parts[1].mean() - parts[0].mean()) / error, rtol=1e-3)
    back = scgde.tl.rank_genes_groups(
        study, "condition", replicate_key="donor", reference="treated", batch="batch_0", seed=0
    )
    back = back.set_index("names").loc[table["names"]]
    np.testing.assert_allclose(back["scores"], -table["scores"], rtol=1e-6)
    np.testing.assert_allclose(back["logfoldchanges"], -table["logfoldchanges"], atol=1e-6)
    paired = scgde.tl.rank_genes_groups(
        study, "condition", replicate_key="donor", block_key="family", batch="batch_0", seed=0
    )
    change = parts[1].to_numpy() - parts[0].to_numpy()  # families are in the order of donors
    error = pd.Series(change.std(0, ddof=1) / 2, index=table["names"])
    np.testing.assert_allclose(paired["standard_error"], error[paired["names"]], rtol=1e-3)
    typed = scgde.tl.rank_genes_groups(
        study, "condition", replicate_key="donor", stratify_by="cell_type", n_cells=5, seed=0
    )
    assert typed.groupby("stratum").size().tolist() == [40, 40]
    with pytest.raises(KeyError, match="reference='nobody'"):
        scgde.tl.rank_genes_groups(study, "condition", replicate_key="donor", reference="nobody")
    with pytest.raises(ValueError, match="n_cells=0"):
        scgde.tl.rank_genes_groups(study, "condition", replicate_key="donor", n_cells=0)


def test_pseudobulk_counts(study):
    columns = {"groupby": "condition", "stratify_by": "cell_type", "block_key": "family", "covariates": ["age", "sex"]}
    bulk = scgde.tl.pseudobulk(study.adata, "donor", **columns)
    assert bulk.shape == (16, 40) and bulk.X.dtype == np.int64
    assert list(bulk.obs) == ["donor", "cell_type", "condition", "family", "age", "sex", "n_cells"]
    obs, row = study.adata.obs, bulk.obs.loc["donor_5|T"]
    inside = ((obs["donor"] == "donor_5") & (obs["cell_type"] == "T")).to_numpy()
    np.testing.assert_array_equal(bulk["donor_5|T"].X[0], study.adata.X[inside].sum(0))
    assert (row["condition"], row["family"], row["age"], row["n_cells"]) == ("treated", "family_1", 45, inside.sum())
    np.testing.assert_array_equal(scgde.tl.pseudobulk(study, "donor", **columns).X, bulk.X)
    whole = scgde.tl.pseudobulk(study.adata, "donor")
    assert whole.shape == (8, 40) and whole.X.sum() == study.adata.X.sum()
    with pytest.raises(KeyError, match="groupby='nothing'"):
        scgde.tl.pseudobulk(study.adata, "donor", groupby="nothing")
    with pytest.raises(ValueError, match="a replicate must have one"):
        scgde.tl.pseudobulk(study.adata, "family", groupby="condition")
    with pytest.raises(TypeError, match="source is a DataFrame"):
        scgde.tl.pseudobulk(study.adata.obs, "donor")
    with pytest.raises(ValueError, match="not integers"):
        scgde.tl.pseudobulk(_scaled(study.adata), "donor")


def _scaled(adata):
    adata = adata.copy()
    adata.X = adata.X * 0.3
    return adata


def test_weights_of_cells():
    frame = pd.DataFrame({"group": ["a", "a", "a", "b", "b"], "replicate": ["1", "1", "2", "3", "4"]})
    sample = as_replicates(frame, np.arange(5.0)[:, None], np.array([1, 3, 2, 2, 2]), ["a", "b"])
    assert sample.x.ravel().tolist() == [0.75, 2, 3, 4] and sample.groups.tolist() == [0, 0, 1, 1]
