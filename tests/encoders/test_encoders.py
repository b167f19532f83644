import numpy as np
import pytest
import torch

from scgde.encoders import ENCODERS, SetEncoder
from scgde.encoders._axes import principal_axes
from scgde.moments import PopulationMoments, moment_size
from scgde.ot import sqrtm_psd

N_LATENT = 3
SIZES = [1, 2, 5, 17, 40]

# Single precision of sums of tens of numbers of order one.
TOLERANCE = 1e-5


def make_sets(sizes=SIZES, seed=0, dtype=torch.float32):
    """Ragged sets of different means and spreads, in random row order."""
    rng = np.random.default_rng(seed)
    segment = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    spread = rng.uniform(0.5, 1.5, (len(sizes), N_LATENT))
    u = rng.normal(size=(len(sizes), N_LATENT))[segment] + spread[segment] * rng.normal(size=(len(segment), N_LATENT))
    return torch.tensor(u, dtype=dtype), torch.tensor(segment)


def make_encoder(name, n_embedding=12, fitted=True, perturbed=True, dtype=torch.float32):
    """An encoder off its starting point, so that no learned part is idle."""
    encoder = ENCODERS[name](N_LATENT, n_embedding, 8)
    if fitted:
        u, segment = make_sets([40] * 20, seed=1)
        encoder.fit(u, segment, PopulationMoments.from_cells(u, segment, 20), set_size=40)
    if perturbed:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return encoder.to(dtype).eval()


@pytest.fixture(params=ENCODERS)
def name(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["off the start", "at the start"])
def encoder(request, name):
    return make_encoder(name, perturbed=request.param)


def test_embeddings_have_a_row_per_set_and_tell_sets_apart(encoder):
    z = encoder(*make_sets())
    assert z.shape == (len(SIZES), 12) and z.dtype == torch.float32
    assert torch.isfinite(z).all() and torch.pdist(z).min() > 0.01


def test_order_of_cells_does_not_matter(encoder):
    u, segment = make_sets()
    order = torch.randperm(len(u), generator=torch.Generator().manual_seed(0))
    assert (encoder(u, segment) - encoder(u[order], segment[order])).abs().max() <= TOLERANCE


def test_duplicating_every_cell_changes_nothing(encoder):
    u, segment = make_sets()
    assert (encoder(u, segment) - encoder(u.repeat(3, 1), segment.repeat(3))).abs().max() <= TOLERANCE


def test_integer_weights_are_repeated_cells(encoder):
    u, segment = make_sets()
    times = torch.randint(1, 4, (len(u),), generator=torch.Generator().manual_seed(0))
    repeated = encoder(u.repeat_interleave(times, 0), segment.repeat_interleave(times))
    assert (encoder(u, segment, times.float()) - repeated).abs().max() <= TOLERANCE


def test_weights_matter_up_to_a_factor_per_set(encoder):
    u, segment = make_sets()
    weight = torch.rand(len(u), generator=torch.Generator().manual_seed(0)) + 0.1
    factor = torch.tensor([0.01, 3.0, 100.0, 1.0, 7.0])
    weighted = encoder(u, segment, weight)
    assert (weighted - encoder(u, segment, weight * factor[segment])).abs().max() <= TOLERANCE
    assert (weighted - encoder(u, segment))[1:].abs().max() > 0.01


def test_cells_of_weight_zero_are_absent(encoder):
    u, segment = make_sets([10, 10])
    keep = torch.arange(20) % 3 > 0
    assert (encoder(u, segment, keep.float()) - encoder(u[keep], segment[keep])).abs().max() <= TOLERANCE


