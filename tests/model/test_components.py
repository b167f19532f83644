import numpy as np
import pytest
import torch

import scgde
from scgde.components import CellComponents, log_normalised
from scgde.observations import Context, CountModel
from scgde.observations.counts import LATENT_SD, LOADING_SD


@pytest.fixture
def cells(make_cells, make_model):
    adata = make_cells(8, (40, 60), n_batches=2)
    return make_model(adata, {"batch_key": "batch"})._table()


def test_scores_are_centred_and_have_the_stated_spread(make_cells, make_model):
    table = make_model(make_cells(8, (40, 60)))._table()
    everything = np.arange(table.n_cells)
    components = CellComponents.fit(table, everything)
    scores = components.transform(table, everything)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scores.std(0, ddof=1), components.sd, rtol=1e-3)
    np.testing.assert_allclose(components.axes.T @ components.axes, np.eye(len(components.sd)), atol=1e-5)
    assert (np.diff(components.sd) <= 1e-6).all()


def test_a_batch_effect_is_no_leading_axis(cells):
    everything = np.arange(cells.n_cells)
    # cells that differ by noise alone, and batches that differ four-fold in every third gene
    rows = np.random.default_rng(0).poisson(20, cells.matrix.shape).astype(np.float32)
    rows[cells.batch == 1, ::3] *= 4
    cells.matrix = rows
    components = CellComponents.fit(cells, everything)
    x = log_normalised(rows, components.target)
    effect = x[cells.batch == 1].mean(0) - x[cells.batch == 0].mean(0)
    effect /= np.linalg.norm(effect)
    raw = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0]
    assert abs(raw @ effect) > 0.9
    assert abs(components.axes[:, 0] @ effect) < 0.5


def test_large_data_are_fitted_on_a_sample_and_scored_in_full(cells, monkeypatch):
    monkeypatch.setattr("scgde.components.MAX_FIT_ENTRIES", 0)  # at least 500 cells all the same
    everything = np.repeat(np.arange(cells.n_cells), 3)
    scores = CellComponents.fit(cells, everything).transform(cells, everything)
    assert len(scores) == len(everything)
    np.testing.assert_allclose(scores[::3], scores[1::3], atol=1e-5)


@torch.no_grad()
def test_the_latent_starts_as_leading_components_in_units_of_their_spread(cells):
    everything = np.arange(cells.n_cells)
    components = CellComponents.fit(cells, everything)
    rows, library = cells.rows(everything), cells.library(everything, 1.0)
    model = CountModel(rows.shape[1], 4, n_hidden=8)
    model.warm_start(components, rows, library)
    mean, sd = model.encode(torch.from_numpy(rows))
    np.testing.assert_allclose(mean, components.scores(rows)[:, :4] / components.sd[:4], atol=1e-3)
    np.testing.assert_allclose(sd, LATENT_SD, rtol=1e-5)
    # of a cell, only the shape of its profile matters to where it starts
    np.testing.assert_allclose(model.encode(torch.from_numpy(rows * 2))[0], mean, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_the_warm_start_fits_cells_better_than_their_mean_profile(cells, likelihood):
    everything = np.arange(cells.n_cells)
    rows, library = cells.rows(everything), cells.library(everything, 1.0)
    bounds = []
    for start in (False, True):
        torch.manual_seed(0)
        model = CountModel(rows.shape[1], 4, n_hidden=8, gene_likelihood=likelihood)
        model.warm_start(CellComponents.fit(cells, everything), rows, library)
        if not start:
            # the same, dispersions included, with the mean profile for all cells
            model.decoder_scale.bias.copy_(torch.from_numpy(rows.mean(0) / rows.sum(1).mean() + 1e-9).log())
            model.decoder_linear.weight.zero_()
        x = torch.from_numpy(rows)
        batch = torch.from_numpy(cells.batch)[:, None]
        law = model.decode(model.encode(x)[0], Context(torch.from_numpy(library)[:, None], batch * 0))
        bounds.append(float(law.log_prob(x).sum(1).mean()))
    assert bounds[1] > bounds[0] + 0.5


@torch.no_grad()
def test_the_decoder_starts_at_the_mean_profile(cells):
    everything = np.arange(cells.n_cells)
    rows, library = cells.rows(everything), cells.library(everything, 1.0)
    mean = rows.mean(0) / rows.mean(0).sum()
    distances = []
    for start in (False, True):
        model = CountModel(rows.shape[1], 4, n_hidden=8, gene_likelihood="poisson")
        if start:
            model.warm_start(CellComponents.fit(cells, everything), rows, library)
        context = Context(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))
        profile = model.profile(model.decode(torch.zeros(1, 4), context))[0]
        distances.append(float((profile - torch.from_numpy(mean)).abs().sum()))
    assert distances[1] < 0.5 * distances[0]


def test_few_cells_or_genes_give_fewer_components_than_the_latent_is_wide(make_cells, make_model):
    adata = make_cells(exact_sizes=[4, 4, 5], n_genes=60)
    model = make_model(adata, n_latent=10)
    model.train(max_epochs=2, seed=0, accelerator="cpu", enable_progress_bar=False)
    assert np.isfinite(model.get_population_embedding()).all().all()
    narrow = make_cells(6)[:, :1].copy()
    narrow.X = narrow.X + np.ones(narrow.shape)  # rows of one gene all look alike once they are normalised
    scgde.GDEModel.setup_anndata(narrow)
    model = scgde.GDEModel(narrow, n_latent=3)
    model.train(max_epochs=2, seed=0, accelerator="cpu", enable_progress_bar=False)
    assert np.ptp(model.get_latent_representation(), axis=0).max() < 0.01


def test_the_prior_of_loadings_pulls_them_towards_zero():
    model = CountModel(20, 3, n_hidden=8)
    penalty = model.penalty()
    penalty.backward()
    weight = model.decoder_scale.weight
    np.testing.assert_allclose(weight.grad, weight.detach() / LOADING_SD**2, rtol=1e-5)
    both = sum(float(w.detach().square().sum()) for w in (weight, model.decoder_linear.weight))
    assert penalty.item() == pytest.approx(both / (2 * LOADING_SD**2), rel=1e-5)
    assert model.encoder_linear.weight.grad is None


def test_training_pulls_loadings_by_the_prior(make_cells, make_model, train, monkeypatch):
    penalty, norms = CountModel.penalty, []
    for factor in (0.0, 1.0, 100.0):
        monkeypatch.setattr(CountModel, "penalty", lambda self, factor=factor: factor * penalty(self))
        norms.append(penalty(train(make_model(make_cells(6)), max_epochs=30).module.observation).item())
    assert norms[0] > norms[1] > 1.2 * norms[2]
