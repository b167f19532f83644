"""Distances between means of few vectors: unbiased, with honest errors, against closed forms and brute force."""

from itertools import combinations

import numpy as np
import pytest

from scgde import uncertainty
from scgde.uncertainty import (
    adjust_p_values,
    corrected_distances,
    distance_and_error,
    permutation_test,
    spread_vectors,
)


def _replicates(rng, delta, root, n, runs):
    """Independent draws of ``n`` Gaussian vectors around 0 and around a point ``delta`` away: estimates of each pair."""
    w = len(root)
    x = rng.normal(size=(2 * runs * n, w)) @ root
    x[runs * n :, 0] += delta
    squared, variance = corrected_distances(x, np.arange(2 * runs).repeat(n), 2 * runs)
    raw = np.linalg.norm(x[: runs * n].reshape(runs, n, w).mean(1) - x[runs * n :].reshape(runs, n, w).mean(1), axis=1)
    return np.diagonal(squared[:runs, runs:]), np.diagonal(variance[:runs, runs:]), raw


@pytest.mark.parametrize("packed", [2**24, 40])
def test_pairs_are_those_of_a_loop(monkeypatch, packed):
    monkeypatch.setattr(uncertainty, "_PACKED_ENTRIES", packed)
    rng = np.random.default_rng(0)
    sizes, w = [5, 9, 1, 30, 4, 0, 6], 4
    segment = rng.permutation(np.r_[np.repeat(np.arange(7), sizes), [-1] * 3])
    # far from the origin, where sums of squares cancel
    x = 1e4 + rng.standard_t(5, size=(len(segment), w)) @ rng.normal(size=(w, w))
    squared, variance = corrected_distances(x, segment, 7)
    for i in range(7):
        for j in range(7):
            a, b = x[segment == i], x[segment == j]
            if i == j or min(len(a), len(b)) < 2:
                assert (squared[i, j] == 0) if i == j else np.isnan([squared[i, j], variance[i, j]]).all()
                continue
            # the U-statistic of the squared distance: no cell is paired with itself
            within = [(y @ y.T).sum() - np.square(y).sum() for y in (a - 1e4, b - 1e4)]
            expected = sum(s / (len(y) * (len(y) - 1)) for s, y in zip(within, (a, b), strict=True))
            expected -= 2 * (a - 1e4).mean(0) @ (b - 1e4).mean(0)
            assert squared[i, j] == pytest.approx(expected, abs=1e-6)
            d = a.mean(0) - b.mean(0)
            ca, cb = (np.cov(y.T) / len(y) for y in (a, b))
            square = sum(uncertainty._trace_estimates(y - y.mean(0))[1] / len(y) ** 2 for y in (a, b))
            square = square + 2 * np.trace(ca @ cb)
            floor = np.trace(ca + cb) ** 2 / w
            expected = 4 * max(d @ (ca + cb) @ d - square, 0) + 2 * max(square, floor)
            assert variance[i, j] == pytest.approx(expected, rel=1e-6)


def test_trace_of_a_squared_covariance_is_estimated_without_bias():
    rng = np.random.default_rng(1)
    root = np.diag([2.0, 1.0, 0.5, 0.5])
    for draw in (rng.normal, lambda size: rng.standard_exponential(size) - 1):
        samples = draw(size=(4000, 12, 4)) @ root
        estimates = np.array([uncertainty._trace_estimates(s - s.mean(0)) for s in samples])
        truth = np.trace(root**2), np.trace(root**4)
        # plug-in is 26 % too large here; the mean of 4,000 has an error of 2 %
        np.testing.assert_allclose(estimates.mean(0), truth, rtol=0.06)


def test_errors_are_the_spread_of_the_estimates_at_zero_and_far_away():
    rng = np.random.default_rng(2)
    root, n, runs = np.diag([1.5, 1, 1, 0.5, 0.5]), 20, 1500
    cov = 2 * root**2 / n
    for delta, largest in ((0.0, 1.9), (0.4, 1.5), (3.0, 1.1)):
        squared, variance, _ = _replicates(rng, delta, root, n, runs)
        exact = 4 * delta**2 * cov[0, 0] + 2 * np.trace(cov @ cov)
        # a variance from 1,500 draws has an error of 4 %, more where tails are heavy
        assert squared.var() == pytest.approx(exact, rel=0.15)
        # cutting the first term at zero errs on the safe side
        assert 0.95 < variance.mean() / exact < largest
        assert squared.mean() == pytest.approx(delta**2, abs=4 * np.sqrt(exact / runs))


