"""Kernel regression: leave-one-out by brute force, choice of kernels, and regions."""

import numpy as np
import pytest
from scipy.stats import kstest

from scgde.perturbation.calibration import region_level
from scgde.perturbation.combinations import PartsModel
from scgde.perturbation.design import Design, Treatment
from scgde.perturbation.regression import FLAT, KernelRegression
from scgde.perturbation.shifts import ShiftModel


def brute_force(model, name, noise, slope, groups):
    """Errors of predicting each group from models that never saw it."""
    gram = 0 if name == "none" else model._gram(name)
    gram = gram + FLAT * model.basis @ model.basis.T + np.diag(noise + model._known)
    y = model.targets - slope * model._offset
    errors = np.empty_like(y)
    for g in np.unique(groups):
        out, rest = groups == g, groups != g
        errors[out] = y[out] - gram[np.ix_(out, rest)] @ np.linalg.solve(gram[np.ix_(rest, rest)], y[rest])
    return errors


@pytest.mark.parametrize("groups", [np.arange(9), np.repeat([0, 1, 2, 3, 4], 2)[:9]], ids=["rows", "blocks"])
def test_left_out_errors_are_those_of_refits(groups):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 4))
    variance = rng.uniform(0, 0.3, 9)
    model = KernelRegression({"x": x}, y, groups, np.ones((9, 1)), y[:, ::-1], (0.0, -0.5), variance)
    for name, noise in (("none", 1.0), ("x linear", 0.1), ("x radial-1.5", 0.3)):
        residual, _ = model._left_out(model._precision(name, noise), y + 0.5 * y[:, ::-1])
        assert np.allclose(residual, brute_force(model, name, noise, -0.5, groups), atol=1e-5)


def test_inputs_that_explain_are_used():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 2))
    y = x @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(30, 6))
    groups, ones = np.arange(30), np.ones((30, 1))
    useful = KernelRegression({"x": x}, y, groups, ones)
    new = rng.normal(size=(5, 2))
    truth = new @ np.linalg.lstsq(x, y, rcond=None)[0]
    predicted = useful.predict({"x": new}, np.ones((5, 1)))
    assert np.square(predicted.mean - truth).mean() < 0.05 * np.square(truth - y.mean(0)).mean()
    assert useful.summary().loc[0, "kernel"] == "x linear"


def test_inputs_that_say_nothing_cost_little():
    rng, errors, alone = np.random.default_rng(7), [], []
    for _ in range(40):
        y = rng.normal(size=(30, 6))
        model = KernelRegression({"x": rng.normal(size=(30, 2))}, y, np.arange(30), np.ones((30, 1)))
        errors.append(np.square(model.predict({"x": rng.normal(size=(5, 2))}, np.ones((5, 1))).mean).mean())
        alone.append(np.square(y.mean(0)).mean())
    # errors of the estimated mean itself, next to a variance of one between rows
    assert np.mean(errors) < np.mean(alone) + 0.06


def test_offset_is_taken_over_where_it_explains():
    rng = np.random.default_rng(2)
    offset = rng.normal(size=(20, 5))
    y = 1.0 - 0.75 * offset + 0.05 * rng.normal(size=(20, 5))
    model = KernelRegression({}, y, np.arange(20), np.ones((20, 1)), offset, (0.0, -0.5, -0.75, -1.0))
    assert model.summary().loc[0, "slope"] == -0.75
    predicted = model.predict({}, np.ones((1, 1)), np.full((1, 5), 2.0))
    assert np.allclose(predicted.mean, -0.5, atol=0.1)


def test_variance_widens_away_from_what_was_seen():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(25, 2))
    y = np.sin(x) @ rng.normal(size=(2, 4))
    model = KernelRegression({"x": x}, y, np.arange(25), np.ones((25, 1)))
    near, far = (model.predict({"x": v}, np.ones((1, 1))).variance.mean() for v in (x[:1], x[:1] + 20))
    assert far > 5 * near


def test_rows_that_nothing_describes_inform_the_mean_alone():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(12, 2))
    x[8:] = np.nan
    y = np.ones((12, 3))
    y[:8] += 0.01 * rng.normal(size=(8, 3))
    model = KernelRegression({"x": x}, y, np.arange(12), np.ones((12, 1)))
    predicted = model.predict({"x": np.full((1, 2), np.nan)}, np.ones((1, 1)))
    assert np.allclose(predicted.mean, 1, atol=0.05)
    assert np.isfinite(predicted.variance).all()


def test_certain_rows_weigh_more():
    y = np.array([[0.0], [0.0], [10.0]]) + np.zeros((3, 4))
    sure = KernelRegression({}, y, np.arange(3), np.ones((3, 1)), sampling_variance=np.array([0.0, 0.0, 1e4]))
    assert (sure.predict({}, np.ones((1, 1))).mean < 1).all()


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_rows_predict_their_mean_with_a_wide_error(n):
    y = np.arange(1.0, n + 1)[:, None] * np.ones((n, 3))
    model = KernelRegression({"x": np.arange(n, dtype=float)[:, None]}, y, np.arange(n), np.ones((n, 1)))
    predicted = model.predict({"x": np.zeros((1, 1))}, np.ones((1, 1)))
    assert np.allclose(predicted.mean, y.mean(0), atol=1e-3)
    assert (predicted.variance > 0.5).all()


