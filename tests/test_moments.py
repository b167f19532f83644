import numpy as np
import pytest
import torch

from scgde._segments import segment_mean
from scgde.generators.skeleton import N_FOLDS, AffineSkeleton, fold_of, into_frame, inverse_frames
from scgde.geometry import IsometryTargets, held_out_sets, isometry_loss
from scgde.moments import PopulationMoments, from_vector, moment_size, moment_vector, to_vector
from scgde.ot import gaussian_wasserstein, pairwise_gaussian_wasserstein, sqrtm_psd


def ragged(sizes, d=3, seed=0):
    rng = np.random.default_rng(seed)
    segment = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    u = rng.normal(size=(len(sizes), d))[segment] + rng.normal(size=(len(segment), d)) @ rng.normal(size=(d, d))
    return torch.tensor(u), torch.tensor(segment)


def gaussians(k, n, d=3, seed=0, spread=0.5):
    """Moments of n cells each of k normal populations whose standard deviations differ by ``spread``."""
    rng = np.random.default_rng(seed)
    segment = torch.arange(k).repeat_interleave(n)
    sd = np.exp(spread * rng.normal(size=(k, d)))
    u = torch.tensor(sd[segment] * rng.normal(size=(k * n, d)))
    return PopulationMoments.from_cells(u, segment, k)


def test_moments_agree_with_numpy():
    u, segment = ragged([2, 5, 40])
    moments = PopulationMoments.from_cells(u, segment, 3)
    assert moments.n.tolist() == [2, 5, 40]
    for k in range(3):
        cells = u[segment == k].numpy()
        np.testing.assert_allclose(moments.mean[k], cells.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments.cov[k], np.cov(cells.T), atol=1e-12)


def test_one_cell_has_its_own_mean_and_no_covariance():
    u, segment = ragged([1, 3])
    moments = PopulationMoments.from_cells(u, segment, 2)
    assert torch.equal(moments.mean[0], u[segment == 0][0]) and (moments.cov[0] == 0).all()


def test_more_rows_than_a_block_give_the_same_moments():
    u, segment = ragged([40_000, 30_000], d=2)
    moments = PopulationMoments.from_cells(u, segment, 2)
    np.testing.assert_allclose(moments.cov[1], np.cov(u[segment == 1].T), atol=1e-10)


def test_mixtures_are_the_moments_of_the_pooled_law():
    # weights proportional to sizes: the mixture of empirical laws is the concatenation
    u, segment = ragged([10, 20, 30])
    moments = PopulationMoments.from_cells(u, segment, 3)
    biased = PopulationMoments(moments.n, moments.mean, moments.cov * ((moments.n - 1) / moments.n)[:, None, None])
    mixed = biased.mixtures(torch.tensor([[0, 1, 2]]), torch.tensor([[1 / 6, 1 / 3, 1 / 2]], dtype=torch.float64))
    np.testing.assert_allclose(mixed.mean[0], u.mean(0), atol=1e-12)
    np.testing.assert_allclose(mixed.cov[0], np.cov(u.T, bias=True), atol=1e-12)


def test_mixtures_agree_with_brute_force_in_expectation():
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]]).double()
    root = torch.stack([torch.eye(2), torch.tensor([[0.5, 0.2], [0.2, 1.0]]), 2 * torch.eye(2)]).double()
    moments = PopulationMoments(torch.full((3,), 100.0), mean, root @ root)
    weights = torch.tensor([[0.5, 0.2, 0.3]]).double()
    mixed = moments.mixtures(torch.tensor([[0, 1, 2]]), weights)
    which = torch.multinomial(weights[0], 200_000, replacement=True, generator=generator)
    noise = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    draws = mean[which] + torch.einsum("nij,nj->ni", root[which], noise)
    # standard error of a mean near 0.004, of a second moment near 0.02
    np.testing.assert_allclose(mixed.mean[0], draws.mean(0), atol=0.02)
    np.testing.assert_allclose(mixed.cov[0], torch.cov(draws.T), atol=0.08)


def test_a_mixture_of_one_is_that_population():
    moments = gaussians(3, 20)
    same = moments.mixtures(torch.tensor([[2, 2, 2], [0, 1, 1]]), torch.tensor([[1.0, 0, 0], [1, 0, 0]]).double())
    np.testing.assert_allclose(same.cov, moments.cov[[2, 0]], atol=1e-12)
    assert same.n.tolist() == [20, 20]


