import numpy as np
import pytest
import torch

from scgde.ot import debiased_wasserstein, pairwise_distances, wasserstein


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_is_the_definition_for_some_split(rng):
    x, y = rng.normal(size=(3, 2)), rng.normal(size=(2, 2)) + 5
    value = debiased_wasserstein(x, y, squared=True)

    def cost(i, j):
        return ((i - j) ** 2).sum()

    # One point of three is left out: three splits, whose halves are single points.
    options = [
        np.mean([cost(a, b) for a in (x[i], x[j]) for b in y]) - cost(x[i], x[j]) / 2 - cost(*y) / 2
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert min(abs(value - option) for option in options) < 1e-9
    assert debiased_wasserstein(x, y) == pytest.approx(value**0.5, rel=1e-12)
    assert isinstance(debiased_wasserstein(torch.tensor(x), y), float)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_is_unbiased_for_draws_of_one_law_up_to_translation(rng, shift):
    draws = rng.normal(size=(200, 2, 16, 6)) * np.linspace(0.5, 2, 6)
    draws[:, 1, :, 0] += shift
    values = np.array([debiased_wasserstein(*pair, squared=True, seed=i) for i, pair in enumerate(draws)])
    error = values.std() / np.sqrt(200)
    assert abs(values.mean() - shift**2) < 3 * error
    biased = np.mean([wasserstein(*pair) ** 2 for pair in draws])
    assert biased - shift**2 > 20 * error


def test_most_of_the_bias_goes_where_sizes_differ(rng):
    pairs = [(rng.normal(size=(12, 6)), rng.normal(size=(40, 6))) for _ in range(200)]
    values = [debiased_wasserstein(x, y, squared=True, seed=i) for i, (x, y) in enumerate(pairs)]
    assert abs(np.mean(values)) < 0.2 * np.mean([wasserstein(x, y) ** 2 for x, y in pairs])


def test_negative_values_and_seeds(rng):
    pairs = rng.normal(size=(20, 2, 30, 4))
    squares = np.array([debiased_wasserstein(*pair, squared=True) for pair in pairs])
    assert (squares < 0).any() and (squares > 0).any()
    roots = np.array([debiased_wasserstein(*pair) for pair in pairs])
    np.testing.assert_allclose(roots, np.sqrt(squares.clip(min=0)))
    assert debiased_wasserstein(*pairs[0], seed=1, squared=True) != squares[0]
    assert debiased_wasserstein(*pairs[0], seed=np.random.default_rng(0), squared=True) == squares[0]


def test_pairwise_takes_one_split_of_each_set(rng):
    segment = np.repeat([0, 1, 2], 2)
    x = rng.normal(size=(6, 3)) + 5 * segment[:, None]
    # Sets of two points have one split: the distance does not depend on the seed.
    expected = [
        [0 if i == j else debiased_wasserstein(x[segment == i], x[segment == j]) for j in range(3)] for i in range(3)
    ]
    for seed in (0, 1, torch.Generator().manual_seed(3)):
        found = pairwise_distances(x, segment, debiased=True, seed=seed, progress=False)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    other = pairwise_distances(x, segment, debiased=True, x_other=x[2:], segment_other=segment[2:] - 1, progress=False)
    assert other.shape == (3, 2)
    np.testing.assert_allclose(other[0], found[0, 1:], rtol=1e-12)
    # A set compared with itself shares its points: the self-terms are subtracted from half of themselves.
    assert other[1, 0] == 0


def test_single_points_raise(rng):
    with pytest.raises(ValueError, match="`y` has 1 point"):
        debiased_wasserstein(rng.normal(size=(4, 2)), rng.normal(size=(1, 2)))
    with pytest.raises(ValueError, match=r"`x\[segment == 1\]` has 1 point"):
        pairwise_distances(rng.normal(size=(3, 2)), np.array([0, 0, 1]), debiased=True, progress=False)
