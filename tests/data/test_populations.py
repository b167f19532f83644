import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgde.data import PopulationField
from scgde.data.populations import as_keys, as_label, candidate_columns, encode_labels, population_labels


def obs(**columns):
    return pd.DataFrame(columns, index=[f"cell{i}" for i in range(len(next(iter(columns.values()))))])


def test_labels_of_a_single_column_are_its_values():
    labels = population_labels(obs(clone=["b", "a", "b"]), ["clone"])
    assert labels.tolist() == ["b", "a", "b"] and labels.index.tolist() == ["cell0", "cell1", "cell2"]


def test_missing_values_are_missing_labels():
    labels = population_labels(obs(clone=["a", None, np.nan, "b"]), ["clone"])
    assert labels.isna().tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    "column",
    [[3, np.nan, 12], pd.array([3, None, 12], dtype="Int64"), pd.Categorical([3.0, np.nan, 12.0])],
    ids=["float", "nullable", "categorical"],
)
def test_integers_with_missing_values_read_as_integers(column):
    labels = population_labels(obs(well=column), ["well"])
    assert labels.isna().tolist() == [False, True, False] and labels.dropna().tolist() == ["3", "12"]


def test_fractions_keep_their_digits():
    assert population_labels(obs(dose=[0.5, 1.0]), ["dose"]).tolist() == ["0.5", "1"]


def test_categories_without_cells_are_no_populations():
    column = pd.Categorical(["a", "b"], categories=["z", "a", "b"])
    codes, names = encode_labels(population_labels(obs(clone=column), ["clone"]))
    assert names == ["a", "b"] and codes.tolist() == [0, 1]


def test_crossed_labels_join_the_parts_in_key_order():
    frame = obs(clone=["a", "b"], day=[2, 4])
    assert population_labels(frame, ["clone", "day"]).tolist() == ["a|2", "b|4"]
    assert population_labels(frame, ["day", "clone"]).tolist() == ["2|a", "4|b"]


def test_a_part_that_is_missing_leaves_the_cell_in_no_population():
    frame = obs(clone=["a", None, "b", "b"], day=["1", "1", None, "2"])
    labels = population_labels(frame, ["clone", "day"])
    assert labels.isna().tolist() == [False, True, True, False]


@pytest.mark.parametrize("unassigned", [["none"], ["none", "0"], [0, "none"]])
def test_unassigned_values_count_in_every_column(unassigned):
    frame = obs(clone=["a", "none", "b"], day=["none", "1", "1"])
    assert population_labels(frame, ["clone", "day"], unassigned).isna().tolist() == [True, True, False]


def test_unassigned_numbers_match_numeric_columns():
    assert population_labels(obs(well=[0, 1, 2]), ["well"], [0]).isna().tolist() == [True, False, False]


def test_two_tuples_of_one_string_raise():
    frame = obs(clone=["a|b", "a"], day=["c", "b|c"])
    with pytest.raises(ValueError, match=r"'a\|b', 'c'.*Rename one"):
        population_labels(frame, ["clone", "day"])


def test_names_with_slashes_and_bars_are_kept():
    names = ["T/B", "T|B", "a/b/c"]
    codes, found = encode_labels(population_labels(obs(kind=names), ["kind"]))
    assert [found[c] for c in codes] == names


def test_an_absent_column_names_the_candidates_and_only_those():
    frame = obs(
        clone=["a", "b", "a", "b"],
        same=["x"] * 4,
        each=list("abcd"),
        score=[0.1, 0.2, 0.1, 0.2],
        _scvi_batch=[0, 1, 0, 1],
    )
    assert candidate_columns(frame) == ["clone"]
    with pytest.raises(KeyError, match=r"\['clnoe'\] not in adata.obs.*\['clone'\]"):
        population_labels(frame, ["clnoe"])


def test_new_labels_extend_known_ones_in_sorted_order():
    labels = pd.Series(["new2", "b", None, "new1"], dtype=object)
    codes, names = encode_labels(labels, ["b", "a"])
    assert names == ["b", "a", "new1", "new2"] and codes.tolist() == [3, 0, -1, 2]


@pytest.mark.parametrize(
    ("label", "text"),
    [("a", "a"), (3, "3"), (3.0, "3"), (np.float32(2.5), "2.5"), (("a", 2), "a|2"), (["a", 2.0], "a|2")],
)
def test_labels_as_users_write_them(label, text):
    assert as_label(label) == text


def test_key_columns_are_a_list_of_distinct_names():
    assert as_keys("clone") == ["clone"] and as_keys(("clone", "day")) == ["clone", "day"]
    with pytest.raises(ValueError, match="each column once"):
        as_keys(["clone", "clone"])
    for bad in (None, 3, [], [1]):
        with pytest.raises(TypeError):
            as_keys(bad)


def cells(labels):
    return AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs(clone=labels))


def test_field_registers_codes_and_a_mapping():
    adata = cells(["b", "a", None, "none"])
    field = PopulationField(["clone"], ["none"])
    state = field.register_field(adata)
    assert adata.obs["_scvi_population"].tolist() == [1, 0, -1, -1]
    assert state == {"categorical_mapping": ["a", "b"], "keys": ["clone"], "unassigned": ["none"]}
    assert field.get_summary_stats(state) == {"n_population": 2}


def test_field_extends_to_new_populations_at_transfer():
    field = PopulationField(["clone"], ["none"])
    state = field.register_field(cells(["b", "a"]))
    query = cells(["c", "b", "none", None])
    extended = field.transfer_field(state, query)
    assert extended["categorical_mapping"] == ["a", "b", "c"]
    assert query.obs["_scvi_population"].tolist() == [2, 1, -1, -1]
    assert state["categorical_mapping"] == ["a", "b"], "a query must not change the reference"


def test_field_without_any_label_says_what_to_check():
    with pytest.raises(ValueError, match="every one of the 3 cells.*unassigned="):
        PopulationField(["clone"], ["none"]).register_field(cells(["none", None, "none"]))


def test_field_counts_unassigned_cells_in_one_message(scgde_log):
    PopulationField(["clone"]).register_field(cells(["a", None, None, "b"]))
    messages = [r.getMessage() for r in scgde_log.records if r.name.startswith("scgde")]
    assert len(messages) == 1 and messages[0].startswith("2 of 4 cells")
