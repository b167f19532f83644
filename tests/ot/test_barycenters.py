import numpy as np
import ot
import pytest
import scipy.linalg
import torch

from scgde.ot import free_support_barycenter, gaussian_barycenter, gaussian_geodesic, gaussian_wasserstein, wasserstein


def laws(n=5, d=4, seed=0):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, d, d)) * rng.gamma(2, size=(n, 1, 1))
    return rng.normal(size=(n, d)), factor @ np.swapaxes(factor, 1, 2)


def objective(mean, cov, means, covs, weights):
    return weights @ gaussian_wasserstein(mean, cov, means, covs, squared=True)


def test_commuting_covariances_have_a_closed_form():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    variances, weights = np.array([[1.0, 4, 9], [9.0, 1, 0], [4.0, 4, 1]]), np.array([0.5, 0.2, 0.3])
    mean, cov = gaussian_barycenter(np.eye(3), np.stack([basis * v @ basis.T for v in variances]), weights)
    # Standard deviations along common axes are averaged.
    np.testing.assert_allclose(cov, basis * (weights @ np.sqrt(variances)) ** 2 @ basis.T, atol=1e-6)
    np.testing.assert_allclose(mean, weights)


def test_barycenter_of_two_laws_lies_on_their_geodesic():
    means, covs = laws(2)
    found = gaussian_barycenter(means, covs, [0.7, 0.3])
    expected = gaussian_geodesic(means[0], covs[0], means[1], covs[1], 0.3)
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-6, atol=1e-7)


def test_agrees_with_pot_and_no_perturbation_is_better():
    means, covs = laws()
    weights = np.array([1.0, 2, 3, 4, 5]) / 15
    mean, cov = gaussian_barycenter(means, covs, weights)
    reference = ot.gaussian.bures_wasserstein_barycenter(means, covs, weights=weights, num_iter=2000, eps=1e-12)
    np.testing.assert_allclose(mean, np.ravel(reference[0]))
    np.testing.assert_allclose(cov, reference[1], rtol=1e-6, atol=1e-6)
    best = objective(mean, cov, means, covs, weights)
    rng = np.random.default_rng(1)
    for _ in range(20):
        tilt = np.eye(4) + 0.01 * rng.normal(size=(4, 4))
        assert objective(mean, tilt @ cov @ tilt.T, means, covs, weights) > best


def test_one_iteration_is_the_published_step():
    means, covs = laws(3, seed=4)
    weights = np.array([0.2, 0.3, 0.5])
    start = np.einsum("k,kij->ij", weights, covs)
    root = scipy.linalg.sqrtm(start)
    inverse = np.linalg.inv(root)
    inner = sum(w * scipy.linalg.sqrtm(root @ cov @ root) for w, cov in zip(weights, covs, strict=True))
    with pytest.warns(UserWarning, match=r"moved by \d\.\de-\d\d of its size in the last of 1 iterations"):
        _, cov = gaussian_barycenter(means, covs, weights, n_iterations=1)
    np.testing.assert_allclose(cov, inverse @ inner @ inner @ inverse, rtol=1e-8)


def test_every_iteration_lowers_the_objective():
    means, covs = laws(6, seed=2)
    values = []
    for n in range(1, 8):
        with pytest.warns(UserWarning, match="Raise `n_iterations`"):
            mean, cov = gaussian_barycenter(means, covs, n_iterations=n, tolerance=0.0)
        values.append(objective(mean, cov, means, covs, np.full(6, 1 / 6)))
    # Late steps are below the rounding of the objective, of order 1e-14 of its value.
    assert (np.diff(values) < 1e-12 * values[0]).all() and values[-1] < values[0] * (1 - 1e-4)


def test_singular_laws():
    means, covs = laws(3)
    covs[1] = 0
    covs[2, 2:] = covs[2, :, 2:] = 0
    mean, cov = gaussian_barycenter(means, covs)
    best = objective(mean, cov, means, covs, np.full(3, 1 / 3))
    assert best < min(objective(mean, c * cov, means, covs, np.full(3, 1 / 3)) for c in (0.98, 1.02))
    # Laws on one common plane have a barycenter there; point masses have a point mass.
    flat = covs.copy()
    flat[:, 2:] = flat[:, :, 2:] = 0
    np.testing.assert_allclose(
        gaussian_barycenter(means, flat)[1][:2, :2],
        gaussian_barycenter(means[:, :2], flat[:, :2, :2])[1],
        atol=1e-7,
    )
    assert (gaussian_barycenter(means, 0 * covs)[1] == 0).all()


def test_gaussian_barycenter_keeps_tensors_and_names_its_arguments():
    mean, cov = gaussian_barycenter(torch.zeros(2, 1), torch.tensor([[[1.0]], [[9.0]]]), tolerance=1e-4)
    assert mean.dtype == torch.float32 and cov.item() == pytest.approx(4, rel=1e-4)
    with pytest.raises(ValueError, match="of at least one law"):
        gaussian_barycenter(np.zeros((0, 2)), np.zeros((0, 2, 2)))
    with pytest.raises(ValueError, match="`weights` ranges from -1"):
        gaussian_barycenter(np.zeros((2, 1)), np.ones((2, 1, 1)), [-1, 2])
    with pytest.raises(ValueError, match="`n_iterations` is 0"):
        gaussian_barycenter(np.zeros((2, 1)), np.ones((2, 1, 1)), n_iterations=0)


def test_free_support_on_the_line_averages_quantiles():
    rng = np.random.default_rng(0)
    clouds = [rng.normal(size=(20, 1)), rng.exponential(size=(20, 1)) * 3 + 100, rng.normal(size=(20, 1)) - 5]
    weights = np.array([0.2, 0.5, 0.3])
    found = free_support_barycenter(clouds, n=20, weights=weights)
    expected = sum(w * np.sort(cloud[:, 0]) for w, cloud in zip(weights, clouds, strict=True))
    np.testing.assert_allclose(np.sort(found[:, 0]), expected, atol=1e-9)


def test_free_support_of_translated_clouds_is_the_cloud_at_the_mean():
    x = np.random.default_rng(1).normal(size=(12, 2))
    clouds = [x + [30, 0], x - [30, 0], x + [0, 6]]
    # From a start of mixed clouds the local minimum is close to the global one, whose objective is known.
    found = free_support_barycenter([np.tile(cloud, (2, 1)) for cloud in clouds], n=12)
    spread = np.mean([wasserstein(found, cloud) ** 2 for cloud in clouds])
    best = np.mean([wasserstein(x + [0, 2], cloud) ** 2 for cloud in clouds])
    assert best * (1 - 1e-9) <= spread <= 1.01 * best


def test_free_support_names_its_arguments():
    with pytest.raises(ValueError, match="`clouds` is empty"):
        free_support_barycenter([], n=3)
    with pytest.raises(ValueError, match=r"`clouds\[0\]` has 1 dimensions and `clouds\[1\]` has 2"):
        free_support_barycenter([np.zeros((2, 1)), np.zeros((2, 2))], n=3)
    with pytest.raises(ValueError, match="`n` is 0"):
        free_support_barycenter([np.zeros((2, 1))], n=0)
