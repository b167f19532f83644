"""Tables of a model's populations as replicates of groups."""

import warnings
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

import scgde
from scgde.inference import encode_components
from scgde.tl._groups import _warn_of_training
from scgde.tl._permanova import distance_interval, permanova
from scgde.tl._replicates import as_replicates, labels_in_order
from scgde.uncertainty import spread_vectors


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


def _moments(model, inside):
    """Means over donors of components less the mean of their batch, and of what they say about spread."""
    cells = np.flatnonzero(inside)
    x = encode_components(model.module, model._table(), cells)
    batch, donor = (model.adata.obs[name].to_numpy()[cells] for name in ("batch", "donor"))
    for b in np.unique(batch):
        x[batch == b] -= x[batch == b].mean(0)
    spread = (
        spread_vectors(x)[:, -56:] * 2
    )  # ten components: 55 products and a length, which have a weight of a quarter
    return [np.stack([v[donor == d].mean(0) for d in np.unique(donor)]) for v in (x, spread)]


def test_one_test_for_each_cell_type(study):
    with patch("scgde.tl._moments.depths_differ", return_value=False):
        table = scgde.tl.test_groups(study, "condition", replicate_key="donor", stratify_by="cell_type", seed=0)
    assert list(table.columns) == [
        *("stratum", "n_replicates", "n_replicates_control", "n_replicates_treated"),
        *(
            "matched_cells",
            "matched_depth",
            "distance",
            "distance_low",
            "distance_high",
            "statistic",
            "r2",
            "p_value",
            "p_adjusted",
        ),
        *("n_arrangements", "enumerated", "smallest_p"),
    ]
    assert list(table["stratum"]) == ["B", "T"] and (table["n_replicates"] == 8).all()
    assert (table["n_arrangements"] == 70).all() and table["enumerated"].all()
    assert table["smallest_p"].tolist() == [2 / 70, 2 / 70]
    z = study.get_population_embedding()
    groups = np.repeat([0, 1], 4)
    x = z.loc[[f"donor_{k}|B" for k in range(8)]].to_numpy(float)
    moments = _moments(study, (study.adata.obs["cell_type"] == "B").to_numpy())
    expected = permanova([x, *moments], groups, np.random.default_rng(0))
    assert table["p_value"][0] == pytest.approx(expected.p_value)
    assert table["statistic"][0] == pytest.approx(expected.statistic, rel=1e-6)
    estimate, _, high = distance_interval(x, groups)
    assert table["distance"][0] == pytest.approx(max(estimate, 0) ** 0.5, rel=1e-5)
    assert table["distance_high"][0] == pytest.approx(high**0.5, rel=1e-5)
    assert (table["p_adjusted"] >= table["p_value"]).all()