def test_vectors_round_trip():
    moments = gaussians(5, 20)
    root = sqrtm_psd(moments.cov)
    vector = to_vector(moments.mean, root)
    assert vector.shape == (5, moment_size(3)) == (5, 9)
    mean, back = from_vector(vector, 3)
    np.testing.assert_allclose(mean, moments.mean, rtol=1e-12)
    np.testing.assert_allclose(back, root, rtol=1e-12)
    np.testing.assert_allclose(moment_vector(moments), vector, atol=1e-12)


def test_vectors_are_isometric_to_means_and_roots():
    moments = gaussians(6, 20)
    vector, root = moment_vector(moments), sqrtm_psd(moments.cov)
    for a in range(6):
        for b in range(a):
            expected = (moments.mean[a] - moments.mean[b]).square().sum() + (root[a] - root[b]).square().sum()
            assert float((vector[a] - vector[b]).square().sum()) == pytest.approx(float(expected), rel=1e-10)


def test_vector_distance_bounds_gaussian_wasserstein_and_equals_it_where_covariances_commute():
    moments = gaussians(6, 20)
    vector = moment_vector(moments)
    diagonal = PopulationMoments(moments.n, moments.mean, torch.diag_embed(moments.cov.diagonal(dim1=1, dim2=2)))
    commuting = moment_vector(diagonal)
    for a in range(6):
        for b in range(a):
            exact = float(gaussian_wasserstein(moments.mean[a], moments.cov[a], moments.mean[b], moments.cov[b]))
            assert float((vector[a] - vector[b]).norm()) >= exact - 1e-9
            exact = float(gaussian_wasserstein(diagonal.mean[a], diagonal.cov[a], diagonal.mean[b], diagonal.cov[b]))
            assert float((commuting[a] - commuting[b]).norm()) == pytest.approx(exact, rel=1e-6)


# ------------------------------------------------------------------ shrinkage


@pytest.mark.parametrize("n", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_shrinkage_is_a_share(n, spread):
    assert 0 < gaussians(20, n, spread=spread).shrinkage() <= 1


def test_smaller_populations_are_shrunk_more():
    coefficients = [gaussians(200, n).shrinkage() for n in (5, 20, 100, 500)]
    assert coefficients == sorted(coefficients, reverse=True) and coefficients[0] > 2 * coefficients[-1]


def test_populations_that_differ_more_are_shrunk_less():
    assert gaussians(200, 20, spread=0.0).shrinkage() > 0.8 > 0.3 > gaussians(200, 20, spread=1.0).shrinkage()


def test_smaller_training_sets_are_shrunk_more():
    moments = gaussians(100, 200)
    assert moments.shrinkage(10) > moments.shrinkage(50) > moments.shrinkage()


def test_shrinking_brings_covariances_closer_to_the_truth():
    rng = np.random.default_rng(1)
    sd = np.exp(0.3 * rng.normal(size=(100, 5)))
    segment = torch.arange(100).repeat_interleave(12)
    u = torch.tensor(sd[segment] * rng.normal(size=(1200, 5)))
    raw = PopulationMoments.from_cells(u, segment, 100)
    truth = torch.diag_embed(torch.tensor(sd**2))
    shrunk = raw.shrunk(raw.shrinkage(), raw.pooled_covariance())
    error = [float((m.cov - truth).square().sum()) for m in (raw, shrunk)]
    assert error[1] < 0.8 * error[0]


def test_one_cell_takes_the_pooled_covariance_whole():
    u, segment = ragged([1, 30])
    moments = PopulationMoments.from_cells(u, segment, 2)
    pooled = moments.pooled_covariance()
    np.testing.assert_allclose(pooled, moments.cov[1], atol=1e-12)
    np.testing.assert_allclose(moments.shrunk(0.1, pooled).cov[0], pooled, atol=1e-12)


def test_single_cells_only_are_no_obstacle():
    u, segment = ragged([1, 1, 1])
    moments = PopulationMoments.from_cells(u, segment, 3)
    assert moments.shrinkage() == 1 and torch.equal(moments.pooled_covariance(), torch.eye(3).double())


# --------------------------------------------------------- frame and isometry


def test_cells_in_their_own_frame_are_centred_and_white():
    u, segment = ragged([400, 50])
    moments = PopulationMoments.from_cells(u, segment, 2)
    y = into_frame(u, moments, segment, inverse_frames(moments))
    for k, n in enumerate((400, 50)):
        cells = y[segment == k]
        np.testing.assert_allclose(cells.mean(0), 0, atol=1e-10)
        # scaled up by n / (n - 1), what centring on their own mean takes away
        np.testing.assert_allclose(torch.cov(cells.T), np.eye(3) * n / (n - 1), atol=1e-8)


def isometry_targets(moments):
    """Targets between populations that are not mixed."""
    k = len(moments.n)
    weights = torch.zeros((k, 3), dtype=moments.mean.dtype)
    weights[:, 0] = 1
    return IsometryTargets(moments).distances(torch.arange(k)[:, None].expand(-1, 3), weights)


def test_isometry_loss_is_zero_for_isometric_embeddings_and_ignores_units():
    moments = gaussians(8, 30)
    many = torch.full_like(moments.n, 1e15)  # so many cells that there is no noise to take off
    points = PopulationMoments(many, moments.mean, torch.eye(3).double().expand(8, 3, 3))
    assert float(isometry_loss(points.mean, isometry_targets(points))) < 1e-10
    loss = float(isometry_loss(2 * points.mean, isometry_targets(points)))
    assert loss == pytest.approx(1, rel=1e-6), "twice the distances: as large an error as the distances themselves"
    scaled = PopulationMoments(points.n, 7 * points.mean, 49 * points.cov)
    assert float(isometry_loss(14 * points.mean, isometry_targets(scaled))) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("d", "n"), [(2, 40), (5, 60)])
