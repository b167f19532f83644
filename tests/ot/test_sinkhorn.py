import numpy as np
import ot
import pytest
import torch
from scipy.special import xlogy

from scgde.ot import sinkhorn_divergence, wasserstein


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def entropic(x, y, a, b, epsilon):
    """Entropic cost of POT's plan, from the definition."""
    cost = ot.dist(x, y)
    plan = ot.sinkhorn(a, b, cost, epsilon, numItermax=20_000, stopThr=1e-10)
    return (plan * cost).sum() + epsilon * (xlogy(plan, plan / np.outer(a, b))).sum()


def reference(x, y, a, b, blur):
    epsilon = 2 * blur**2
    terms = [entropic(*pair, epsilon) for pair in ((x, y, a, b), (x, x, a, a), (y, y, b, b))]
    return terms[0] - (terms[1] + terms[2]) / 2


@pytest.mark.parametrize("blur", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_pot(rng, blur, weighted):
    x, y = rng.normal(size=(15, 3)), 2 * rng.normal(size=(11, 3)) + [1, 0, -1]
    a, b = (
        (rng.dirichlet(np.ones(15)), rng.dirichlet(np.ones(11)))
        if weighted
        else (np.full(15, 1 / 15), np.full(11, 1 / 11))
    )
    weights = {"weights_x": 3 * a, "weights_y": b} if weighted else {}
    value = sinkhorn_divergence(x, y, **weights, blur=blur, tolerance=1e-8, n_iterations=20_000, squared=True)
    assert value == pytest.approx(reference(x, y, a, b, blur), rel=1e-6)
    root = sinkhorn_divergence(x, y, **weights, blur=blur, tolerance=1e-8, n_iterations=20_000)
    assert root == pytest.approx(value**0.5, rel=1e-9)


def test_limits_of_the_blur_are_the_exact_distance_and_that_of_the_means(rng):
    x, y = rng.normal(size=(15, 2)), 1.5 * rng.normal(size=(20, 2)) + 1
    # The entropy biases by less than the blur, here a few hundredths of the distance.
    assert sinkhorn_divergence(x, y, blur=0.05, n_iterations=20_000) == pytest.approx(wasserstein(x, y), rel=2e-3)
    assert sinkhorn_divergence(x, y, blur=1e3) == pytest.approx(np.linalg.norm(x.mean(0) - y.mean(0)), rel=1e-4)


@pytest.mark.parametrize("blur", [None, 0.5, 20.0])
def test_translation_and_equal_clouds(rng, blur):
    x, shift = rng.normal(size=(20, 3)), np.array([2.0, -1.0, 2.0])
    assert sinkhorn_divergence(x, x + shift, blur=blur, tolerance=1e-6) == pytest.approx(3.0, rel=1e-6)
    assert sinkhorn_divergence(x, x[::-1], blur=blur, tolerance=1e-6) < 1e-3
    assert sinkhorn_divergence(x, x + 1e6 * shift, blur=blur) == pytest.approx(3e6, rel=1e-9)


def test_default_blur_follows_the_units(rng):
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(15, 3)) * [1, 2, 0.5] + 1
    value = sinkhorn_divergence(x, y)
    assert sinkhorn_divergence(1e3 * x + 7, 1e3 * y + 7) == pytest.approx(1e3 * value, rel=1e-6)
    blur = 0.1 * np.sqrt((x.var(0).sum() + y.var(0).sum()) / 2)
    assert value == pytest.approx(sinkhorn_divergence(x, y, blur=blur), rel=1e-9)


def test_point_masses(rng):
    assert sinkhorn_divergence(np.zeros((1, 2)), np.array([[3.0, 4.0]])) == pytest.approx(5.0, rel=1e-12)
    x = rng.normal(size=(9, 2))
    # All plans with a point mass are the product: the divergence lacks half of the entropic cost of x to itself.
    value = sinkhorn_divergence(x, np.zeros((1, 2)), blur=1.0, squared=True, tolerance=1e-9)
    expected = (x**2).sum(1).mean() - entropic(x, x, np.full(9, 1 / 9), np.full(9, 1 / 9), 2.0) / 2
    assert value == pytest.approx(expected, rel=1e-6)


