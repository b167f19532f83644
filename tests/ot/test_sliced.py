import numpy as np
import pytest
import torch

from scgde.ot import sliced_wasserstein, wasserstein


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (13, 29), (1, 7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_exact_distance_on_the_line(rng, n, m, weighted):
    x, y = rng.normal(size=(n, 1)), rng.exponential(size=(m, 1))
    weights = {"weights_x": rng.random(n), "weights_y": rng.random(m)} if weighted else {}
    # The same problem in two dimensions is solved as a linear program.
    exact = wasserstein(np.c_[x, np.zeros(n)], np.c_[y, np.zeros(m)], **weights)
    assert sliced_wasserstein(x, y, **weights) == pytest.approx(exact, rel=1e-9)


def test_quantile_formula_for_unequal_sizes():
    # Half of the mass moves by 1, the other half by 2: (1 + 4) / 2.
    assert sliced_wasserstein([[0.0]], [[1.0], [2.0]]) == pytest.approx(np.sqrt(2.5), rel=1e-12)


@pytest.mark.parametrize("d", [1, 4, 16])
def test_translation_is_measured_without_error_by_whole_blocks(rng, d):
    x, shift = rng.normal(size=(25, d)), rng.normal(size=d)
    assert sliced_wasserstein(x, x + shift, n_projections=32) == pytest.approx(np.linalg.norm(shift), rel=1e-9)


def test_translation_is_unbiased_for_partial_blocks(rng):
    x, shift = rng.normal(size=(5, 10)), np.full(10, 1.0)
    squares = [sliced_wasserstein(x, x + shift, n_projections=3, seed=seed) ** 2 for seed in range(400)]
    # Standard error about 0.18 for a squared length of 10.
    assert np.mean(squares) == pytest.approx(10, abs=0.8)


def test_at_most_the_exact_distance(rng):
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) * [1, 3, 0.2]
    # The bound holds for the mean over directions; 2 % covers the noise of 512 of them.
    assert 0 < sliced_wasserstein(x, y, n_projections=512) < 1.02 * wasserstein(x, y)


def test_metric_axioms_for_shared_directions(rng):
    a, b, c = (rng.normal(size=(n, 3)) + shift for n, shift in ((11, 0), (17, 1), (8, -1)))
    # Reversed rows are a view of negative stride; their projections may differ by rounding.
    assert sliced_wasserstein(a, a[::-1]) < 1e-12
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(b, a), rel=1e-12)
    assert sliced_wasserstein(a, c) <= sliced_wasserstein(a, b) + sliced_wasserstein(b, c)


def test_integer_weights_are_repeated_points(rng):
    x, y, times = rng.normal(size=(6, 3)), rng.normal(size=(7, 3)), np.array([1, 2, 0, 3, 1, 1])
    repeated = sliced_wasserstein(np.repeat(x, times, axis=0), y)
    assert sliced_wasserstein(x, y, weights_x=times) == pytest.approx(repeated, rel=1e-9)


def test_seeds_and_generators(rng):
    x, y = rng.normal(size=(10, 5)), rng.normal(size=(12, 5)) * 2
    assert sliced_wasserstein(x, y, seed=1) == sliced_wasserstein(x, y, seed=1)
    assert sliced_wasserstein(x, y, seed=1) != sliced_wasserstein(x, y, seed=2)
    state = torch.get_rng_state()
    assert sliced_wasserstein(x, y, seed=np.random.default_rng(1)) == sliced_wasserstein(x, y, seed=1)
    generated = [sliced_wasserstein(x, y, seed=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert generated[0] == generated[1]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("m", [6, 9])
def test_gradient(rng, m):
    x = torch.tensor(rng.normal(size=(6, 2)), requires_grad=True)
    y = torch.tensor(rng.normal(size=(m, 2)) + 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: sliced_wasserstein(a, b, n_projections=4), (x, y))


def test_gradient_of_equal_clouds_is_zero():
    x = torch.ones(4, 3, requires_grad=True)
    sliced_wasserstein(x, torch.ones(4, 3)).backward()
    assert torch.equal(x.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("n_projections", [0, 2.5, True])
def test_number_of_projections_is_checked(n_projections):
    with pytest.raises(ValueError, match="`n_projections` is"):
        sliced_wasserstein(np.zeros((2, 2)), np.zeros((2, 2)), n_projections=n_projections)
