import numpy as np
import pandas as pd
import pytest

from scgde.data.populations import split_by_cell, split_by_column, split_by_population

SHARES = [(0.9, 0.1), (0.8, 0.1), (0.5, 0.5), (0.5, 0.25), (1.0, 0.0), (0.1, 0.9), (0.7, 0.3)]


@pytest.fixture
def codes():
    """Populations of 1 to 57 cells and 23 cells in none, in random order."""
    sizes = [1, 2, 3, 9, 10, 11, 20, 57]
    return np.random.default_rng(0).permutation(np.repeat(np.arange(-1, len(sizes)), [23, *sizes]))


def is_partition(parts, n):
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@pytest.mark.parametrize(("train_size", "validation_size"), [s for s in SHARES if s[0] > 0.2])
@pytest.mark.parametrize("split", [split_by_cell, split_by_population])
def test_parts_are_disjoint_complete_and_sorted(codes, split, train_size, validation_size):
    parts = split(codes, train_size, validation_size, np.random.default_rng(1))
    assert is_partition(parts, len(codes))
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize(("train_size", "validation_size"), SHARES)
def test_every_population_trains_with_at_least_one_cell(codes, train_size, validation_size):
    train, _, _ = split_by_cell(codes, train_size, validation_size, np.random.default_rng(1))
    assert set(codes[train]) == set(codes)


@pytest.mark.parametrize(("train_size", "validation_size"), SHARES)
def test_each_population_gives_its_own_share_rounded_down(codes, train_size, validation_size):
    parts = split_by_cell(codes, train_size, validation_size, np.random.default_rng(1))
    test_size = 1 - train_size - validation_size
    for label in np.unique(codes):
        n = (codes == label).sum()
        _, validation, test = ((codes[part] == label).sum() for part in parts)
        assert validation == np.floor(n * validation_size + 1e-6)
        assert test == np.floor(n * test_size + 1e-6)


def test_share_that_is_one_minus_another_is_not_lost_to_rounding():
    # 1 - 0.9 is a hair below 0.1 in binary, yet a tenth of 10 cells is one cell
    _, validation, _ = split_by_cell(np.zeros(10, dtype=int), 0.9, 1 - 0.9, np.random.default_rng(0))
    assert len(validation) == 1


def test_split_depends_on_the_generator_only(codes):
    first, again, other = (split_by_cell(codes, 0.5, 0.5, np.random.default_rng(s))[0] for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_whole_populations_are_held_out_and_unassigned_cells_train(codes):
    train, validation, test = split_by_population(codes, 0.5, 0.25, np.random.default_rng(1))
    labels = [set(codes[part]) for part in (train, validation, test)]
    assert [len(s - {-1}) for s in labels] == [4, 2, 2]
    assert not labels[0] & labels[1] and not labels[0] & labels[2] and not labels[1] & labels[2]
    assert -1 in labels[0] and -1 not in labels[1] | labels[2]


def test_population_split_with_too_little_to_train_on_says_so():
    with pytest.raises(ValueError, match="fewer than two of 4 populations.*raise train_size"):
        split_by_population(np.repeat(np.arange(4), 5), 0.25, 0.75, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", [object, "category"])
def test_split_by_column_follows_the_column(dtype):
    values = np.random.default_rng(0).choice(["train", "validation", "test"], 50)
    parts = split_by_column(pd.Series(values).astype(dtype), "split")
    assert is_partition(parts, 50)
    for part, name in zip(parts, ("train", "validation", "test"), strict=True):
        assert set(values[part]) == {name}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["train", "val"], r"split_key='split'.*\['val'\].*Rename them"),
        (["train", None], r"\['missing'\]"),
        (["test", "validation"], "no cell is marked 'train'"),
    ],
)
def test_split_by_column_with_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        split_by_column(pd.Series(values), "split")