def test_distance_noise_is_what_two_samples_of_one_law_are_apart(d, n):
    noise = torch.Generator().manual_seed(0)
    u, segment = torch.randn(200 * n, d, generator=noise, dtype=torch.float64), torch.arange(200).repeat_interleave(n)
    moments = PopulationMoments.from_cells(u, segment, 200)
    apart = pairwise_gaussian_wasserstein(moments.mean, moments.cov)[tuple(torch.triu_indices(200, 200, 1))]
    # exact to first order in 1 / n
    assert float(2 * moments.distance_noise().mean()) == pytest.approx(float(apart.square().mean()), rel=0.1)


def test_populations_that_are_apart_by_noise_alone_are_not_to_be_kept_apart():
    u, segment = ragged([30] * 40, seed=3)
    moments = PopulationMoments.from_cells(torch.randn(u.shape, dtype=torch.float64), segment, 40)
    z = moments.mean.clone().requires_grad_()
    isometry_loss(z, isometry_targets(moments)).backward()
    shrink = (z.grad * (z - z.mean(0))).sum()
    assert shrink > 0, "a step against the gradient brings embeddings closer to each other"


@pytest.mark.parametrize("kept", [True, False])
def test_targets_of_batches_are_those_of_all_populations_and_of_mixtures(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr("scgde.geometry.MAX_KEPT", 3)
    moments = gaussians(7, 40)
    targets = IsometryTargets(moments)
    noise = moments.distance_noise()
    squared = pairwise_gaussian_wasserstein(moments.mean, moments.cov).square() - noise[:, None] - noise
    for codes in ([0, 1, 2], [2, 1, 5, 2], [6, 0, 1, 2]):
        sources = torch.tensor(codes)[:, None].expand(-1, 3)
        alone = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(len(codes), -1)
        apart = torch.tensor(codes)[:, None] != torch.tensor(codes)
        expected = squared[codes][:, codes].clamp_min(0).sqrt()
        got = targets.distances(sources, alone)
        torch.testing.assert_close(got[apart], expected[apart])
        assert (got[~apart] == 0).all()
    sources = torch.tensor([[0, 1, 2], [3, 4, 5]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], dtype=torch.float64)
    mixed = moments.mixtures(sources, weights)
    apart = pairwise_gaussian_wasserstein(mixed.mean, mixed.cov)[0, 1].square() - mixed.distance_noise().sum()
    torch.testing.assert_close(targets.distances(sources, weights)[0, 1], apart.sqrt())


def test_targets_of_single_cells_do_not_depend_on_the_rest_of_the_batch():
    u, segment = ragged([20] * 9 + [1], seed=1)
    targets = IsometryTargets(PopulationMoments.from_cells(u, segment, 10))
    sources = torch.tensor([[9, 1, 2], [1, 2, 3], [4, 5, 6]])
    alone, mixed = torch.tensor([1.0, 0, 0]), torch.tensor([0.4, 0.3, 0.3])
    one, two = (targets.distances(sources, torch.stack([alone, alone, last]).double()) for last in (alone, mixed))
    torch.testing.assert_close(one[0, 1], two[0, 1])


def test_only_pairs_asked_for_enter_the_isometry_loss():
    moments = gaussians(6, 40)
    z = moments.mean.clone().requires_grad_()
    held = torch.tensor([True, True, False, False, False, False])
    isometry_loss(z, isometry_targets(moments), used=~(held[:, None] | held)).backward()
    assert torch.equal(z.grad[held], torch.zeros(2, 3)) and z.grad[~held].abs().sum() > 0


def test_held_out_sets_are_those_with_cells_of_held_out_populations():
    everyone = torch.arange(400)
    alone = held_out_sets(everyone[:, None], torch.ones(400, 1), 400)
    assert 0.06 < alone.float().mean() < 0.2
    inside, outside = int(everyone[alone][0]), int(everyone[~alone][0])
    sources = torch.tensor([[outside, inside], [outside, inside]])
    assert held_out_sets(sources, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), 400).tolist() == [True, False]
    assert not held_out_sets(everyone[:10, None], torch.ones(10, 1), 10).any(), "few populations all train"


