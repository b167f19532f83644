"""What a user who tried to break the package found: each wrong answer or crash, once."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scgde
from scgde.generation import CellContexts
from scgde.observations import Context, CountModel
from scgde.serialization import from_plain, read_model, to_plain


@torch.no_grad()
def test_decoder_does_not_depend_on_the_unit_of_a_covariate():
    values, laws = torch.linspace(0, 1, 6)[:, None], []
    for unit in (1.0, 5000.0):
        torch.manual_seed(0)
        model = CountModel(5, 2, n_hidden=8, n_continuous=1)
        model.fit_covariates(values * unit)
        context = Context(torch.full((6, 1), 100.0), torch.zeros(6, 1, dtype=torch.long), None, values * unit)
        laws.append(model.decode(torch.zeros(6, 2), context).mean)
    torch.testing.assert_close(laws[0], laws[1])
    assert laws[0].std(0).max() > 0


@torch.no_grad()
def test_empty_cells_say_nothing_about_depth():
    model, generator = CountModel(5, 3), torch.Generator().manual_seed(0)
    u = torch.randn(500, 3, generator=generator)
    library = (6 + u[:, :1] + 0.2 * torch.randn(500, 1, generator=generator)).exp()
    model.fit_library(u, library)
    clean = model.log_library(u)
    with_empty = torch.cat([library, torch.zeros(25, 1)])
    model.fit_library(torch.cat([u, u[:25]]), with_empty)
    torch.testing.assert_close(model.log_library(u), clean)
    before = model.library_coefficients.clone()
    model.fit_library(u, torch.zeros(500, 1))
    assert torch.equal(model.library_coefficients, before)


@torch.no_grad()
def test_depth_of_few_cells_is_not_learned_by_heart():
    model, generator = CountModel(5, 10), torch.Generator().manual_seed(0)
    library = (6 + 0.4 * torch.randn(40, 1, generator=generator)).exp()
    model.fit_library(torch.randn(40, 10, generator=generator), library)
    # depth and state are unrelated: expectations for new cells stay close to the mean
    new = model.log_library(torch.randn(2000, 10, generator=generator))
    assert new.std() < 0.2 and abs(float(new.mean()) - 6) < 0.3


def test_debris_has_no_say_in_depth(make_cells, make_model, train, monkeypatch):
    adata = make_cells(8)
    adata.obs["population"] = adata.obs["population"].astype(object)
    adata.obs.loc[np.random.default_rng(0).random(adata.n_obs) < 0.3, "population"] = np.nan
    seen = []
    monkeypatch.setattr(CountModel, "fit_library", lambda self, u, library: seen.append(library[:, 0].numpy()))
    model = train(make_model(adata))
    cells = adata[model.train_indices_]
    assigned = cells.obs["population"].notna().to_numpy()
    assert 0 < assigned.sum() < cells.n_obs
    np.testing.assert_array_equal(np.sort(seen[0]), np.sort(np.asarray(cells.X.sum(1)).ravel()[assigned]))


def test_a_batch_brings_its_own_depth():
    contexts = CellContexts(
        offsets=np.array([0, 4, 6]),
        library=np.array([10, 10, 1000, 1000, 1000, 1000.0]),
        expected=np.ones(6),
        batch=np.array([0, 0, 1, 1, 1, 1]),
        categorical=np.empty((6, 0)),
        continuous=np.empty((6, 0)),
    )
    rng = np.random.default_rng(0)
    populations = np.repeat([0, 1], 50)
    assert set(contexts.draw(populations[:50], rng)) == {0, 1, 2, 3}
    assert set(contexts.draw(populations[:50], rng, 0)) == {0, 1} and set(contexts.draw(populations[:50], rng, 1)) == {
        2,
        3,
    }
    assert set(contexts.draw(populations[50:], rng, 0)) == {0, 1}  # it has none of its own
    assert set(contexts.draw(populations[50:], rng, 2)) == {4, 5}  # nobody has


def test_decoding_under_another_batch_keeps_the_population(make_cells, quick_model):
    adata = make_cells(6)
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "d0", "d1")
    model = quick_model(adata, {"population_key": ["donor", "population"], "batch_key": "donor"})
    label = next(k for k in model.get_population_embedding().index if k.startswith("d0|"))
    made = model.sample(label, 5, batch="d1", seed=0)
    assert set(made.obs["gde_population"]) == {label} and set(made.obs["donor"]) == {"d0"}
    assert set(made.obs["gde_donor"]) == {"d1"}
    assert list(model.get_population_embedding(made).index) == [label]


@pytest.mark.parametrize("value", [np.inf, np.nan, True, -1, "many"])
def test_library_size_must_be_a_positive_number(trained, value):
    label = trained.get_population_embedding().index[0]
    with pytest.raises(ValueError, match="library_size"):
        trained.sample(label, 2, library_size=value)


def test_embeddings_are_read_by_column_name(trained):
    z = trained.get_population_embedding().iloc[2:4]
    expected = trained.sample(z, 3, seed=0)
    made = trained.sample(z.iloc[:, ::-1], 3, seed=0)
    assert (made.X != expected.X).nnz == 0


def test_numpy_scalars_become_plain():
    plain = to_plain({"key": np.str_("population"), "list": [np.float64(1.5), np.bool_(True)]})
    assert type(plain["key"]) is str and [type(v) for v in plain["list"]] == [float, bool]


def test_a_model_set_up_with_numpy_names_can_be_read_again(make_cells, quick_model, tmp_path):
    model = quick_model(make_cells(4), {"population_key": np.str_("population")})
    model.save(tmp_path / "model")
    assert from_plain(read_model(str(tmp_path / "model"), None)[2])["registry_"] is not None


def test_other_cells_than_those_trained_on_have_no_part(make_cells, quick_model, tmp_path):
    adata = make_cells(6)
    model = quick_model(adata)
    assert set(model.get_population_adata().obs["gde_split"]) <= {"train", "validation"}
    model.save(tmp_path / "model")
    for other in (adata[: adata.n_obs // 2].copy(), adata[::-1].copy()):
        loaded = scgde.GDEModel.load(str(tmp_path / "model"), adata=other)
        assert set(loaded.get_population_adata().obs["gde_split"]) == {"query"}


def test_repeated_cell_names_with_missing_labels():
    column = pd.Series(["a", np.nan, 3.0], index=["x", "x", "x"])
    labels = scgde.data.populations.column_labels(column)
    assert labels.iloc[0] == "a" and pd.isna(labels.iloc[1]) and labels.iloc[2] == "3"


def test_sets_of_one_cell_train(make_cells, make_model, train):
    model = train(make_model(make_cells(4)), 4, cells_per_population=1)
    assert np.isfinite(model.get_population_embedding()).all(axis=None)


def test_whole_floats_are_epochs(make_cells, make_model, train):
    assert train(make_model(make_cells(4)), 4.0).is_trained


def test_columns_that_cannot_be_compared_are_left_out(make_cells, quick_model):
    adata = make_cells(4)
    model = quick_model(adata)
    adata.obs["list"] = [[1]] * adata.n_obs
    assert "list" not in model.get_population_adata().obs


def test_a_tuple_is_one_population(make_cells, quick_model):
    adata = make_cells(6)
    adata.obs["time"] = "d1"
    model = quick_model(adata, {"population_key": ["population", "time"]})
    label = model.get_population_embedding().index[0]
    assert list(model.get_population_distances(populations=tuple(label.split("|"))).index) == [label]


def test_dates_as_batches_say_what_to_do(make_cells, make_model, train):
    adata = make_cells(4)
    adata.obs["day"] = pd.to_datetime(np.where(np.arange(adata.n_obs) % 2, "2024-01-01", "2024-01-02"))
    with pytest.raises(ValueError, match="strings"), pytest.warns(UserWarning, match="batches"):
        train(make_model(adata, {"batch_key": "day"}))


def test_one_gene_is_a_list_of_one(trained):
    gene = trained.adata.var_names[1]
    assert list(trained.get_normalized_expression(gene_list=gene).columns) == [gene]


@pytest.mark.parametrize("phase", [True, False])
def test_early_stopping_returns_to_the_best_weights_when_a_phase_runs_out(phase, make_cells, make_model, train):
    import copy

    import lightning.pytorch as pl

    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, plan):
            if plan.in_cell_phase == phase:
                weights = copy.deepcopy(plan.module.state_dict())
                seen.append((float(trainer.callback_metrics["validation_loss"]), weights))

        def on_train_epoch_start(self, trainer, plan):
            # learning backwards, so that the last weights are not the best
            for group in trainer.optimizers[0].param_groups:
                group["maximize"] = plan.in_cell_phase == phase and len(seen) > 2

    model = train(make_model(make_cells(20, (30, 40))), 40, early_stopping=True, callbacks=[Watch()])
    losses = [loss for loss, _ in seen]
    part = "observation.encoder" if phase else "generator"
    now = {name: value for name, value in model.module.state_dict().items() if name.startswith(part)}
    back_to = [i for i, (_, w) in enumerate(seen) if all(torch.equal(v, w[name]) for name, v in now.items())]
    # smaller differences do not count as improvement
    assert len(back_to) == 1 and losses[back_to[0]] <= min(losses) * (1 + 1e-4)
    assert back_to[0] < len(seen) - 1


def test_at_least_one_population_is_validated_on(make_cells, make_model, train):
    model = train(make_model(make_cells(8)), 4, split_by="population")
    assert (model.get_population_adata().obs["gde_split"] == "validation").sum() == 1


@pytest.mark.parametrize("kind", ["proportions", "tiny column"])
def test_columns_that_follow_from_others_or_hardly_vary_leave_the_spread_of_all_others_alone(kind):
    rng = np.random.default_rng(17)
    codes = np.repeat(np.arange(20), 40)
    x = rng.normal(size=(20, 4))[codes] + rng.normal(size=(800, 4)) * rng.uniform(0.5, 2, (20, 4))[codes]
    if kind == "proportions":
        x = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    else:
        x[:, 3] = 1e-4 * rng.normal(size=800)
    adata = AnnData(np.zeros((800, 1), dtype=np.float32), obs={"population": [f"p{c:02d}" for c in codes]})
    adata.obsm["points"] = x.astype(np.float32)
    scgde.GDEModel.setup_anndata(adata, "population", obsm_key="points")
    model = scgde.GDEModel(adata, n_embedding=16)
    model.train(max_epochs=20, accelerator="cpu", enable_progress_bar=False, seed=0)
    generated = model.sample(sorted(adata.obs["population"].unique()), 500, seed=0)
    own, got = (
        pd.DataFrame(np.asarray(rows)[:, :3]).groupby(np.asarray(labels)).std().to_numpy()
        for rows, labels in ((x, adata.obs["population"]), (generated.X, generated.obs["population"]))
    )
    assert np.abs(np.median(got / own) - 1) < 0.1