def test_batch_and_padding_agree_with_a_loop(rng, monkeypatch):
    sizes = [(5, 9), (12, 3), (1, 1), (12, 9), (7, 7)]
    # Two pairs at a time: a batch does not depend on the slices that it is computed in.
    monkeypatch.setattr("scgde.ot.sinkhorn._CHUNK_BYTES", 2 * 5 * 8 * 12 * 9)
    # Padding whose square overflows: it must not enter any cost.
    x, y = np.full((5, 12, 2), 1e160), np.full((5, 9, 2), -1e160)
    weights_x, weights_y = np.zeros((5, 12)), np.zeros((5, 9))
    clouds = []
    for i, (n, m) in enumerate(sizes):
        x[i, :n], y[i, :m] = rng.normal(size=(n, 2)) + i, rng.normal(size=(m, 2))
        weights_x[i, :n], weights_y[i, :m] = rng.random(n) + 0.1, 1.0
        clouds.append((x[i, :n], y[i, :m], weights_x[i, :n]))
    values = sinkhorn_divergence(x, y, weights_x=weights_x, weights_y=weights_y, tolerance=1e-8)
    assert values.shape == (5,) and values.dtype == np.float64
    for value, (a, b, weights) in zip(values, clouds, strict=True):
        assert value == pytest.approx(sinkhorn_divergence(a, b, weights_x=weights, tolerance=1e-8), rel=1e-7)
    assert sinkhorn_divergence(x[:1, :5], y[:1, :9]).shape == (1,)


def test_integer_weights_are_repeated_points(rng):
    x, y, times = rng.normal(size=(6, 2)), rng.normal(size=(7, 2)), np.array([1, 2, 0, 3, 1, 1])
    repeated = sinkhorn_divergence(np.repeat(x, times, axis=0), y, tolerance=1e-8)
    assert sinkhorn_divergence(x, y, weights_x=times, tolerance=1e-8) == pytest.approx(repeated, rel=1e-7)


@pytest.mark.parametrize("squared", [False, True])
def test_gradient(rng, squared):
    x = torch.tensor(rng.normal(size=(2, 4, 2)), requires_grad=True)
    y = torch.tensor(1.5 * rng.normal(size=(2, 5, 2)) + 1, requires_grad=True)
    weights = np.stack([rng.random(5), [0, 1, 1, 2, 0]])

    def divergence(x, y):
        return sinkhorn_divergence(
            x, y, weights_y=weights, blur=1.5, tolerance=1e-9, n_iterations=20_000, squared=squared
        )

    assert torch.autograd.gradcheck(divergence, (x, y))


def test_gradient_moves_one_cloud_onto_another(rng):
    y = torch.tensor(rng.normal(size=(20, 2)) * [2, 0.5] + 3)
    x = torch.tensor(rng.normal(size=(20, 2)), requires_grad=True)
    first = wasserstein(x, y)
    for _ in range(15):
        value = sinkhorn_divergence(x, y, squared=True, tolerance=1e-2)
        (gradient,) = torch.autograd.grad(value, x)
        # The Hessian of the squared distance is about two over the number of points.
        x = (x - 20 / 4 * gradient).detach().requires_grad_()
    assert wasserstein(x, y) < 0.03 * first


def test_single_precision(rng):
    x, y = (torch.tensor(rng.normal(size=(30, 3)) + shift) for shift in (0, 1))
    value = sinkhorn_divergence(x.float(), y.float())
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == pytest.approx(sinkhorn_divergence(x, y).item(), rel=1e-4)


def test_equal_clouds_have_no_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    sinkhorn_divergence(x, torch.ones(4, 3)).backward()
    assert (x.grad == 0).all()


def test_warning_states_the_residual(rng):
    x, y = rng.normal(size=(3, 40, 2)), 4 * rng.normal(size=(3, 40, 2))
    x[2], y[2] = 0, 1
    with pytest.warns(UserWarning, match=r"2 of 3 transport problems did not converge in 5 iterations: up to \d"):
        rough = sinkhorn_divergence(x, y, n_iterations=5, blur=0.05)
    assert np.isfinite(rough).all()


def test_converged_runs_warn_of_nothing(rng, recwarn):
    sinkhorn_divergence(rng.normal(size=(4, 60, 2)), rng.normal(size=(4, 60, 2)) + 5)
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    ("x", "y", "settings", "match"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), {}, r"`x` has shape \(1, 3, 2\)"),
        (np.zeros((2, 3, 2)), np.zeros((3, 2)), {}, "for a batch of pairs"),
        (np.zeros((2, 3, 2)), np.zeros((1, 3, 2)), {}, "as many clouds"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), {}, "`x` holds 6 values"),
        (np.zeros((3, 2)), np.zeros((0, 2)), {}, "`y` has shape"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"weights_x": [1, 2]}, "`weights_x` has shape"),
        (np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), {"weights_y": [1, 2, 3]}, "Repeat common weights"),
        (np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), {"weights_y": [[1, 2, 3], [0, 0, 0]]}, r"`weights_y\[1\]` ranges"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"blur": 0}, "`blur` is 0"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"n_iterations": 0}, "`n_iterations` is 0"),
        (np.zeros((3, 2)), np.zeros((3, 2)), {"tolerance": 0}, "`tolerance` is 0"),
    ],
)
def test_errors_name_the_argument(x, y, settings, match):
    with pytest.raises(ValueError, match=match):
        sinkhorn_divergence(x, y, **settings)
