import numpy as np
import pytest
import torch

from scgde.observations import COUNT_LIKELIHOODS, Context, ContinuousModel, CountModel
from scgde.observations.counts import GENE_GAIN, MIN_SCALE


def make_counts(likelihood="zinb", n_vars=20, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CountModel(n_vars, 3, n_hidden=8, gene_likelihood=likelihood, **options).eval()


def make_context(n, library=200.0, batch=0, **options):
    return Context(torch.full((n, 1), library), torch.full((n, 1), batch), **options)


@pytest.fixture(params=COUNT_LIKELIHOODS)
def likelihood(request):
    return request.param


@torch.no_grad()
def test_draws_are_counts_with_the_mean_and_variance_of_the_law(likelihood):
    model = make_counts(likelihood)
    law = model.decode(torch.zeros(20_000, 3), make_context(20_000))
    counts = model.draw(law, torch.Generator().manual_seed(0))
    assert counts.shape == (20_000, 20) and counts.min() >= 0 and torch.equal(counts, counts.round())
    mean, variance = law.mean[0], law.variance[0]
    # five standard errors over 20,000 draws; a variance of skewed counts needs more room
    assert ((counts.mean(0) - mean).abs() < 5 * (variance / 20_000).sqrt()).all()
    assert (counts.var(0) / variance - 1).abs().max() < 0.2


@torch.no_grad()
def test_draws_use_the_given_generator_only(likelihood):
    model = make_counts(likelihood)
    law = model.decode(torch.zeros(50, 3), make_context(50))
    state = torch.get_rng_state()
    one, same, other = (model.draw(law, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_profiles_sum_to_one_and_means_to_the_library(likelihood):
    model = make_counts(likelihood)
    law = model.decode(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), make_context(5))
    np.testing.assert_allclose(model.profile(law).sum(1), 1, rtol=1e-5)
    expected = law.rate if likelihood == "poisson" else law.mu
    np.testing.assert_allclose(expected.sum(1), 200, rtol=1e-5)


@torch.no_grad()
def test_cells_without_counts_have_finite_likelihoods_and_draws(likelihood):
    model = make_counts(likelihood)
    x = torch.zeros(2, 20)
    mean, sd = model.encode(x)
    law = model.decode(mean, make_context(2, library=0.0))
    assert torch.isfinite(mean).all() and (sd > 0).all() and torch.isfinite(law.log_prob(x)).all()
    assert (model.draw(law, torch.Generator().manual_seed(0)) == 0).all()


@torch.no_grad()
def test_the_encoder_treats_cells_one_by_one():
    model = make_counts()
    x = torch.poisson(torch.full((10, 20), 3.0), generator=torch.Generator().manual_seed(0))
    together = model.train().encode(x)[0]
    np.testing.assert_allclose(together[4], model.encode(x[4:5])[0][0], atol=1e-6)


@torch.no_grad()
def test_the_decoder_sees_batch_and_covariates():
    model = make_counts(n_batch=2, n_categories=[3], n_continuous=1)
    u = torch.zeros(1, 3)

    def profile(batch, category, number):
        context = make_context(
            1, batch=batch, categorical=torch.tensor([[category]]), continuous=torch.tensor([[number]])
        )
        return model.profile(model.decode(u, context))

    reference = profile(0, 0, 0.0)
    for changed in (profile(1, 0, 0.0), profile(0, 2, 0.0), profile(0, 0, 1.0)):
        assert (changed - reference).abs().max() > 1e-4


@torch.no_grad()
def test_dispersion_can_differ_between_batches():
    model = make_counts("nb", n_batch=2, dispersion="gene-batch")
    model.scaled_log_dispersion[1] = 2.0 / GENE_GAIN
    laws = [model.decode(torch.zeros(1, 3), make_context(1, batch=b)) for b in (0, 1)]
    np.testing.assert_allclose(laws[0].theta, 1.0)
    np.testing.assert_allclose(laws[1].theta, np.exp(2.0), rtol=1e-6)


@torch.no_grad()
def test_continuous_rows_are_standardised_by_one_common_scale():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(500, 3)) * [5, 1, 0.1] + 7, dtype=torch.float32)
    model = ContinuousModel(3)
    model.fit(x.mean(0), x.var(0), 1.0)
    u, sd = model.encode(x)
    assert (sd == 0).all() and u.mean(0).abs().max() < 1e-4
    assert float(u.var(0).mean()) == pytest.approx(1, rel=1e-3)
    ratio = torch.pdist(x[:50]) / torch.pdist(u[:50])
    np.testing.assert_allclose(ratio, float(model.scale), rtol=1e-3)
    law = model.decode(u, make_context(500))
    np.testing.assert_allclose(model.draw(law, torch.Generator()), x, atol=1e-4)