def test_a_ragged_batch_equals_one_set_at_a_time(encoder):
    u, segment = make_sets()
    together = encoder(u, segment)
    for k in range(len(SIZES)):
        alone = encoder(u[segment == k], torch.zeros(SIZES[k], dtype=torch.long))
        assert (together[k] - alone[0]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_any_number_of_cells_is_embedded(encoder, size):
    u, segment = make_sets([size])
    z = encoder(u, segment)
    assert z.shape == (1, 12) and torch.isfinite(z).all()


def test_gradients_are_finite_for_one_cell_and_for_equal_cells(encoder):
    u = torch.ones(5, N_LATENT, requires_grad=True)
    encoder(u, torch.tensor([0, 1, 1, 1, 1])).sum().backward()
    gradients = [u.grad, *(p.grad for p in encoder.parameters() if p.grad is not None)]
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("n_embedding", [1, 2, moment_size(N_LATENT), 30])
def test_any_width_of_embedding_works(name, n_embedding):
    encoder = make_encoder(name, n_embedding)
    z = encoder(*make_sets())
    assert z.shape == (len(SIZES), n_embedding) and torch.isfinite(z).all()


def test_embedding_does_not_depend_on_the_training_mode(encoder):
    sets = make_sets()
    z = encoder(*sets)
    assert torch.equal(z, encoder.train()(*sets))


# ---------------------------------------------------------------- influences


def generic(method, encoder, *args):
    """The method as the base class defines it, which is right for every encoder."""
    return getattr(SetEncoder, method)(encoder, *args)


@pytest.mark.parametrize("version", ["own", "generic"])
def test_influence_is_the_derivative_by_a_cells_weight(name, version):
    encoder = make_encoder(name, dtype=torch.float64)
    u, segment = make_sets([1, 4, 9], dtype=torch.float64)
    arguments = (u, segment, 3)
    z, psi = encoder.influence(*arguments) if version == "own" else generic("influence", encoder, *arguments)
    step = 1e-5
    for j in range(len(u)):
        up, down = torch.ones(len(u), dtype=torch.float64), torch.ones(len(u), dtype=torch.float64)
        up[j] += step
        down[j] -= step
        k = segment[j]
        n = (segment == k).sum()
        # raw weights of one: the derivative is 1/n of that by the normalised weight
        expected = n * (encoder(u, segment, up) - encoder(u, segment, down))[k] / (2 * step)
        # central differences: error of order step squared plus rounding over step
        assert (psi[j] - expected).abs().max() < 1e-6
    assert (z - encoder(u, segment)).abs().max() < 1e-12


def test_influences_do_not_depend_on_how_many_sets_a_pass_holds(name, monkeypatch):
    encoder, (u, segment) = make_encoder(name, dtype=torch.float64), make_sets(dtype=torch.float64)
    z, psi = encoder.influence(u, segment, len(SIZES))
    monkeypatch.setattr("scgde.encoders.base._COST_PER_PASS", 1)
    again = encoder.influence(u, segment, len(SIZES))
    # gathered single-precision buffers set the accuracy
    torch.testing.assert_close(again, (z, psi), atol=1e-6, rtol=1e-5)


def test_influences_average_to_zero_in_each_set(name):
    u, segment = make_sets(dtype=torch.float64)
    _, psi = make_encoder(name, dtype=torch.float64).influence(u, segment, len(SIZES))
    for k in range(len(SIZES)):
        assert psi[segment == k].mean(0).abs().max() < 1e-10
    assert psi[segment == 0].abs().max() < 1e-10, "a single cell has no influence beyond its own"


def test_influence_of_a_linear_encoder_is_the_cells_own_vector_less_the_mean(name):
    encoder = make_encoder(name, dtype=torch.float64)
    if not encoder.is_linear:
        pytest.skip("the encoder is not a plain mean")
    u, segment = make_sets(dtype=torch.float64)
    z, psi = encoder.influence(u, segment, len(SIZES))
    own = encoder(u, torch.arange(len(u)))
    assert (z[segment] + psi - own).abs().max() < 1e-10


@pytest.mark.parametrize("version", ["own", "generic"])
def test_delete_one_is_deletion(name, version):
    encoder = make_encoder(name, dtype=torch.float64)
    u, segment = make_sets([2, 3, 12], dtype=torch.float64)
    arguments = (u, segment, 3)
    without = encoder.delete_one(*arguments) if version == "own" else generic("delete_one", encoder, *arguments)
    for j in range(len(u)):
        rest = torch.arange(len(u)) != j
        expected = encoder(u[rest], segment[rest], n_sets=3)[segment[j]]
        # coordinates of shape are deleted to first order only
        read = encoder.n_read if version == "own" else None
        assert (without[j] - expected)[:read].abs().max() < 1e-8


def test_cells_added_at_weight_zero_get_the_influence_of_adding_them(name):
    encoder = make_encoder(name, dtype=torch.float64)
    u, _ = make_sets([12], dtype=torch.float64)
    weight = torch.ones(12, dtype=torch.float64)
    weight[10:] = 0
    vectors = encoder.weighted_influence(u, weight)
    zeros = torch.zeros(12, dtype=torch.long)
    z = encoder(u[:10], zeros[:10])[0]
    share = 1e-7
    for j in (10, 11):
        # mix the reference with a point mass at the cell
        mixed = weight / 10 * (1 - share)
        mixed[j] += share
        expected = z + (encoder(u, zeros, mixed)[0] - z) / share
        # one-sided difference: error of order share times the second derivative
        assert (vectors[j] - expected).abs().max() < 1e-3 * expected.abs().max().clamp_min(1.0)
    assert (vectors[:10].mean(0) - z).abs().max() < 1e-10


# ------------------------------------------------------------- starting points


def moments_distance(u, segment, a, b):
    mean = [u[segment == k].mean(0) for k in (a, b)]
    root = [sqrtm_psd(torch.cov(u[segment == k].T, correction=0)) for k in (a, b)]
    return ((mean[0] - mean[1]).square().sum() + (root[0] - root[1]).square().sum()).sqrt()


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("n_embedding", [moment_size(N_LATENT), moment_size(N_LATENT) + 4])
def test_residual_encoder_starts_as_the_distance_of_means_and_root_covariances(fitted, n_embedding):
    encoder = make_encoder("residual", n_embedding, fitted=False, perturbed=False, dtype=torch.float64)
    if fitted:  # on sets too small to say how reliable an axis is, so that none is scaled
        u, segment = make_sets([3] * 40, seed=1, dtype=torch.float64)
        encoder.fit(u, segment, PopulationMoments.from_cells(u, segment, 40), set_size=40)
    encoder.pooled_cov.zero_()
    u, segment = make_sets([10, 30, 50, 200], dtype=torch.float64)
    z = encoder(u, segment).detach()
    for a in range(4):
        for b in range(a):
            assert float((z[a] - z[b]).norm()) == pytest.approx(float(moments_distance(u, segment, a, b)), rel=1e-9)


def test_residual_encoder_in_few_dimensions_is_a_projection():
    encoder = make_encoder("residual", 4, perturbed=False, dtype=torch.float64)
    encoder.pooled_cov.zero_()
    u, segment = make_sets([10, 30, 50, 200], dtype=torch.float64)
    z = encoder(u, segment).detach()
    for a in range(4):
        for b in range(a):
            assert float((z[a] - z[b]).norm()) <= float(moments_distance(u, segment, a, b)) + 1e-6


@pytest.mark.parametrize("name", ["residual", "transport"], indirect=True)
def test_distances_of_small_sets_are_on_average_those_of_large_ones(name):
    n_sets, n = 200, 20
    rng = np.random.default_rng(0)
    spread = torch.tensor(rng.uniform(0.5, 1.5, (n_sets, 1, N_LATENT)))

    def cells(n):
        return (spread * torch.tensor(rng.normal(size=(n_sets, n, N_LATENT)))).flatten(0, 1)

    def squared(encoder, n):
        segment = torch.arange(n_sets).repeat_interleave(n)
        return float(torch.pdist(encoder(cells(n), segment).detach()).square().mean())

    plain, fitted = (ENCODERS[name](N_LATENT, 12, 8).double() for _ in range(2))
    u, segment = cells(2 * n), torch.arange(n_sets).repeat_interleave(2 * n)
    fitted.fit(u, segment, PopulationMoments.from_cells(u, segment, n_sets), set_size=n)
    if name == "residual":  # it starts as the plain distance of moments, to which noise adds
        assert squared(plain, n) > 1.5 * squared(plain, 1000)
        assert squared(fitted, n) == pytest.approx(squared(plain, 1000), rel=0.15)
    assert squared(fitted, n) < 1.6 * squared(fitted, 1000)


@pytest.mark.parametrize("n_embedding", [N_LATENT, 7])
def test_mean_encoder_starts_as_the_distance_of_means(n_embedding):
    encoder = make_encoder("mean", n_embedding, perturbed=False)
    u, segment = make_sets()
    means = torch.stack([u[segment == k].mean(0) for k in range(len(SIZES))])
    assert (torch.pdist(encoder(u, segment)) - torch.pdist(means)).abs().max() <= TOLERANCE


def test_kernel_mean_encoder_separates_equal_means_of_other_shape():
    # two points against a normal of the same mean and variance along every axis
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, N_LATENT, generator=generator)
    points = torch.sign(torch.randn(2000, N_LATENT, generator=generator))
    u, segment = torch.cat([normal, points, normal.flip(1)]), torch.arange(3).repeat_interleave(2000)
    z = make_encoder("kernel_mean", 64, perturbed=False)(u, segment)
    assert (z[0] - z[1]).norm() > 3 * (z[0] - z[2]).norm()


