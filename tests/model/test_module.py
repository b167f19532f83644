import numpy as np
import pytest
import torch

from scgde import GDEModel
from scgde.generators import GENERATORS
from scgde.module import GDEModule
from scgde.moments import PopulationMoments, from_vector, moment_vector
from scgde.observations import ContinuousModel
from scgde.training import one_cycle

K, N = 24, 50


@pytest.fixture
def cells():
    """Normal populations of different means and spreads, ``(cells, 3)`` and codes."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(K), N)
    mean, sd = rng.normal(size=(K, 3)), np.exp(0.4 * rng.normal(size=(K, 3)))
    u = mean[codes] + sd[codes] * rng.normal(size=(K * N, 3))
    return torch.tensor(u, dtype=torch.float32), torch.tensor(codes)


def make_module(cells, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = GDEModule(ContinuousModel(3), n_embedding=12, n_hidden=16, **options)
    u, codes = cells
    fit_populations(module, u, codes, torch.ones(K, dtype=torch.bool))
    return module.eval()


def fit_populations(module, u, codes, trains, **options):
    raw = PopulationMoments.from_cells(u, codes, len(trains))
    module.fit_populations(raw, torch.zeros_like(raw.mean), u, torch.zeros_like(u), codes, trains, N, **options)


def make_batch(cells, scored=None):
    u, codes = cells
    weights = torch.tensor([[1.0, 0.0, 0.0]]).repeat(K, 1)
    batch = {
        "u_mean": u,
        "u_sd": torch.zeros_like(u),
        "segment": codes,
        "sources": torch.arange(K)[:, None].repeat(1, 3),
        "source_weights": weights,
    }
    return batch if scored is None else batch | {"scored": scored}


@pytest.mark.parametrize("generator", GENERATORS)
def test_before_any_step_generated_cells_have_the_moments_of_their_population(cells, generator):
    module = make_module(cells, generator=generator)
    u, codes = cells
    with torch.no_grad():
        z = module.set_encoder(u, codes)
        made = module.sample_latent(z.repeat_interleave(2000, 0), torch.Generator().manual_seed(0))
    made = PopulationMoments.from_cells(made, torch.arange(K).repeat_interleave(2000), K)
    real = PopulationMoments.from_cells(u, codes, K)
    scale = real.cov.diagonal(dim1=1, dim2=2).sqrt()
    # spread of a mean over 2,000 draws is 0.02 standard deviations; the embedding keeps all 9 moments
    assert ((made.mean - real.mean) / scale).abs().max() < 0.2
    assert (made.cov.diagonal(dim1=1, dim2=2).sqrt() / scale - 1).abs().mean() < 0.1


@pytest.mark.parametrize("generator", ["flow", "energy", "mixture"])
def test_generated_cells_have_the_moments_of_the_skeleton_whatever_the_generator(cells, generator):
    module = make_module(cells, generator=generator)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.generator.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
        z = module.set_encoder(*cells)[:3]
        mean, root = module.skeleton(z)
        made = module.sample_latent(z.repeat_interleave(20_000, 0), noise).unflatten(0, (3, 20_000))
    scale = root.diagonal(dim1=1, dim2=2)
    assert ((made.mean(1) - mean) / scale).abs().max() < 0.05
    for k in range(3):
        whitened = torch.linalg.solve(root[k], (made[k] - mean[k]).T)
        assert (torch.cov(whitened) - torch.eye(3)).abs().max() < 0.06


def test_skeleton_gives_large_populations_their_own_moments(cells):
    """Trained on sets of fifty cells, which vary by sampling, it does not pull the spread of thousands to the average."""
    module = make_module(cells)
    module.fit_skeleton([make_batch(cells)])
    u = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.5, 0.4, 1.0])
    with torch.no_grad():
        mean, root = module.skeleton(module.set_encoder(u, torch.zeros(20_000, dtype=torch.long)))
    torch.testing.assert_close(root[0] @ root[0], torch.cov(u.T), rtol=0.05, atol=0.05)
    torch.testing.assert_close(mean[0], u.mean(0), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("encoder", ["transport", "attention"])
def test_losses_are_finite_and_their_gradients_reach_encoder_and_generator(cells, encoder):
    module = make_module(cells, encoder=encoder)
    terms = module.population_loss(make_batch(cells), torch.Generator().manual_seed(0))
    assert set(terms) == {"loss", "generator", "isometry"}
    assert all(torch.isfinite(value) and value.ndim == 0 for value in terms.values())
    terms["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.generator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.set_encoder.parameters())
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_without_weight_the_generator_is_not_trained_and_the_encoder_learns_from_moments(cells):
    module = make_module(cells, geometry="emergent", generator_weight=0.0)
    terms = module.population_loss(make_batch(cells))
    terms["loss"].backward()
    assert float(terms["generator"]) == 0 and float(terms["loss"]) == float(terms["moments"])
    assert all(p.grad is None for p in module.generator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.set_encoder.parameters())


def test_further_training_has_new_targets_and_keeps_encoder_and_skeleton(cells):
    module = make_module(cells)
    with torch.no_grad():
        module.skeleton.linear.weight.add_(0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    u, codes = cells[0] + 1, cells[1]
    fit_populations(module, u, codes, torch.ones(K, dtype=torch.bool), further=True)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    torch.testing.assert_close(module.frame_moments.mean, PopulationMoments.from_cells(u, codes, K).mean)


def test_emergent_geometry_has_no_isometry_term(cells):
    assert "isometry" not in make_module(cells, geometry="emergent").population_loss(make_batch(cells))


def test_loss_does_not_depend_on_the_order_of_cells(cells):
    order = torch.randperm(K * N, generator=torch.Generator().manual_seed(0))
    for geometry, term in (("emergent", "moments"), ("isometric", "isometry")):
        module = make_module(cells, geometry=geometry)
        losses = [module.population_loss(make_batch(c)) for c in (cells, (cells[0][order], cells[1][order]))]
        assert float(losses[0][term]) == pytest.approx(float(losses[1][term]), rel=1e-3, abs=1e-6)


def test_scored_cells_are_not_encoded(cells):
    module = make_module(cells)
    u, codes = cells
    scored = torch.arange(K * N) % 2 == 0
    moved = torch.where(scored[:, None], u + 100, u)
    before, after = (
        module.population_loss(make_batch((x, codes), scored), torch.Generator().manual_seed(0)) for x in (u, moved)
    )
    # the embedding, and with it these terms, sees the other half alone; what is scored is far off
    assert float(before["isometry"]) == pytest.approx(float(after["isometry"]), rel=1e-6)
    assert float(after["generator"]) > 10 * float(before["generator"])


def test_populations_of_one_cell_are_not_scored_for_their_shape(cells):
    u, codes = torch.cat([cells[0], torch.full((1, 3), 50.0)]), torch.cat([cells[1], torch.tensor([K])])
    module = make_module(cells)
    fit_populations(module, u, codes, torch.ones(K + 1, dtype=torch.bool))
    batch = {
        "u_mean": u[-1:],
        "u_sd": torch.zeros(1, 3),
        "segment": torch.tensor([0]),
        "sources": torch.tensor([[K] * 3]),
        "source_weights": torch.tensor([[1.0, 0.0, 0.0]]),
    }
    terms = module.population_loss(batch)
    assert float(terms["generator"]) == 0 and torch.isfinite(terms["loss"])


def test_training_moments_are_not_part_of_the_model(cells):
    names = set(make_module(cells).state_dict())
    assert not {n for n in names if "moments" in n}
    assert names == set(GDEModule(ContinuousModel(3), n_embedding=12, n_hidden=16).state_dict())


def test_noise_comes_from_the_argument(cells):
    module = make_module(cells)
    state = torch.get_rng_state()
    with torch.no_grad():
        losses = [
            float(module.population_loss(make_batch(cells), torch.Generator().manual_seed(s))["loss"])
            for s in (0, 0, 1)
        ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_learning_rate_rises_then_falls_to_next_to_nothing():
    rate = np.array([one_cycle(p) for p in np.linspace(0, 1, 101)])
    assert rate.argmax() == 30 and rate.max() == pytest.approx(1)
    assert (np.diff(rate[:31]) >= 0).all() and (np.diff(rate[30:]) <= 0).all()
    assert 0 < rate[-1] < 1e-3 and rate[0] < 0.1


@pytest.mark.parametrize("encoder", ["residual", "shape"])
def test_closed_forms_are_not_corrected_towards_the_noise_of_their_own_targets(cells, encoder):
    module = make_module(cells, encoder=encoder)
    assert module.set_encoder.is_closed and float(module.set_encoder.gate) < 1e-40
    with torch.no_grad():
        for p in module.set_encoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    batch = make_batch(cells)
    module.set_encoder.close()
    straight, _ = module.set_encoder.straight_and_correction(batch["u_mean"], batch["segment"], None, K)
    torch.testing.assert_close(module.set_encoder(batch["u_mean"], batch["segment"], n_sets=K), straight)
    module.population_loss(batch, torch.Generator().manual_seed(0))["loss"].backward()
    assert all(p.grad is None for p in module.set_encoder.parameters())


@pytest.mark.parametrize(("n", "closed"), [(8, True), (K, False)])
def test_no_correction_where_too_few_populations_could_check_it(cells, n, closed):
    module = GDEModule(ContinuousModel(3), n_embedding=12, n_hidden=16, encoder="transport")
    chosen = cells[1] < n
    fit_populations(module, cells[0][chosen], cells[1][chosen], torch.ones(n, dtype=torch.bool))
    assert module.set_encoder.is_closed == closed


def test_correction_learns_from_some_populations_and_its_gate_from_the_others(cells, monkeypatch):
    module = make_module(cells, encoder="transport")
    with torch.no_grad():  # off its start, where a correction of zero gives the gate nothing to learn from
        module.set_encoder.residual[-1].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))

    def gradients(held):
        monkeypatch.setattr("scgde._module_sets.held_out_sets", lambda sources, *_: torch.full((len(sources),), held))
        module.zero_grad()
        module.population_loss(make_batch(cells), torch.Generator().manual_seed(0))["loss"].backward()
        encoder = module.set_encoder
        return [
            0.0 if p.grad is None else float(p.grad.abs().sum())
            for p in (encoder.residual[-1].weight, encoder.gate_logit)
        ]

    correction, gate = gradients(held=False)
    assert correction > 0 and gate == 0
    correction, gate = gradients(held=True)
    assert correction == 0 and gate > 0


def test_emergent_geometry_keeps_its_correction_ungated(cells):
    module = make_module(cells, geometry="emergent")
    module.population_loss(make_batch(cells), torch.Generator().manual_seed(0))["loss"].backward()
    assert module.set_encoder.residual[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("share", "closes"), [(0.0, True), (0.05, True), (0.6, False)])
def test_gate_closes_unless_the_correction_takes_away_much_of_the_error(share, closes, cells, monkeypatch):
    monkeypatch.setattr(
        "scgde._module_sets.held_out_sets", lambda sources, *_: torch.ones(len(sources), dtype=torch.bool)
    )
    module, batch = make_module(cells, encoder="transport"), make_batch(cells)
    encoder = module.set_encoder
    right = encoder.straight_and_correction(batch["u_mean"], batch["segment"], None, K)[0].detach()
    wrong = right + 0.2 * right.std() * torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(encoder, "straight_and_correction", lambda *_: (wrong, share * (right - wrong)))
    module.population_loss(batch, torch.Generator().manual_seed(0))["loss"].backward()
    assert (float(encoder.gate_logit.grad) > 0) == closes


@pytest.mark.parametrize("geometry", ["isometric", "emergent"])
def test_starts_of_whole_populations_are_computed_once(cells, monkeypatch, geometry):
    module = make_module(cells, geometry=geometry).train()

    def loss(*arguments):
        return float(module.population_loss(make_batch(*arguments), torch.Generator().manual_seed(0))["loss"])

    first = loss(cells)
    monkeypatch.setattr(module.set_encoder, "_straight", lambda moments: torch.full((len(moments), 12), torch.nan))
    assert loss(cells) == pytest.approx(first, rel=1e-6)
    # those of parts of a population are its own, and those of another latent
    assert np.isnan(loss((cells[0][:-1], cells[1][:-1])))
    assert np.isnan(loss(cells, torch.arange(K * N) % 2 == 0))
    fit_populations(module, *cells, torch.ones(K, dtype=torch.bool), further=True)
    assert np.isnan(loss(cells))


def test_few_cells_are_decoded_with_a_spread_in_every_direction_and_many_with_their_own(cells):
    u, codes = cells

    def least_spread(n):
        chosen = torch.cat([torch.nonzero(codes == k)[:n, 0] for k in range(K)])
        few = u[chosen], codes[chosen]
        module = make_module(few)
        batch = make_batch(few)
        module.fit_skeleton([batch])
        with torch.no_grad():
            root = module.skeleton(module.set_encoder(*few))[1]
            target = module._set_vectors(
                u[chosen], torch.zeros_like(few[0]), few[1], batch["sources"], batch["source_weights"]
            )
        own = from_vector(moment_vector(PopulationMoments.from_cells(*few, K)), 3)[1]
        aim = from_vector(target, 3)[1]
        return [torch.linalg.eigvalsh(r)[:, 0].mean() for r in (root, aim, own)]

    decoded, aim, own = least_spread(3)  # two directions at most
    assert own < 0.05 and aim > 0.3 and decoded > 0.3
    decoded, aim, own = least_spread(40)
    assert abs(decoded / own - 1) < 0.1 and abs(aim / own - 1) < 0.05


def test_the_loss_of_training_is_that_of_the_distributions(make_cells):
    adata = make_cells(6)
    GDEModel.setup_anndata(adata, "population")
    model = GDEModel(adata, n_latent=4, n_embedding=8, n_hidden=16)
    table, rows = model._table(), np.arange(40)
    batch = {"X": table.tensor(rows, sparse=True), "batch": torch.zeros(40, 1, dtype=torch.long)}
    output, u = model.module.cell_loss(batch, 0.5, torch.Generator().manual_seed(0))
    inference = model.module.inference(batch["X"], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inference["u"], u)
    dense = batch | {"X": torch.from_numpy(table.rows(rows))}
    generative = model.module.generative(**model.module._get_generative_input(dense, inference))
    expected = model.module.loss(dense, inference, generative, kl_weight=0.5)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)


def test_rows_become_dense_where_a_device_has_no_sparse_tensors(make_cells, quick_model, monkeypatch):
    seen = []
    inference = GDEModule.inference
    monkeypatch.setattr(
        GDEModule, "inference", lambda self, x, **rest: seen.append(x.layout) or inference(self, x, **rest)
    )
    quick_model(make_cells(6), train_options={"max_epochs": 2})
    assert set(seen) == {torch.sparse_csr}
    seen.clear()
    for place in ("scgde.data.datamodule", "scgde.inference"):
        monkeypatch.setattr(f"{place}.supports_sparse", lambda device: False)
    quick_model(make_cells(6), train_options={"max_epochs": 2})
    assert set(seen) == {torch.strided}