@torch.no_grad()
def test_constant_rows_give_finite_latents():
    model = ContinuousModel(2)
    model.fit(torch.ones(2), torch.zeros(2), 1.0)
    assert torch.isfinite(model.encode(torch.ones(3, 2))[0]).all()


@torch.no_grad()
def test_library_size_is_predicted_from_the_latent():
    model, generator = make_counts(n_vars=5), torch.Generator().manual_seed(0)
    u = torch.randn(4000, 3, generator=generator)
    assert torch.equal(model.log_library(u), torch.zeros(4000, 1))
    log_library = 7 + u[:, :1] - 0.5 * u[:, 1:2] * u[:, 2:]
    model.fit_library(u, (log_library + 0.3 * torch.randn(4000, 1, generator=generator)).exp())
    near = (u.abs() < 3).all(1)
    assert (model.log_library(u) - log_library)[near].abs().max() < 0.1
    assert model.log_library(torch.full((1, 3), 1e6)).isfinite().all()


def expression(model, u, context):
    return torch.log1p(model.target * model.decode(u, context).scale)


@torch.no_grad()
def test_latent_axes_weigh_by_what_they_change_in_expression(likelihood):
    model = make_counts(likelihood, expression_weight=1.0)
    model.target.fill_(100.0)
    model.decoder_linear.weight.copy_(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)))
    model.decoder_linear.weight.mul_(torch.tensor([1.0, 0.3, 0.0]))
    u, context = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), make_context(300)
    model.fit_scale(u, context)
    change, step = [], 1e-2
    unscaled = u * model.latent_scale
    for axis in range(3):
        shift = torch.zeros(3)
        shift[axis] = step
        difference = expression(model, unscaled + shift, context) - expression(model, unscaled - shift, context)
        change.append(difference.square().sum(1).mean().sqrt() / (2 * step))
    # a step along any axis now changes expression alike, also along the axis that only the network uses
    assert max(change) / min(change) == pytest.approx(1, abs=0.02)
    assert float(model.latent_scale.square().mean()) == pytest.approx(1, rel=1e-4)
    assert model.latent_scale[0] > 2 * model.latent_scale[1] > 4 * model.latent_scale[2]
    full = model.latent_scale.clone()
    for power in (0.0, 0.5):
        model.expression_weight = power
        model.fit_scale(unscaled, context)
        expected = full**power / (full**power).square().mean().sqrt()
        np.testing.assert_allclose(model.latent_scale, expected, rtol=1e-3)
        unscaled = u * model.latent_scale


@torch.no_grad()
def test_scaling_the_latent_changes_no_cell_and_can_be_repeated():
    model = make_counts(expression_weight=1.0)
    x = torch.poisson(torch.full((50, 20), 3.0), generator=torch.Generator().manual_seed(0))
    context = make_context(50)
    mean, sd = model.encode(x)
    before = model.decode(mean, context).scale
    model.fit_scale(mean, context)
    scale = model.latent_scale.clone()
    assert (scale - 1).abs().max() > 0.05
    scaled, scaled_sd = model.encode(x)
    np.testing.assert_allclose(scaled, mean * scale, rtol=1e-5)
    np.testing.assert_allclose(scaled_sd, sd * scale, rtol=1e-5)
    np.testing.assert_allclose(model.decode(scaled, context).scale, before, rtol=1e-4)
    model.fit_scale(scaled, context)
    np.testing.assert_allclose(model.latent_scale, scale, rtol=1e-4)


@torch.no_grad()
def test_an_axis_that_changes_nothing_can_still_be_inverted():
    model = make_counts(expression_weight=1.0)
    for weight in model.decoder.parameters():
        weight.zero_()
    model.decoder_linear.weight[:, 2] = 0.0
    u, context = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), make_context(30)
    model.fit_scale(u, context)
    assert model.latent_scale[2] == pytest.approx(MIN_SCALE)
    assert torch.isfinite(model.decode(u * model.latent_scale, context).scale).all()