def test_intervals_hold_the_truth_whatever_the_distance():
    rng = np.random.default_rng(3)
    for delta in (0.0, 0.2, 0.5, 1.0, 4.0):
        squared, variance, raw = _replicates(rng, delta, np.eye(8), 16, 1000)
        distance, error = distance_and_error(squared, variance)
        # t quantile with 15 degrees of freedom; a share of 95 % of 1,000 has an error of 0.7 %
        assert (np.abs(distance - delta) <= 2.13 * error).mean() > 0.93
        rmse = [np.sqrt(np.mean(np.square(estimate - delta))) for estimate in (distance, raw)]
        assert rmse[0] < (0.6 if delta < 0.3 else 1.05) * rmse[1]


def test_error_of_a_distance():
    q, s = np.array([100.0, 2.0, 0.0, -3.0]), np.array([0.1, 1.0, 1.0, 1.0])
    distance, error = distance_and_error(q, s**2)
    np.testing.assert_allclose(distance, np.sqrt(np.maximum(q, 0)))
    np.testing.assert_allclose(error, [0.1 / 20, *[np.sqrt(0.5)] * 3], rtol=1e-3)
    q = np.linspace(-4, 40, 200)
    distance, error = distance_and_error(q, np.ones_like(q))
    # two standard errors hold the roots of the ends of the interval of the squared distance
    assert (distance - 2 * error <= np.sqrt(np.maximum(q - 2, 0)) + 1e-12).all()
    assert (distance + 2 * error >= np.sqrt(np.maximum(q + 2, 0)) - 1e-12).all()


@pytest.mark.parametrize("n_source", [2, 5])
def test_p_value_is_that_of_all_splits(n_source):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(7, 3))
    in_source = np.arange(7) < n_source
    splits = np.array([np.isin(np.arange(7), c) for c in combinations(range(7), n_source)])
    gaps = np.array([np.square(x[s].mean(0) - x[~s].mean(0)).sum() for s in splits])
    own = np.square(x[in_source].mean(0) - x[~in_source].mean(0)).sum()
    statistic, p = permutation_test(x, in_source, rng, n_permutations=20_000)
    # the observed split is one of the 21, and found as a tie in spite of rounding
    assert p == pytest.approx((gaps >= own - 1e-12).mean(), abs=0.01)
    assert statistic == pytest.approx(own / gaps.mean(), rel=1e-9)


def test_blocks_are_permuted_within_and_compared_within():
    rng = np.random.default_rng(5)
    block = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
    in_source = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=bool)
    # a large effect of blocks, whose mix differs between the groups, and a third block that tells nothing
    x = rng.exponential(size=(11, 2)) ** 3 + 50.0 * block[:, None]
    splits = [
        np.isin(np.arange(11), [*first, 4 + second, 9, 10])
        for first in combinations(range(4), 3)
        for second in range(5)
    ]
    residual = x - np.stack([x[block == b].mean(0) for b in range(3)])[block]
    gaps = np.array([np.square(residual[s].sum(0)).sum() for s in splits])
    own = np.square(residual[in_source].sum(0)).sum()
    statistic, p = permutation_test(x, in_source, rng, n_permutations=20_000, block=block)
    assert p == pytest.approx((gaps >= own - 1e-12).mean(), abs=0.015)
    assert statistic == pytest.approx(own / gaps.mean(), rel=1e-9)
    assert np.isnan(permutation_test(x, block > 0, rng, block=block)).all()
    assert np.isnan(permutation_test(np.ones((6, 2)), np.arange(6) < 3, rng)).all()


