import numpy as np
import ot
import pytest
import torch

from scgde.ot import (
    displacement_interpolation,
    gaussian_geodesic,
    gaussian_map,
    gaussian_wasserstein,
    wasserstein,
)


def random_psd(*shape, seed=0, rank=None):
    factor = np.random.default_rng(seed).normal(size=(*shape, rank or shape[-1]))
    return factor @ np.swapaxes(factor, -1, -2)


def pair(d=4, seed=0, rank_x=None, rank_y=None):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=d),
        random_psd(d, seed=seed, rank=rank_x),
        rng.normal(size=d) + 1,
        random_psd(d, seed=seed + 50, rank=rank_y),
    )


def test_map_agrees_with_pot_and_pushes_forward():
    mean_x, cov_x, mean_y, cov_y = pair()
    matrix, offset = gaussian_map(mean_x, cov_x, mean_y, cov_y)
    reference, shift = ot.gaussian.bures_wasserstein_mapping(mean_x, mean_y, cov_x, cov_y)
    np.testing.assert_allclose(matrix, reference, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(offset, shift.ravel(), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(matrix @ cov_x @ matrix.T, cov_y, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(matrix @ mean_x + offset, mean_y, atol=1e-10)


def test_map_from_a_subspace_pushes_forward_where_it_can():
    mean_x, cov_x, mean_y, cov_y = pair(rank_x=2, rank_y=2)
    matrix, _ = gaussian_map(mean_x, cov_x, mean_y, cov_y)
    # Rank 2 to rank 2 in general position: a linear map exists and costs as much as the distance.
    np.testing.assert_allclose(matrix @ cov_x @ matrix.T, cov_y, atol=1e-9)
    cost = np.trace(cov_x + matrix @ cov_x @ matrix.T - matrix @ cov_x - cov_x @ matrix.T)
    assert cost == pytest.approx(gaussian_wasserstein(0 * mean_x, cov_x, 0 * mean_y, cov_y, squared=True), rel=1e-6)
    # From a line to the plane the map is the conditional mean under the plan, X2 = X1 / 2 in this example.
    matrix, _ = gaussian_map(np.zeros(2), np.diag([1.0, 0.0]), np.zeros(2), np.array([[1.0, 0.5], [0.5, 1.0]]))
    np.testing.assert_allclose(matrix, [[1.0, 0.0], [0.5, 0.0]], atol=1e-12)


@pytest.mark.parametrize("ranks", [(4, 4), (4, 2), (2, 3), (1, 1), (3, 1)])
def test_distance_along_the_geodesic_is_proportional_to_time(ranks):
    law_x, law_y = (pair(rank_x=ranks[0], rank_y=ranks[1])[i : i + 2] for i in (0, 2))
    whole = gaussian_wasserstein(*law_x, *law_y)
    t = np.linspace(0, 1, 6)
    mean, cov = gaussian_geodesic(*law_x, *law_y, t)
    assert mean.shape == (6, 4) and cov.shape == (6, 4, 4)
    assert np.linalg.eigvalsh(cov).min() > -1e-12
    for mean_0, cov_0, at in ((*law_x, t), (*law_y, 1 - t)):
        steps = gaussian_wasserstein(mean_0, cov_0, mean, cov)
        # Eigenvalues that are zero come out as rounding, 1e-16 of the others, and so off by 1e-8 in a matrix root; where
        # the laws coincide, the squared distance is off by as much and the distance by the root of that.
        np.testing.assert_allclose(steps, at * whole, rtol=1e-4, atol=1e-4 * whole)


def test_geodesic_agrees_with_pushing_by_the_map():
    mean_x, cov_x, mean_y, cov_y = pair(seed=3)
    matrix, offset = gaussian_map(mean_x, cov_x, mean_y, cov_y)
    part = 0.7 * np.eye(4) + 0.3 * matrix
    mean, cov = gaussian_geodesic(mean_x, cov_x, mean_y, cov_y, 0.3)
    np.testing.assert_allclose(cov, part @ cov_x @ part.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(mean, 0.7 * mean_x + 0.3 * (matrix @ mean_x + offset), atol=1e-10)


def test_orthogonal_lines_have_independent_coordinates():
    for seed in range(10):
        basis = np.linalg.qr(random_psd(2, seed=seed))[0]
        cov_x, cov_y = (basis * variances @ basis.T for variances in ([4.0, 0], [0, 1.0]))
        _, cov = gaussian_geodesic(np.zeros(2), cov_x, np.zeros(2), cov_y, 0.5)
        np.testing.assert_allclose(cov, basis * [1.0, 0.25] @ basis.T, atol=1e-12)


def test_small_variances_are_not_taken_for_none():
    cov = np.diag([1.0, 1e-6, 1e-12])
    matrix, _ = gaussian_map(np.zeros(3), cov, np.zeros(3), 4 * cov)
    np.testing.assert_allclose(matrix, 2 * np.eye(3), rtol=1e-9, atol=1e-9)


def test_geodesics_are_batched_and_keep_tensors_and_precision():
    means, covs = np.arange(12.0).reshape(3, 4), random_psd(3, 4)
    mean, cov = gaussian_geodesic(means, covs, means[0], covs[0], [[0.25, 0.5]])
    assert mean.shape == (1, 2, 3, 4) and cov.shape == (1, 2, 3, 4, 4)
    single = gaussian_geodesic(means[2], covs[2], means[0], covs[0], 0.5)
    np.testing.assert_allclose(mean[0, 1, 2], single[0])
    np.testing.assert_allclose(cov[0, 1, 2], single[1], atol=1e-12)
    mean, cov = gaussian_geodesic(torch.zeros(2), torch.eye(2), torch.ones(2), torch.eye(2), 0.5)
    assert mean.dtype == cov.dtype == torch.float32
    torch.testing.assert_close(cov, torch.eye(2))


def test_permutation_between_clouds_of_equal_size():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 3)) + 1
    path = displacement_interpolation(x, y, np.linspace(0, 1, 5))
    np.testing.assert_array_equal(path[0], x)
    assert {tuple(point) for point in path[4]} == {tuple(point) for point in y}
    whole = wasserstein(x, y)
    for t, points in zip(np.linspace(0, 1, 5), path, strict=True):
        assert wasserstein(x, points) == pytest.approx(t * whole, rel=1e-9, abs=1e-9)
        assert wasserstein(points, y) == pytest.approx((1 - t) * whole, rel=1e-9, abs=1e-9)


def test_other_sizes_draw_pairs_of_the_plan():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(20, 2)) * 2 + 3
    path = displacement_interpolation(x, y, [0.0, 1.0])
    assert path.shape == (2, 20, 2)
    # The pairs of the plan have masses of at least 1/40: 40 draws hold each exactly in proportion.
    start, end = displacement_interpolation(x, y, [0.0, 1.0], n=40)
    np.testing.assert_array_equal(np.unique(end, axis=0, return_counts=True)[1], np.full(20, 2))
    np.testing.assert_array_equal(np.unique(start, axis=0, return_counts=True)[1], np.full(8, 5))
    assert ((start - end) ** 2).sum(1).mean() == pytest.approx(wasserstein(x, y) ** 2, rel=1e-9)


def test_draws_depend_on_the_seed_alone():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 2)), rng.normal(size=(70, 2))
    draws = [displacement_interpolation(x, y, 0.5, n=10, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    # 4,000 points from 400 draws: the mean is that of the plan, within four standard errors of independent draws.
    centre = np.mean([displacement_interpolation(x, y, 0.5, n=10, seed=s).mean(0) for s in range(400)], axis=0)
    assert np.abs(centre - (x.mean(0) + y.mean(0)) / 2).max() < 4 / np.sqrt(4000)


def test_gradient_flows_along_the_pairs():
    x, y = torch.zeros(3, 1, requires_grad=True), torch.arange(3.0)[:, None].requires_grad_()
    displacement_interpolation(x, y, 0.25).sum().backward()
    assert (x.grad == 0.75).all() and (y.grad == 0.25).all()


def test_errors_name_the_argument():
    law = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match=r"`t` ranges from -0.5 to 1.0"):
        gaussian_geodesic(*law, *law, [-0.5, 1.0])
    with pytest.raises(ValueError, match="`t` ranges from nan"):
        displacement_interpolation(np.zeros((2, 1)), np.zeros((2, 1)), np.nan)
    with pytest.raises(ValueError, match="`mean_y` has shape"):
        gaussian_map(*law, np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="`n` is 0"):
        displacement_interpolation(np.zeros((2, 1)), np.zeros((2, 1)), 0.5, n=0)
    with pytest.raises(ValueError, match="`x` has 1 dimensions and `y` has 2"):
        displacement_interpolation(np.zeros((2, 1)), np.zeros((2, 2)), 0.5)
