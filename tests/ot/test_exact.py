from itertools import permutations

import numpy as np
import pytest
import torch

from scgde.ot import wasserstein


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", [5, 600])
@pytest.mark.parametrize("d", [1, 3])
def test_translation_costs_its_length(rng, n, d):
    x, shift = rng.normal(size=(n, d)), np.arange(1.0, d + 1)
    assert wasserstein(x, x + shift) == pytest.approx(np.linalg.norm(shift), rel=1e-9)


def test_translation_far_from_the_origin_does_not_cancel(rng):
    x = rng.normal(size=(20, 3)) + 1e6
    # Coordinates near 1e6 carry rounding of 1e-10; an expanded square would lose everything below 1e-4.
    assert wasserstein(x, x + [1e-3, 0, 0]) == pytest.approx(1e-3, rel=1e-6)


def test_agrees_with_the_best_of_all_permutations(rng):
    for _ in range(10):
        x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
        best = min(((x - y[list(order)]) ** 2).sum(1).mean() for order in permutations(range(4)))
        assert wasserstein(x, y) == pytest.approx(np.sqrt(best), rel=1e-12)


def test_line_agrees_with_the_quantile_formula_and_with_two_dimensions(rng):
    x, y = rng.normal(size=(30, 1)), rng.exponential(size=(30, 1))
    quantiles = np.sqrt(((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2).mean())
    assert wasserstein(x, y) == pytest.approx(quantiles, rel=1e-12)
    # A constant second coordinate changes nothing, but takes the path of the assignment solver.
    assert wasserstein(np.c_[x, np.ones(30)], np.c_[y, np.ones(30)]) == pytest.approx(quantiles, rel=1e-9)


def test_assignment_and_network_simplex_agree(rng):
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 4)) + 1
    uniform = np.ones(40)
    assert wasserstein(x, y) == pytest.approx(wasserstein(x, y, weights_x=uniform), rel=1e-9)


@pytest.mark.parametrize("d", [1, 2])
def test_integer_weights_are_repeated_points(rng, d):
    x, y, times = rng.normal(size=(6, d)), rng.normal(size=(7, d)), np.array([1, 2, 0, 3, 1, 1])
    weighted = wasserstein(x, y, weights_x=times)
    assert weighted == pytest.approx(wasserstein(np.repeat(x, times, axis=0), y), rel=1e-9)


def test_metric_axioms(rng):
    a, b, c = (rng.normal(size=(n, 3)) + shift for n, shift in ((11, 0), (17, 1), (8, -1)))
    assert wasserstein(a, a[rng.permutation(11)]) == 0
    assert wasserstein(a, b) == pytest.approx(wasserstein(b, a), rel=1e-12)
    assert wasserstein(a, c) <= wasserstein(a, b) + wasserstein(b, c)


def test_duplicated_points_change_nothing(rng):
    x, y = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    assert wasserstein(np.tile(x, (3, 1)), y) == pytest.approx(wasserstein(x, y), rel=1e-9)


def test_tensors_give_the_same_float(rng):
    x, y = rng.normal(size=(9, 2)), rng.normal(size=(5, 2))
    value = wasserstein(torch.tensor(x, requires_grad=True), torch.tensor(y))
    assert isinstance(value, float)
    assert value == wasserstein(x, y)


@pytest.mark.parametrize(
    ("x", "y", "weights", "match"),
    [
        (np.zeros((0, 2)), np.zeros((3, 2)), None, "`x` has shape"),
        (np.zeros(4), np.zeros((3, 2)), None, "Reshape"),
        (np.zeros((4, 2)), np.full((3, 2), np.nan), None, "`y` holds 6 values"),
        (np.zeros((4, 2)), np.zeros((3, 5)), None, "`x` has 2 dimensions and `y` has 5"),
        (np.zeros((4, 2)), np.zeros((3, 2)), np.ones(3), "`weights_x` has shape"),
        (np.zeros((4, 2)), np.zeros((3, 2)), np.array([1.0, 1, 1, -1]), "not negative"),
        (np.zeros((4, 2)), np.zeros((3, 2)), np.zeros(4), "not all zero"),
    ],
)
def test_errors_name_the_argument(x, y, weights, match):
    with pytest.raises(ValueError, match=match):
        wasserstein(x, y, weights_x=weights)
