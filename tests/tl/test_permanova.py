"""The permutation test of groups of replicates, and distances between groups, on arrays."""

from itertools import combinations, permutations, product

import numpy as np
import pytest

from scgde.tl._permanova import all_arrangements, distance_interval, n_arrangements, permanova, squared_distance


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
    assert test.enumerated and test.n_arrangements == 40320 // 16
    assert test.smallest_p == 4 / test.n_arrangements  # names of groups and of sexes can be exchanged


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


@pytest.mark.parametrize(
    ("groups", "block", "covariate"),
    [
        ([0, 1] * 2 + [2, 0] * 2, np.repeat(range(4), 2), None),
        ([0, 1] * 4, np.repeat(range(4), 2), [0, 1, 1, 0, 0, 1, 1, 0]),
        ([0, 0, 0, 1, 1, 1], None, [0, 0, 1, 0, 1, 1]),
        ([0, 0, 1, 1], None, [1, 2, 3, 4]),
    ],
)
def test_no_vectors_have_a_smaller_p_value_than_the_smallest(groups, block, covariate):
    groups, rng = np.array(groups), np.random.default_rng(0)
    covariates = None if covariate is None else np.array(covariate, dtype=float)[:, None]
    p, smallest = [], []
    for _ in range(100):
        x = rng.normal(size=(len(groups), 2)) ** 3 + 8 * rng.random() * groups[:, None] * rng.normal(size=2)
        test = permanova(x, groups, rng, n_permutations=1000, block=block, covariates=covariates)
        assert test.enumerated
        p.append(test.p_value)
        smallest.append(test.smallest_p)
    assert len(set(smallest)) == 1 and min(p) >= smallest[0] - 1e-12
    assert min(p) <= 2.001 * smallest[0]


def test_parts_weigh_alike():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    groups = np.repeat([0, 1], 4)
    r2 = [permanova(x, groups, rng).r2 for x in (one, two, [one, 1e3 * two], [one, np.ones((8, 1))])]
    assert r2[2] == pytest.approx((r2[0] + r2[1]) / 2) and r2[3] == pytest.approx(r2[0])
    assert np.isnan(permanova([np.ones((8, 1)), np.zeros((8, 2))], groups, rng).p_value)