def test_blocks_free_a_test_of_a_confounded_effect():
    rng = np.random.default_rng(8)
    block = np.repeat([0, 1], 40)
    in_source = np.r_[np.arange(40) < 30, np.arange(40) < 10]
    p = []
    for _ in range(200):
        x = rng.normal(size=(80, 4)) + 2.0 * block[:, None]
        assert permutation_test(spread_vectors(x), in_source, rng, n_permutations=99)[1] <= 0.05
        vectors = spread_vectors(x, block)
        p.append(permutation_test(vectors, in_source, rng, n_permutations=99, block=block)[1])
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.1 and np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_size_and_power_at_equal_means():
    rng = np.random.default_rng(6)
    group = np.arange(60) < 30
    found = {"null": [], "narrow": [], "narrow, plain": []}
    for _ in range(300):
        x = rng.standard_t(4, size=(60, 6)) * [2, 1, 1, 0.3, 0.3, 0.1]
        found["null"].append(permutation_test(spread_vectors(x), group, rng, n_permutations=99)[1])
        x[:30] *= 0.5
        found["narrow"].append(permutation_test(spread_vectors(x), group, rng, n_permutations=99)[1])
        found["narrow, plain"].append(permutation_test(x, group, rng, n_permutations=99)[1])
    share = {name: np.mean(np.array(p) <= 0.05) for name, p in found.items()}
    # 5 % of 300 has an error of 1.3 %
    assert 0.01 < share["null"] < 0.09
    assert share["narrow"] > 0.65 > 0.2 > share["narrow, plain"]


def test_parts_of_spread_vectors_are_balanced():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(500, 3)) @ np.diag([4.0, 1.0, 0.0]) + 3.0
    y = spread_vectors(x)
    # two directions with spread, three entries of the root of their covariance, and the length
    assert y.shape == (500, 2 + 3 + 1) and np.abs(y.mean(0)).max() < 1e-10
    norms = [np.linalg.norm(np.atleast_2d(np.cov(part.T))) for part in (y[:, :2], y[:, 2:5], y[:, 5:])]
    np.testing.assert_allclose(norms, [1, uncertainty.SPREAD_WEIGHT, uncertainty.SPREAD_WEIGHT], rtol=1e-9)
    # the eigenvalues of the covariance become their roots
    ratio = np.linalg.eigvalsh(np.cov(y[:, :2].T)) / np.sqrt(np.linalg.eigvalsh(np.cov(x.T)))[1:]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-6)
    assert not spread_vectors(np.ones((4, 2))).any()
    np.testing.assert_allclose(np.square(spread_vectors(x[::-1])), np.square(y[::-1]), atol=1e-8)


def test_spread_part_is_the_influence_on_the_root_of_the_covariance():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(40, 2)) * [2.0, 1.0]
    axes = np.linalg.eigh(np.cov(x.T))[1][:, ::-1]

    def root(weight):
        centred = x @ axes - weight @ (x @ axes)
        values, vectors = np.linalg.eigh((centred * weight[:, None]).T @ centred)
        matrix = (vectors * np.sqrt(values)) @ vectors.T
        return np.array([matrix[0, 0], np.sqrt(2) * matrix[0, 1], matrix[1, 1]])

    uniform = np.full(40, 1 / 40)
    influence = np.stack([(root(0.9999 * uniform + 1e-4 * np.eye(40)[j]) - root(uniform)) / 1e-4 for j in range(40)])
    # balanced vectors are a linear map of the influences: distances in units of the covariance are the same
    y = spread_vectors(x)[:, 2:5]
    lengths = [np.einsum("ni,ij,nj->n", v, np.linalg.inv(np.cov(v.T)), v) for v in (y, influence - influence.mean(0))]
    np.testing.assert_allclose(*lengths, rtol=2e-3, atol=2e-3)


def test_adjusted_p_values():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(adjust_p_values(p, "fdr_bh"), [0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5])
    np.testing.assert_allclose(adjust_p_values(p, "bonferroni"), [0.04, np.nan, 0.16, 0.12, 1.0])
    np.testing.assert_allclose(adjust_p_values(p, None), p)
    assert np.isnan(adjust_p_values(np.array([np.nan]), "fdr_bh")).all()
    with pytest.raises(ValueError, match="correction='bh'"):
        adjust_p_values(p, "bh")