def test_states_encoder_counts_states_and_has_no_bias_of_small_sets():
    # sets of three cells in two states far apart, or in one between them: means agree, shares do not
    generator = torch.Generator().manual_seed(0)
    n_sets = 300
    centre = torch.tensor([-6.0, 6.0])[torch.randint(2, (n_sets * 3,), generator=generator)]
    u = 0.5 * torch.randn(2 * n_sets * 3, N_LATENT, generator=generator)
    u[: n_sets * 3, 0] += centre
    segment = torch.arange(2 * n_sets).repeat_interleave(3)
    encoder = ENCODERS["states"](N_LATENT, 12)
    encoder.fit(u, segment, PopulationMoments.from_cells(u, segment, 2 * n_sets), set_size=3)
    assert encoder.assignment(u).sum(1).numpy() == pytest.approx(1, abs=1e-5)
    z = encoder(u, segment).detach()
    whole = encoder(u, torch.arange(2).repeat_interleave(n_sets * 3)).detach()
    assert torch.allclose(z[:n_sets].mean(0), whole[0], atol=1e-4)
    means = torch.stack([u[: n_sets * 3].mean(0), u[n_sets * 3 :].mean(0)])
    assert (whole[0] - whole[1]).norm() > 3 * (means[0] - means[1]).norm()
    # sets of the one kind are nearer to all of their kind
    own, other = (torch.cdist(z[n_sets:], whole[k : k + 1]).squeeze() for k in (1, 0))
    assert (own < other).float().mean() > 0.95