def test_isometry_loss_moves_embeddings_and_not_the_populations():
    moments = gaussians(5, 30)
    mean = moments.mean.clone().requires_grad_()
    z = (moments.mean + 0.1 * torch.arange(15).reshape(5, 3)).requires_grad_()
    isometry_loss(z, isometry_targets(PopulationMoments(moments.n, mean, moments.cov))).backward()
    assert mean.grad is None and z.grad.abs().max() > 0


def test_isometry_loss_can_be_trained_to_wasserstein_distances():
    moments = gaussians(6, 100_000, d=2)
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        isometry_loss(z, isometry_targets(moments)).backward()
        optimiser.step()
    target = pairwise_gaussian_wasserstein(moments.mean, moments.cov)[tuple(torch.triu_indices(6, 6, 1))]
    assert np.corrcoef(torch.pdist(z.detach()), target)[0, 1] > 0.99


def test_isometry_loss_of_one_population_is_zero_with_finite_gradient():
    z = torch.ones(1, 3, requires_grad=True)
    loss = isometry_loss(z, isometry_targets(gaussians(1, 5)))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.isfinite(z.grad).all()


def test_isometry_loss_of_coinciding_embeddings_has_finite_gradients():
    z = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    isometry_loss(z, isometry_targets(gaussians(3, 10))).backward()
    assert torch.isfinite(z.grad).all()


def test_means_depend_on_neither_order_nor_copies():
    generator = torch.Generator().manual_seed(0)
    values = 100 + torch.randn(5000, 3, generator=generator)
    segment = torch.randint(2, (5000,), generator=generator)
    mean, order = segment_mean(values, segment, 2), torch.randperm(5000, generator=generator)
    assert mean.dtype == values.dtype
    # one unit in the last place of a float near 100
    for same in (
        segment_mean(values[order], segment[order], 2),
        segment_mean(values.repeat(3, 1), segment.repeat(3), 2),
    ):
        assert (same - mean).abs().max() <= 2**-17


def test_a_correction_gains_nothing_by_shortening_all_distances():
    moments, start = gaussians(12, 50), torch.randn((12, 3), generator=torch.Generator().manual_seed(3))
    shorter = [float(isometry_loss(f * start, isometry_targets(moments), start=start)) for f in (0.8, 1.0, 1.2)]
    assert shorter[1] < min(shorter[0], shorter[2]), "the scale that the start has fits best"
    plain = [
        float(isometry_loss(start, isometry_targets(m)))
        for m in (moments, PopulationMoments(moments.n, 2 * moments.mean, 4 * moments.cov))
    ]
    scaled = [
        float(isometry_loss(start, isometry_targets(m), start=start))
        for m in (moments, PopulationMoments(moments.n, 2 * moments.mean, 4 * moments.cov))
    ]
    assert scaled[0] == pytest.approx(scaled[1], rel=1e-5) and plain[0] != pytest.approx(plain[1], rel=1e-2)


def test_skeleton_does_not_carry_new_populations_far_off_along_axes_that_few_populations_differ_in():
    noise = torch.Generator().manual_seed(0)
    # about as many populations as axes, and spreads that embeddings say nothing about
    d, width, n_old, n_sets = 2, 40, 35, 20
    place = torch.randn(100, width, generator=noise) * torch.linspace(1, 0.05, width)
    truth = torch.cat([place[:, :d], 1 + 0.1 * torch.randn(100, 3, generator=noise)], dim=1)
    which = torch.arange(n_old).repeat_interleave(n_sets)
    z = place[which] + 0.01 * torch.randn(len(which), width, generator=noise)
    folds = fold_of(which)[:, None] == torch.arange(N_FOLDS)

    def error(folds):
        skeleton = AffineSkeleton(d, width)
        skeleton.fit(z, truth[which] + 0.01 * torch.randn(len(which), 5, generator=noise), folds=folds)
        with torch.no_grad():
            return (skeleton.linear(place[n_old:]) - truth[n_old:])[:, d:].square().mean()

    average = (truth[:n_old].mean(0) - truth[n_old:])[:, d:].square().mean()
    assert error(folds) < 1.1 * average
    assert error(None) > 2 * error(folds), "sets of one population do not tell how the next one is decoded"