def test_populations_of_a_replicate_are_averaged_by_cells(study):
    with patch("scgde.tl._moments.depths_differ", return_value=False):
        table = scgde.tl.test_groups(study, "condition", replicate_key="donor", seed=0)
    z = study.get_population_embedding()
    donor = z.index.str.split("|").str[0]
    weight = study.get_population_adata().obs["gde_n_cells"].to_numpy(float)
    x = np.stack([np.average(z[donor == d], axis=0, weights=weight[donor == d]) for d in np.unique(donor)])
    groups = np.repeat([0, 1], 4)
    assert table["distance"][0] == pytest.approx(max(distance_interval(x, groups)[0], 0) ** 0.5, rel=1e-5)
    moments = _moments(study, np.ones(study.adata.n_obs, dtype=bool))
    expected = permanova([x, *moments], groups, np.random.default_rng(0))
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
        ({}, {"groups": 5}, TypeError, "groups=5 must be a list"),
        ({}, {"replicate_key": None}, TypeError, "replicate_key=None"),
        ({}, {"n_permutations": 0}, ValueError, "n_permutations=0"),
        ({}, {"n_permutations": 10**12}, ValueError, "from 1 to 10,000,000"),
        ({}, {"seed": "a"}, TypeError, "seed='a'"),
        ({}, {"seed": -1}, ValueError, "seed=-1"),
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
        ({}, {"covariates": "condition"}, ValueError, "^covariates: groups follow from what is given"),
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
    with pytest.warns(UserWarning, match="was the model's batch_key"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*batch.*not")
        scgde.tl.test_groups(study, "batch", replicate_key="donor", adata=cells)


def test_groups_that_follow_from_a_covariate_of_training(study):
    obs = study.adata.obs
    for key, name in (("batch_key", "donor"), ("categorical_covariate_keys", ["sex", "donor"])):
        model = SimpleNamespace(registry_={"setup_args": {key: name}})
        with pytest.warns(UserWarning, match=f"follows from 'donor', which was the model's {key}"):
            _warn_of_training(model, "condition", obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _warn_of_training(
            SimpleNamespace(registry_={"setup_args": {"batch_key": "family"}}),
            "condition",
            obs,
        )


def test_cells_are_left_out_where_groups_have_more(study):
    cells = study.adata
    order = cells.obs.groupby(["donor", "cell_type"], observed=True).cumcount().to_numpy()
    uneven = cells[(order < 6) | (cells.obs["condition"] == "treated").to_numpy()].copy()
    options = {"replicate_key": "donor", "stratify_by": "cell_type", "adata": uneven, "seed": 0}
    table = scgde.tl.test_groups(study, "condition", **options)
    assert table["matched_cells"].all()
    every = scgde.tl.test_groups(study, "condition", match_cells=False, **options)
    assert not every["matched_cells"].any() and (every["statistic"] != table["statistic"]).all()
    pd.testing.assert_frame_equal(table, scgde.tl.test_groups(study, "condition", match_cells=True, **options))
    # with six cells of every population there is nothing to leave out
    even = cells[order < 6].copy()
    both = [
        scgde.tl.test_groups(study, "condition", **options | {"adata": even, "match_cells": m}) for m in (True, False)
    ]
    np.testing.assert_allclose(both[0]["statistic"], both[1]["statistic"], rtol=1e-5)
    with pytest.raises(TypeError, match="match_cells='yes'"):
        scgde.tl.test_groups(study, "condition", match_cells="yes", **options)


def test_depths_are_matched_where_they_go_with_the_group(study):
    cells, rng = study.adata.copy(), np.random.default_rng(0)
    shallow = (cells.obs["condition"] == "control").to_numpy()
    cells.X = cells.X[rng.permutation(cells.n_obs)].astype(np.float32)  # one law
    cells.X[shallow] = rng.binomial(cells.X[shallow].astype(int), 0.3)
    options = {"replicate_key": "donor", "adata": cells, "seed": 0}
    table = scgde.tl.test_groups(study, "condition", **options)
    assert table["matched_depth"][0] and table["p_value"][0] > 0.05
    with patch("scgde.tl._moments.depths_differ", return_value=False):
        assert scgde.tl.test_groups(study, "condition", **options)["statistic"][0] > 1.2 * table["statistic"][0]


def test_numbers_of_a_categorical_column_are_categories(study):
    site = study.adata.obs["donor"].str[-1].astype(int).to_numpy() % 3
    options = {"replicate_key": "donor", "covariates": "site", "seed": 0}
    codes, names, numbers = (
        scgde.tl.test_groups(study, "condition", adata=_with(study, site=column), **options)
        for column in (pd.Categorical(site), site.astype(str), site)
    )
    pd.testing.assert_frame_equal(codes, names)
    assert codes["r2"][0] != pytest.approx(numbers["r2"][0], rel=1e-3)


def test_counts_of_arrangements_are_whole_beside_tests_that_cannot_be_made(study):
    cells = study.adata
    missing = cells[((cells.obs["cell_type"] == "B") | (cells.obs["condition"] == "control")).to_numpy()].copy()
    options = {"replicate_key": "donor", "stratify_by": "cell_type", "adata": missing, "n_permutations": 9, "seed": 0}
    with (
        pytest.warns(UserWarning, match="1 of 2 tests cannot be made"),
        patch("scgde.tl._permanova.n_arrangements", return_value=2**70),
    ):
        table = scgde.tl.test_groups(study, "condition", **options)
    assert table["n_arrangements"].tolist() == [2**63 - 1, 0]


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
    with pytest.raises(TypeError, match="replicate_key=None"):
        scgde.tl.pseudobulk(study.adata, None)
    with pytest.raises(ValueError, match="'n_cells' cannot be used"):
        scgde.tl.pseudobulk(_with(study, n_cells=study.adata.obs["condition"]), "donor", groupby="n_cells")
    alike = _with(study, one=np.where(np.arange(study.adata.n_obs) < 9, "a|b", "a"))
    alike.obs["two"] = np.where(np.arange(study.adata.n_obs) < 9, "c", "b|c")
    with pytest.raises(ValueError, match="Two rows would be named 'a|b|c'"):
        scgde.tl.pseudobulk(alike, "one", stratify_by="two")
    for value, message in ((np.inf, "infinite"), (1e19, "no integer holds")):
        large = study.adata.copy()
        large.X[0, 0] = value
        with pytest.raises(ValueError, match=message):
            scgde.tl.pseudobulk(large, "donor")


def test_genes_of_pairs_say_which_blocks_are_left_out(study):
    lonely = study.adata[(study.adata.obs["donor"] != "donor_7").to_numpy()].copy()
    with pytest.warns(UserWarning, match="family_3"):
        scgde.tl.rank_genes_groups(study, "condition", replicate_key="donor", block_key="family", adata=lonely)


def _scaled(adata):
    adata = adata.copy()
    adata.X = adata.X * 0.3
    return adata


def test_weights_of_cells():
    frame = pd.DataFrame({"group": ["a", "a", "a", "b", "b"], "replicate": ["1", "1", "2", "3", "4"]})
    sample = as_replicates(frame, np.arange(5.0)[:, None], np.array([1, 3, 2, 2, 2]), ["a", "b"])
    assert sample.x.ravel().tolist() == [0.75, 2, 3, 4] and sample.groups.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pd.Series([10, 2, 1, 2]), ["1", "2", "10"]),
        (pd.Series([10.0, 2.0, 0.5, np.nan], dtype=object), ["0.5", "2", "10"]),
        (pd.Series(["d10", "d2", "d10", None]), ["d10", "d2"]),
        (pd.Series(pd.Categorical(["late", "early"], categories=["early", "late", "never"])), ["early", "late"]),
        (pd.Series([True, False]), ["False", "True"]),
        (pd.Series([3, "b", 1], dtype=object), ["1", "3", "b"]),
    ],
)
def test_groups_are_in_the_order_of_their_column(values, labels):
    assert labels_in_order(values) == labels


