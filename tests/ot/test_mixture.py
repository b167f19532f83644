import numpy as np
import ot
import pytest
import torch

from scgde.ot import fit_gaussian_mixture, gaussian_wasserstein, mixture_wasserstein, wasserstein


def mixture(k, d=3, seed=0, spread=3.0):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(k, d, d))
    weights = rng.dirichlet(np.ones(k))
    return weights, spread * rng.normal(size=(k, d)), factor @ np.swapaxes(factor, 1, 2)


def draw(weights, means, covs, n, rng):
    component = rng.choice(len(weights), size=n, p=weights)
    factor = np.linalg.cholesky(covs)
    return means[component] + (factor[component] @ rng.normal(size=(n, means.shape[1], 1)))[..., 0]


def test_agrees_with_pot():
    x, y = mixture(4), mixture(6, seed=1)
    expected = ot.gmm.gmm_ot_loss(x[1], y[1], x[2], y[2], x[0], y[0])
    assert mixture_wasserstein(*x, *y, squared=True) == pytest.approx(float(expected), rel=1e-9)
    assert mixture_wasserstein(*x, *y) == pytest.approx(float(expected) ** 0.5, rel=1e-9)


def test_single_components_and_point_masses_have_the_known_distances():
    x, y = mixture(1), mixture(1, seed=1)
    assert mixture_wasserstein(*x, *y) == pytest.approx(
        gaussian_wasserstein(x[1][0], x[2][0], y[1][0], y[2][0]), rel=1e-12
    )
    rng = np.random.default_rng(0)
    a, b, weights = rng.normal(size=(7, 2)), rng.normal(size=(5, 2)), rng.random(7)
    value = mixture_wasserstein(weights, a, np.zeros((7, 2, 2)), None, b, np.zeros((5, 2, 2)))
    assert value == pytest.approx(wasserstein(a, b, weights_x=weights), rel=1e-9)


def test_metric_that_depends_neither_on_order_nor_on_scale_of_weights():
    a, b, c = mixture(3), mixture(4, seed=1), mixture(2, seed=2)
    order = np.array([2, 0, 1])
    shuffled = 7 * a[0][order], a[1][order], a[2][order]
    # Traces of order ten cancel for equal laws: the root of their rounding.
    assert mixture_wasserstein(*a, *shuffled) < 1e-6
    assert mixture_wasserstein(*shuffled, *b) == pytest.approx(mixture_wasserstein(*b, *a), rel=1e-7)
    assert mixture_wasserstein(*a, *c) <= mixture_wasserstein(*a, *b) + mixture_wasserstein(*b, *c)
    shift = np.array([1.0, 2.0, 2.0])
    assert mixture_wasserstein(*a, a[0], a[1] + shift, a[2]) == pytest.approx(3.0, rel=1e-7)


def test_at_least_w2():
    x, y = mixture(3, d=2), mixture(3, d=2, seed=1)
    rng = np.random.default_rng(0)
    exact = wasserstein(draw(*x, 1500, rng), draw(*y, 1500, rng))
    # Exact W2 of 1,500 points is within 3 % of that of the laws at this separation.
    assert mixture_wasserstein(*x, *y) > 0.97 * exact


def test_gradient():
    x, y = mixture(2, d=2), mixture(3, d=2, seed=1)
    inputs = [torch.tensor(value, requires_grad=True) for value in (x[1], x[2], y[1], y[2])]

    def distance(means_x, covs_x, means_y, covs_y):
        return mixture_wasserstein(x[0], means_x, covs_x, y[0], means_y, covs_y)

    assert torch.autograd.gradcheck(distance, inputs)


def test_fit_finds_known_parameters():
    weights = np.array([0.2, 0.3, 0.5])
    means, covs = np.array([[0.0, 0], [8, 0], [0, 8]]), np.stack([np.diag([1.0, 2]), np.eye(2), [[2, 1], [1, 1]]])
    x = draw(weights, means, covs, 6000, np.random.default_rng(0))
    found = fit_gaussian_mixture(x, 3, means_init=means + 1)
    # Standard errors: 0.006 of a weight, at most 0.04 of a mean and 0.08 of a covariance; four of them.
    np.testing.assert_allclose(found[0], weights, atol=0.025)
    np.testing.assert_allclose(found[1], means, atol=0.16)
    np.testing.assert_allclose(found[2], covs, atol=0.32)
    # The same weights on both sides: a hundredth of the mass that has to cross costs more than all else.
    assert mixture_wasserstein(weights, *found[1:], weights, means, covs) < 0.1
    unguided = fit_gaussian_mixture(x, 3)
    assert mixture_wasserstein(*found, *unguided) < 0.05


def test_fit_is_equivariant_and_starts_where_it_is_told():
    x = draw(*mixture(2, d=2, spread=6), 300, np.random.default_rng(0))
    start = {"means_init": x[:2], "weights_init": [1, 3], "covs_init": np.stack([np.cov(x.T)] * 2)}
    weights, means, covs = fit_gaussian_mixture(x, 2, **start)
    moved = {"means_init": x[:2] * 1e3 + 5e4, "weights_init": [1, 3], "covs_init": np.stack([np.cov(x.T)] * 2) * 1e6}
    other = fit_gaussian_mixture(x * 1e3 + 5e4, 2, **moved)
    np.testing.assert_allclose(other[0], weights, rtol=1e-6)
    np.testing.assert_allclose((other[1] - 5e4) / 1e3, means, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(other[2] / 1e6, covs, rtol=1e-6, atol=1e-6)
    # No iteration from a start: the order of the components is that of the start.
    swapped = fit_gaussian_mixture(x, 2, **{**start, "means_init": x[1::-1], "weights_init": [3, 1]})
    np.testing.assert_allclose(swapped[0], weights[::-1], rtol=1e-6)


def test_errors_name_the_argument():
    x = mixture(2)
    with pytest.raises(ValueError, match="`weights_x` has shape"):
        mixture_wasserstein([1.0], x[1], x[2], *x)
    with pytest.raises(ValueError, match="`cov` has shape"):
        mixture_wasserstein(x[0], x[1], x[2][0, 0], *x)
    with pytest.raises(ValueError, match=r"`n_components` is 5.*\(4\)"):
        fit_gaussian_mixture(np.zeros((4, 2)), 5)
