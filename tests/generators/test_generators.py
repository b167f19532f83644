import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scgde.encoders import ENCODERS
from scgde.generators import GENERATORS, AffineSkeleton, FlowGenerator
from scgde.generators.flow import couple
from scgde.generators.transport import sort_within
from scgde.moments import PopulationMoments, moment_vector, to_vector
from scgde.ot import wasserstein


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(n, generator):
    """A correlated 2-d normal off the origin."""
    y = torch.randn(n, 2, generator=generator)
    return y @ torch.tensor([[1.0, 0.6], [0.0, 0.5]]) + torch.tensor([1.0, -0.5])


def bimodal(n, generator):
    """Two clusters, three units apart."""
    y = 0.3 * torch.randn(n, 2, generator=generator)
    return y + torch.where(torch.rand(n, 1, generator=generator) < 0.5, 1.5, -1.5) * torch.tensor([[1.0, 0.0]])


TARGETS = (gaussian, bimodal)


def build(name, n_latent=2, n_condition=2, perturbed=False, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS[name](n_latent, n_condition, 32, **options)
    if perturbed:
        noise = seeded(1)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
    return generator


@pytest.fixture(params=GENERATORS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def learned():
    """Each generator trained on both targets at once, told apart by the condition."""
    trained = {}
    for name in GENERATORS:
        model, noise = build(name), seeded(0)
        optimiser = torch.optim.Adam(
            {"params": [p], "lr": 1e-2 * model.learning_rate_factor(n)} for n, p in model.named_parameters()
        )
        n_steps = 150 if name == "sinkhorn" else 900  # slow steps, but few are needed
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
        segment = torch.arange(2).repeat_interleave(64)
        condition = torch.eye(2)[segment]
        for _ in range(n_steps):
            y = torch.cat([target(64, noise) for target in TARGETS])
            optimiser.zero_grad()
            model.loss(y, condition, segment, noise).mean().backward()
            optimiser.step()
            schedule.step()
        trained[name] = model
    return trained


@pytest.mark.parametrize("which", [0, 1], ids=["gaussian", "bimodal"])
def test_training_brings_samples_close_to_the_target(learned, name, which):
    truth = TARGETS[which](600, seeded(2)).numpy()
    condition = torch.eye(2)[which].expand(600, 2)
    with torch.no_grad():
        before = build(name).sample(condition, seeded(3)).numpy()
        after = learned[name].sample(condition, seeded(3)).numpy()
    again = TARGETS[which](600, seeded(4)).numpy()
    untrained, distance, floor = (wasserstein(x, truth) for x in (before, after, again))
    assert untrained > 0.7
    # twice the distance of two draws of the target, plus what a short training leaves
    assert distance < 2 * floor + 0.15


def test_bimodal_target_keeps_its_gap(learned):
    with torch.no_grad():
        y = learned["flow"].sample(torch.eye(2)[1].expand(2000, 2), seeded(5))
    share = (y[:, 0].abs() < 0.5).float().mean()
    # a normal of the same mean and variance has a quarter of its mass there, the target one part in two thousand
    assert share < 0.05
    assert float((y[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 3.0])
def test_untrained_flow_maps_noise_to_itself_whatever_its_coupling(logit):
    model = build("flow", 3, 4)
    noise, condition = torch.randn(500, 3, generator=seeded()), torch.randn(500, 4, generator=seeded(1))
    with torch.no_grad():
        model.mismatch_logit.fill_(logit)
        # cells between noise and target are closer to zero, and come out again
        assert model.velocity(noise, torch.full((500, 1), 0.1), condition).mul(noise).sum(1).max() < 0
        assert (model.push(noise, condition) - noise).abs().max() < 0.03


def test_untrained_flow_is_the_best_one_for_normal_cells_without_coupling(monkeypatch):
    monkeypatch.setattr("scgde.generators.flow.couple", lambda noise, y, segment: noise)
    model = build("flow", 3, 4)
    y, condition = torch.randn(20_000, 3, generator=seeded()), torch.zeros(20_000, 4)
    segment = torch.zeros(20_000, dtype=torch.long)
    with torch.no_grad():
        model.mismatch_logit.fill_(20.0)
        best = float(model.loss(y, condition, segment, seeded(1)).mean())
        model.mismatch_logit.fill_(0.0)
        worse = float(model.loss(y, condition, segment, seeded(1)).mean())
    # mean over t of 1 / (1 - 2 t (1 - t)), what no velocity can explain, is pi / 2
    assert best == pytest.approx(np.pi / 2, abs=0.03) and worse > best + 0.05


def test_loss_is_one_number_per_cell_and_has_gradients(name):
    model = build(name, 3, 4, perturbed=True)
    segment = torch.tensor([0, 1, 1, 2, 0, 1, 2])
    loss = model.loss(torch.randn(7, 3, generator=seeded()), torch.randn(3, 4)[segment], segment, seeded())
    assert loss.shape == (7,) and torch.isfinite(loss).all()
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_samples_have_one_row_per_condition_and_start_as_a_standard_normal(name):
    y = build(name, 3, 4).sample(torch.randn(5000, 4, generator=seeded()), seeded(1))
    assert y.shape == (5000, 3) and y.dtype == torch.float32
    # four standard errors of a mean and of a variance over 5,000 draws
    assert y.mean(0).abs().max() < 4 / 5000**0.5
    assert (torch.cov(y.T) - torch.eye(3)).abs().max() < 4 * (2 / 5000) ** 0.5


def test_randomness_comes_from_the_argument_alone(name):
    model = build(name, perturbed=True)
    condition, segment, y = torch.ones(9, 2), torch.arange(9) // 3, torch.randn(9, 2, generator=seeded())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        samples = [model.sample(condition, seeded(s)) for s in (0, 0, 1)]
        losses = [model.loss(y, condition, segment, seeded(s)) for s in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])
    assert torch.equal(losses[0], losses[1])
    # a likelihood needs no draws
    assert torch.equal(losses[0], losses[2]) == (name == "mixture")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_condition_changes_what_is_sampled(learned, name):
    with torch.no_grad():
        one, two = (learned[name].sample(torch.eye(2)[k].expand(500, 2), seeded(0)) for k in (0, 1))
    assert (one.mean(0) - two.mean(0)).abs().max() > 0.5


@pytest.mark.parametrize("name", [n for n, g in GENERATORS.items() if not g.can_invert], indirect=True)
def test_generators_that_cannot_invert_say_which_can(name):
    with pytest.raises(TypeError, match="generator='flow'"):
        build(name).invert(torch.zeros(1, 2), torch.zeros(1, 2))


# ----------------------------------------------------------------------- flow


@pytest.mark.parametrize("name", ["flow", "diffusion"], indirect=True)
def test_flows_invert_what_they_push(name):
    model = build(name, 3, 2, perturbed=True, n_steps=64).double()
    noise = torch.randn(200, 3, generator=seeded(), dtype=torch.float64)
    condition = torch.randn(200, 2, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        pushed = model.push(noise, condition)
        back = model.invert(pushed, condition)
    assert (pushed - noise).abs().mean() > 0.1, "the map under test must move cells"
    # midpoint steps of 1/64 have an error of that order squared
    assert (back - noise).abs().max() < 0.01


def test_finer_steps_invert_better():
    noise, condition = torch.randn(100, 2, generator=seeded()), torch.ones(100, 2)
    errors = []
    for n_steps in (8, 32):
        model = build("flow", perturbed=True, n_steps=n_steps)
        with torch.no_grad():
            errors.append(float((model.invert(model.push(noise, condition), condition) - noise).abs().mean()))
    # second order: a quarter of the step gives a sixteenth of the error
    assert errors[1] < errors[0] / 4


def test_trained_flow_inverts_with_its_default_steps(learned):
    y, condition = gaussian(300, seeded(7)), torch.eye(2)[0].expand(300, 2)
    with torch.no_grad():
        back = learned["flow"].push(learned["flow"].invert(y, condition), condition)
    assert (back - y).abs().mean() < 0.02


@pytest.fixture
def unordered_sets():
    rng = np.random.default_rng(0)
    segment = rng.permutation(np.repeat([0, 1, 2, 3], [1, 2, 11, 30]))
    return tuple(torch.tensor(a) for a in (rng.normal(size=(44, 3)), rng.normal(size=(44, 3)), segment))


def test_coupling_permutes_noise_within_each_set(unordered_sets):
    noise, y, segment = unordered_sets
    coupled = couple(noise, y, segment)
    for k in range(4):
        before, after = (np.sort(a[segment == k].numpy(), axis=0) for a in (noise, coupled))
        assert np.array_equal(before, after)


def test_coupling_is_the_optimal_assignment_of_each_set(unordered_sets):
    noise, y, segment = unordered_sets
    coupled = couple(noise, y, segment)
    for k in range(4):
        rows = segment == k
        cost = cdist(y[rows], noise[rows], "sqeuclidean")
        best = cost[linear_sum_assignment(cost)].sum()
        assert float((y[rows] - coupled[rows]).square().sum()) == pytest.approx(best, rel=1e-9)


def test_coupling_needs_no_adjacent_rows_and_carries_no_gradient(unordered_sets):
    noise, y, segment = unordered_sets
    order = torch.argsort(segment, stable=True)
    y = y.requires_grad_()
    assert torch.equal(couple(noise, y, segment)[order], couple(noise[order], y[order], segment[order]))
    assert not couple(noise, y, segment).requires_grad


def test_more_steps_of_a_flow_change_little_once_trained(learned):
    coarse, fine = learned["flow"], FlowGenerator(2, 2, 32, n_steps=64)
    fine.load_state_dict(coarse.state_dict())
    noise, condition = torch.randn(200, 2, generator=seeded()), torch.eye(2)[0].expand(200, 2)
    with torch.no_grad():
        assert (coarse.push(noise, condition) - fine.push(noise, condition)).abs().mean() < 0.02


# ------------------------------------------------------------------- skeleton


def test_skeleton_roots_are_symmetric_and_bounded_below():
    skeleton = AffineSkeleton(3, 5)
    torch.nn.init.normal_(skeleton.linear.weight)
    mean, root = skeleton(torch.randn(50, 5, generator=seeded()))
    assert mean.shape == (50, 3)
    assert (root - root.mT).abs().max() < 1e-5
    assert torch.linalg.eigvalsh(root).min() > skeleton.floor * 0.99


@torch.no_grad()
def test_skeleton_recovers_moments_that_are_linear_in_the_embedding():
    z = torch.randn(80, 5, generator=seeded())
    mean = z @ torch.randn(5, 2, generator=seeded(1))
    root = torch.eye(2) * 2 + 0.2 * z[:, :1, None] * torch.tensor([[1.0, 0.3], [0.3, 0.5]])
    skeleton = AffineSkeleton(2, 5)
    skeleton.fit(z, to_vector(mean, root))
    predicted = skeleton(z)
    # ridge regression: a relative penalty of 1e-5
    assert (predicted[0] - mean).abs().max() < 1e-3 and (predicted[1] - root).abs().max() < 1e-3
    assert float(skeleton.loss(z, to_vector(mean, root))) < 1e-6
    assert float(skeleton.loss(z, to_vector(mean, root).mean(0).expand(80, -1))) == pytest.approx(1, rel=0.05)


def test_skeleton_whitens_the_embedding():
    z = torch.randn(2000, 4, generator=seeded()) * torch.tensor([5.0, 1.0, 1.0, 0.5]) + 3
    skeleton = AffineSkeleton(2, 4)
    skeleton.whiten(z)
    condition = skeleton.condition(z)
    assert condition.mean(0).abs().max() < 1e-4
    # the smallest axis has a hundredth of the largest's variance; what is added is a thousandth of that
    assert (torch.cov(condition.T) - torch.eye(4)).abs().max() < 0.01


def test_moments_of_generated_cells_are_those_of_draws(name):
    model = build(name, 2, 3, perturbed=True)
    condition = torch.randn(2, 3, generator=seeded())
    with torch.no_grad():
        mean, cov = model.moments(condition)
        draws = model.sample(condition.repeat_interleave(20_000, 0), seeded(1)).unflatten(0, (2, 20_000))
    scale = cov.diagonal(dim1=1, dim2=2).sqrt()
    assert ((draws.mean(1) - mean) / scale).abs().max() < 0.05
    for k in range(2):
        ratio = torch.cov(draws[k].T) / (scale[k][:, None] * scale[k])
        assert (ratio - cov[k] / (scale[k][:, None] * scale[k])).abs().max() < 0.08


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["residual", "mean"])
def test_a_population_unlike_all_training_populations_keeps_its_mean(encoder):
    """Training populations differ along one axis; a new one is shifted along another."""
    generator = torch.Generator().manual_seed(0)
    k, n, d = 12, 200, 3
    codes = torch.arange(k).repeat_interleave(n)
    shifts = torch.zeros(k, d)
    shifts[:, 0] = torch.linspace(-2, 2, k)
    u = torch.randn(k * n, d, generator=generator) + shifts[codes]
    # exactly no differences along the other axes
    u[:, 1:] -= torch.zeros(k, d - 1).index_add_(0, codes, u[:, 1:])[codes] / n
    moments = PopulationMoments.from_cells(u, codes, k)
    set_encoder = ENCODERS[encoder](d, 16)
    set_encoder.fit(u, codes, moments, n)
    skeleton = AffineSkeleton(d, 16)
    skeleton.fit(set_encoder(u, codes), moment_vector(moments), set_encoder.inverse())
    new = torch.randn(n, d, generator=generator) + torch.tensor([0.0, 3.0, -1.0])
    mean, _ = skeleton(set_encoder(new, torch.zeros(n, dtype=torch.long)))
    np.testing.assert_allclose(mean[0], new.mean(0), atol=0.1)
    skeleton.fit(set_encoder(u, codes), moment_vector(moments))
    mean, _ = skeleton(set_encoder(new, torch.zeros(n, dtype=torch.long)))
    assert (mean[0] - new.mean(0)).abs().max() > 1  # a plain regression loses it


# ------------------------------------------------------------- set distances


def test_sorting_within_sets_keeps_sets_apart():
    rng = np.random.default_rng(0)
    segment, values = torch.tensor(rng.integers(0, 4, 50)), torch.tensor(rng.normal(size=(50, 3)))
    ordered = sort_within(values, segment)
    codes = segment.sort().values
    for k in range(4):
        assert torch.equal(ordered[codes == k], values[segment == k].sort(dim=0).values)


@pytest.mark.parametrize("name", ["energy", "mmd"], indirect=True)
def test_kernel_losses_are_least_in_expectation_where_laws_agree(name):
    model, noise = build(name), seeded()
    segment = torch.arange(4000) // 20
    y = torch.randn(4000, 2, generator=noise)

    def loss(shift, stretch):
        x = stretch * torch.randn(4000, 2, generator=noise) + shift
        return float(model.distance(x, y, segment, 200).mean())

    same = loss(0.0, 1.0)
    assert all(loss(*other) > same for other in ((0.5, 1.0), (0.0, 0.5), (0.0, 1.6)))


def test_gan_trains_generator_and_critic_against_each_other_and_leaves_the_condition_to_the_generator():
    model = build("gan", perturbed=True)
    segment = torch.zeros(64, dtype=torch.long)
    y, condition = torch.randn(64, 2, generator=seeded()) + 3.0, torch.zeros(64, 2, requires_grad=True)
    before = float((model._judge(y, condition) - model._judge(model.sample(condition, seeded(1)), condition)).mean())
    critic = torch.optim.SGD(model.critic.parameters(), lr=1e-3)
    model.loss(y, condition, segment, seeded(1)).mean().backward()
    direct = condition.grad.clone()
    critic.step()
    after = float((model._judge(y, condition) - model._judge(model.sample(condition, seeded(1)), condition)).mean())
    assert after > before, "a step of the critic widens its gap"
    condition.grad = None
    (-model._judge(model.sample(condition, seeded(1)), condition.detach())).mean().backward()
    # the same critic to first order: what reaches the condition is the generator's loss alone
    assert torch.nn.functional.cosine_similarity(direct.flatten(), condition.grad.flatten(), dim=0) > 0.9