def test_numbers_are_compared_with_the_smallest(study):
    dose = np.where(study.adata.obs["condition"] == "treated", 10, 2)
    table = scgde.tl.rank_genes_groups(
        study, "dose", replicate_key="donor", stratify_by="cell_type", adata=_with(study, dose=dose), seed=0
    )
    assert set(table["group"]) == {"10"}


def test_covariates_may_be_numbers_among_objects_and_any_list_of_names(study):
    cells = _with(study, age=study.adata.obs["age"].astype(object))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers, objects, names = (
            scgde.tl.test_groups(study, "condition", replicate_key="donor", covariates=covariates, adata=adata, seed=0)[
                "p_value"
            ].to_numpy()
            for covariates, adata in (("age", None), ("age", cells), (pd.Index(["age"]), None))
        )
    np.testing.assert_array_equal(numbers, objects)
    np.testing.assert_array_equal(numbers, names)
    with pytest.raises(TypeError, match="covariates=3 must be the name of a column"):
        scgde.tl.test_groups(study, "condition", replicate_key="donor", covariates=3)


def test_groups_that_follow_from_numbers_of_training(study):
    obs = study.adata.obs.assign(stim=(study.adata.obs["condition"] == "treated").astype(float))
    model = SimpleNamespace(registry_={"setup_args": {"continuous_covariate_keys": ["stim"]}})
    with pytest.warns(UserWarning, match="follows from 'stim', which was the model's continuous_covariate_keys"):
        _warn_of_training(model, "condition", obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        obs = obs.assign(constant=0.1, absent=np.nan)
        model = SimpleNamespace(registry_={"setup_args": {"continuous_covariate_keys": ["constant", "absent"]}})
        _warn_of_training(model, "condition", obs)
        _warn_of_training(
            SimpleNamespace(registry_={"setup_args": {"continuous_covariate_keys": ["age"]}}), "condition", obs
        )


@pytest.mark.parametrize("number", [None, "day"])
def test_batches_that_are_populations_leave_no_rounding_to_compare(make_cells, quick_model, number):
    """Means less those of batches are zero but for rounding, which must not take part: the order of cells would decide."""
    adata = make_cells(8, (20, 40), design="independent", n_genes=40)
    adata.obs["condition"] = np.where(adata.obs["population"].cat.codes % 2, "a", "b")
    # dates, far from zero for how little they vary
    adata.obs["day"] = 20200101.0 + np.random.default_rng(0).integers(1230, size=adata.n_obs)
    setup = {"population_key": "population", "batch_key": "population"}
    model = quick_model(adata, setup | ({"continuous_covariate_keys": [number]} if number else {}))
    tables = []
    for seed in range(3):
        cells = model.adata[np.random.default_rng(seed).permutation(model.adata.n_obs)].copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables.append(
                scgde.tl.test_groups(
                    model, "condition", replicate_key="population", adata=cells, match_cells=False, seed=0
                )
            )
    assert not any(table["matched_depth"][0] for table in tables)
    statistics = [table["statistic"][0] for table in tables]
    assert statistics == pytest.approx([statistics[0]] * 3, rel=1e-5)
    assert len({table["p_value"][0] for table in tables}) == 1
