"""Distances between means of few vectors: unbiased, with honest errors, against closed forms and brute force."""

import numpy as np
import pytest

from scgde import uncertainty
from scgde.uncertainty import corrected_distances, distance_and_error


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
    for delta, largest in ((0.0, 1.6), (0.4, 1.3), (3.0, 1.1)):
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