def test_levels_of_regions_are_uniform_if_variances_are_right():
    rng = np.random.default_rng(5)
    variance, sampling = np.linspace(0.1, 2, 10), np.full(10, 0.2)
    levels = [
        region_level(rng.normal(size=10) * np.sqrt(variance + sampling), variance, sampling, 1e6, np.empty(0))
        for _ in range(2000)
    ]
    # Satterthwaite's match of two moments is no exact distribution
    assert kstest(levels, "uniform").statistic < 0.04
    narrow = [region_level(3 * rng.normal(size=10), np.ones(10), np.zeros(10), 1e6, np.empty(0)) for _ in range(50)]
    assert np.mean(narrow) > 0.95


def test_observed_ratios_move_levels():
    error, variance = np.ones(4), np.ones(4)
    heavy = region_level(error, variance, np.zeros(4), 10, np.full(100, 5.0))
    light = region_level(error, variance, np.zeros(4), 10, np.full(100, 0.1))
    assert heavy < 0.15 < 0.85 < light


class TestParts:
    """Effects of parts."""

    @staticmethod
    def simulate(common, noise=0.02, seed=0):
        rng = np.random.default_rng(seed)
        effects = rng.normal(size=(10, 6))
        parts = [(f"p{i}",) for i in range(10)] + [(f"p{i}", f"p{j}") for i in range(6) for j in range(i)]
        codes = [[int(p[1:]) for p in t] for t in parts]
        y = np.stack([effects[c].sum(0) + common for c in codes]) + noise * rng.normal(size=(len(parts), 6))
        return parts, y, effects

    def test_a_common_change_is_counted_once(self):
        parts, y, effects = self.simulate(common=2.0)
        model = PartsModel(parts, y, np.full_like(y, 4e-4))
        truth = effects[8] + effects[9] + 2.0
        assert np.abs(model.predict(("p8", "p9")).mean - truth).max() < 0.25
        assert np.allclose(model.common, 2.0, atol=0.7)

    def test_without_combinations_shifts_are_summed(self):
        parts, y, _ = self.simulate(common=2.0)
        model = PartsModel(parts[:10], y[:10], np.full((10, 6), 1e-8))
        assert np.allclose(model.predict(("p1", "p2")).mean, y[1] + y[2], atol=1e-3)

    def test_predictions_of_seen_combinations_leave_them_out(self, monkeypatch):
        monkeypatch.setattr("scgde.perturbation.combinations.PART_NOISE", (0.1,))
        parts, y, _ = self.simulate(common=0.5)
        variance = np.full_like(y, 4e-4)
        model = PartsModel(parts, y, variance)
        left, rest = model.combined[-1], np.arange(len(parts) - 1)
        expected = 0.0
        for weight, (noise, common) in zip(model.weights, model.options, strict=True):
            gram = model.x @ model.x.T + FLAT * common
            cov = gram + np.eye(len(y)) * (noise + 1e-6 + 4e-4 / (np.square(y).mean() - 4e-4))
            expected = expected + weight * gram[left, rest] @ np.linalg.solve(cov[np.ix_(rest, rest)], y[rest])
        assert np.allclose(model.predicted[-1], expected, atol=1e-6)


def test_shifts_that_were_seen_lose_what_only_noise_tells():
    rng = np.random.default_rng(6)
    n = 20
    z = np.zeros((n + 1, 3))
    z[1:, 0] = rng.normal(0, 5, n)
    z[1:, 1] = 2 + 0.3 * rng.normal(size=n)  # all alike, but for the sampling of cells
    treatments = [Treatment(("ctrl",)), *(Treatment((f"p{i}",)) for i in range(n))]

    def design_of(k):
        zeros = np.zeros((k, 3))
        return Design(["c"] * k, treatments[:k], z[:k], zeros + 0.09, np.full(k, 50), "ctrl", zeros, np.full(k, np.inf))

    model = ShiftModel(design_of(n + 1), None)
    seen = model.predict(Treatment(("p3",)), "c", z[0])
    # posterior mean of two normal levels; the sampling variance of a shift is that of both populations
    centre, between = z[1:, 0].mean(), z[1:, 0].var(ddof=1) - 0.18
    assert seen.mean[0] == pytest.approx(centre + between / (between + 0.18) * (z[4, 0] - centre))
    assert abs(seen.mean[1] - z[1:, 1].mean()) < 0.35 * abs(z[4, 1] - z[1:, 1].mean())
    few = ShiftModel(design_of(5), None)
    assert np.allclose(few.predict(Treatment(("p3",)), "c", z[0]).mean, z[4])