def test_states_encoder_makes_do_with_few_cells():
    encoder = ENCODERS["states"](N_LATENT, 12)
    u, segment = make_sets([2, 3])
    encoder.fit(u, segment, PopulationMoments.from_cells(u, segment, 2), set_size=3)
    assert torch.isfinite(encoder(u, segment)).all()


def test_encoders_do_not_draw_from_global_randomness(name):
    # initial weights may; fitting and embedding may not
    encoder, sets = make_encoder(name, fitted=False), make_sets([40] * 5)
    state = torch.get_rng_state()
    encoder.fit(*sets, PopulationMoments.from_cells(*sets, 5), set_size=40)
    encoder(*sets)
    assert torch.equal(torch.get_rng_state(), state)


def test_waves_show_shape_wherever_a_population_lies():
    encoder = make_encoder("shape", perturbed=False, dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, N_LATENT, generator=noise, dtype=torch.float64)
    clusters = 0.4 * normal + torch.tensor([-1.5, 1.5])[torch.randint(2, (2000, 1), generator=noise)].double()
    segment = torch.arange(3).repeat_interleave(2000)
    waves = encoder.pooled_waves(torch.cat([normal, clusters, 3 * clusters + 5]), segment, None, 3)
    same, other = (waves[1] - waves[2]).norm(), (waves[1] - waves[0]).norm()
    # a share of the pooled covariance is added to each, which is all that remains
    assert same < 0.05 * other


def test_shape_encoder_has_the_distances_of_the_default_one():
    u, segment = make_sets([60] * 10, seed=5)
    shape, plain = (
        make_encoder("shape", 2 * moment_size(N_LATENT), perturbed=False),
        make_encoder("residual", perturbed=False),
    )
    distances = [torch.pdist(encoder(u, segment).detach()) for encoder in (shape, plain)]
    # a share of 0.03 of the spread is a thousandth of distances; more between populations that are alike
    torch.testing.assert_close(*distances, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_embedding_in_blocks_is_embedding_at_once(name, block, monkeypatch):
    monkeypatch.setattr("scgde.encoders.base._CELLS_PER_BLOCK", block)
    noise = torch.Generator().manual_seed(0)
    encoder = ENCODERS[name](3, 7, 16).double().eval()
    segment = torch.randperm(60, generator=noise) % 10  # in no order
    u = torch.randn(60, 3, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        expected = encoder(u, segment)
    torch.testing.assert_close(encoder.in_blocks(u, segment, 10), expected)


@pytest.mark.parametrize("n_axes", [4, 12, 25])
def test_principal_axes_of_few_rows_are_those_of_the_whole_covariance(n_axes):
    n_first, m = 6, 60
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(20, m)) * np.geomspace(1, 0.05, m))
    rows = rows - rows.mean(0)
    axes = principal_axes(rows, n_first, n_axes)
    least = torch.full((m,), 1e-6, dtype=torch.float64)
    least[:n_first] = 1e-3
    cov = rows.T @ rows / 19
    expected = torch.linalg.eigh(cov + torch.diag(least) * cov.trace() / m)[1].flip(1)[:, :n_axes]
    # each axis up to its sign
    torch.testing.assert_close((axes * expected).sum(0).abs(), torch.ones(n_axes, dtype=torch.float64))
