import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from scgde._networks import mlp, with_trace
from scgde.generators import FlowGenerator, Generator, VAEGenerator


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(kind, n_latent=2, n_condition=2, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(n_latent, n_condition, 32, **options)


def two_clusters(n, noise):
    y = 0.4 * torch.randn(n, 2, generator=noise)
    return y + torch.where(torch.rand(n, 1, generator=noise) < 0.5, 1.2, -1.2) * torch.tensor([[1.0, 0.3]])


@pytest.fixture(scope="module", params=[FlowGenerator, VAEGenerator])
def learned(request):
    """A generator that has learned two clusters, its condition being constant."""
    model, noise = build(request.param), seeded()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    segment, condition = torch.zeros(128, dtype=torch.long), torch.ones(128, 2)
    for _ in range(300):
        optimiser.zero_grad()
        model.loss(two_clusters(128, noise), condition, segment, noise).mean().backward()
        optimiser.step()
        schedule.step()
    return model


def test_trace_is_that_of_the_jacobian():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mlp(7, 16, 3).double()
    x = torch.randn(5, 7, generator=seeded(), dtype=torch.float64)
    output, trace = with_trace(net, x)
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)[:, :, :3]
    torch.testing.assert_close(output, net(x))
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1))


@pytest.mark.parametrize("logit", [-2.0, 0.0, 3.0])
def test_density_of_an_untrained_flow_is_standard_normal(logit):
    model = build(FlowGenerator, 3)
    with torch.no_grad():
        model.mismatch_logit.fill_(logit)
    y = torch.randn(100, 3, generator=seeded())
    expected = multivariate_normal(np.zeros(3)).logpdf(y.numpy())
    # the midpoint steps do not close exactly: 0.03 at a distance of 3
    np.testing.assert_allclose(model.log_prob(y, torch.randn(100, 2, generator=seeded(1))), expected, atol=0.1)


def test_density_of_a_flow_is_the_change_of_variables_of_its_map():
    model = build(FlowGenerator, 3, n_steps=64).double()
    noise = seeded(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    y = torch.randn(20, 3, generator=noise, dtype=torch.float64)
    condition = torch.randn(20, 2, generator=noise, dtype=torch.float64)

    def back(point, given):
        return model.invert(point[None], given[None])[0]

    log_det = torch.linalg.slogdet(torch.func.vmap(torch.func.jacrev(back))(y, condition))[1]
    base = multivariate_normal(np.zeros(3)).logpdf(model.invert(y, condition).detach().numpy())
    # midpoint steps of 1/64 have an error of that order squared
    np.testing.assert_allclose(model.log_prob(y, condition), base + log_det.detach().numpy(), atol=0.01)
    assert log_det.abs().max() > 0.5, "the map under test must change volumes"


@torch.no_grad()
def test_density_integrates_to_one_and_is_high_where_cells_are(learned):
    axis = torch.linspace(-5, 5, 101)
    grid = torch.cartesian_prod(axis, axis)
    log_density = learned.log_prob(grid, torch.ones(len(grid), 2), generator=seeded(), n_samples=200)
    total = float(log_density.exp().sum()) * 0.1**2
    # the flow's steps err by a thousandth or so; the bound of the VAE lies below its density
    assert total == pytest.approx(1, abs=0.01) if isinstance(learned, FlowGenerator) else 0.9 < total < 1.01
    y = two_clusters(2000, seeded(3))
    density = learned.log_prob(y, torch.ones(2000, 2), generator=seeded(), n_samples=64).mean()
    truth = 0.5 * sum(multivariate_normal([s * 1.2, s * 0.36], 0.16 * np.eye(2)).pdf(y.numpy()) for s in (-1, 1))
    # a VAE trained this briefly is blurred
    short = 0.15 if isinstance(learned, FlowGenerator) else 0.45
    assert np.log(truth).mean() - short < float(density) <= np.log(truth).mean() + 0.02
    normal = multivariate_normal(y.mean(0).numpy(), np.cov(y.T.numpy())).logpdf(y.numpy()).mean()
    assert float(density) > normal + 0.1


@torch.no_grad()
def test_bound_of_the_vae_rises_with_the_number_of_draws(learned):
    if not isinstance(learned, VAEGenerator):
        pytest.skip("the flow draws nothing")
    y, condition = two_clusters(1000, seeded(4)), torch.ones(1000, 2)
    bounds = [float(learned.log_prob(y, condition, n_samples=k, generator=seeded(5)).mean()) for k in (1, 8, 64)]
    assert bounds[0] < bounds[1] < bounds[2]
    # with one draw it is the evidence bound, up to the noise of its draws
    elbo = -2 * float(learned.loss(y, condition, torch.zeros(1000), seeded(6)).mean())
    assert bounds[0] == pytest.approx(elbo, abs=0.1)
    again = learned.log_prob(y, condition, n_samples=8, generator=seeded(5)).mean()
    assert bounds[1] == float(again)


def test_untrained_vae_approaches_the_standard_normal_with_many_draws():
    model = build(VAEGenerator)
    y = torch.randn(200, 2, generator=seeded())
    with torch.no_grad():
        bound = model.log_prob(y, torch.zeros(200, 2), n_samples=2000, generator=seeded(1))
    expected = -0.5 * y.square().sum(1) - math.log(2 * math.pi)
    # the untrained encoder is a poor proposal: 2,000 draws leave a few hundredths
    assert float((bound - expected).abs().mean()) < 0.1


def test_generators_without_a_density_say_which_has_one():
    class Sampler(Generator):
        def loss(self, y, condition, segment, generator=None):
            return y[:, 0]

        def sample(self, condition, generator=None):
            return condition

    with pytest.raises(TypeError, match="Sampler has no density; use generator='flow'"):
        Sampler(2, 2).log_prob(torch.zeros(1, 2), torch.zeros(1, 2))
