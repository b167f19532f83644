import os
import signal
import subprocess
import sys
import textwrap

import lightning.pytorch as pl
import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch

import scgde
from scgde.training import GDETrainingPlan, cell_pass_limit, default_epochs

FORMATS = {
    "csc": sp.csc_matrix,
    "dense": lambda x: x.toarray(),
    "integers": lambda x: x.astype(np.int64),
    "csr_array": sp.csr_array,
    "half": lambda x: x.toarray().astype(np.float16),
    "big-endian": lambda x: x.toarray().astype(">f4"),
}


def embedding_of(model):
    return model.get_population_embedding().to_numpy()


def test_a_seed_makes_training_repeatable(make_cells, quick_model):
    one, two, three = (quick_model(make_cells(6), train_options={"max_epochs": 2, "seed": seed}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(embedding_of(one), embedding_of(two))
    assert np.abs(embedding_of(one) - embedding_of(three)).max() > 1e-3


def test_global_random_state_is_left_alone(make_cells, quick_model):
    adata = make_cells(6)
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    model = quick_model(adata, train_options={"max_epochs": 2, "seed": None})
    model.sample(model.get_population_embedding().index[0], 5)
    model.get_cell_embedding()
    model.posterior_predictive_sample(indices=[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_history_has_both_phases(trained):
    history = trained.history
    for name in ("elbo_train", "generator_train", "isometry_train", "elbo_validation", "generator_validation"):
        assert np.isfinite(history[name].dropna().to_numpy(dtype=float)).all() and len(history[name].dropna())


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "nb"},
        {"gene_likelihood": "poisson"},
        {"dispersion": "gene-batch"},
        {"generator": "vae"},
        {"geometry": "emergent"},
        {"encoder": "mean", "geometry": "emergent"},
        {"encoder": "kernel_mean"},
        {"n_embedding": 30},
    ],
    ids=str,
)
def test_every_choice_trains_and_generates(options, make_cells, quick_model):
    model = quick_model(make_cells(6, n_batches=2), {"batch_key": "batch"}, {"max_epochs": 2}, **options)
    z = embedding_of(model)
    assert np.isfinite(z).all() and np.abs(z - z[0]).max() > 0
    counts = model.sample(model.get_population_embedding().index[:2], 5).X
    assert (counts.data == np.round(counts.data)).all() and counts.data.min() > 0


def test_small_data_get_fewer_passes():
    assert cell_pass_limit(990, 6998) == 18
    assert cell_pass_limit(10, 20_000) == 15
    assert cell_pass_limit(10**6, 2000) == 200
    assert default_epochs(1, 1, learned=True, max_epochs=None, max_passes=18).cells == 18


def test_default_length_is_counted_in_steps():
    assert default_epochs(100, 10, learned=True, max_epochs=None) == default_epochs(
        100, 10, learned=True, max_epochs=95
    )
    plan = default_epochs(100, 10, learned=True, max_epochs=None)
    assert plan.cells == 15 and plan.sets == 80
    assert default_epochs(1, 1, learned=True, max_epochs=None).cells == 200
    # 800 steps on one batch of sets would learn its cells by heart
    assert default_epochs(1, 1, learned=True, max_epochs=None).sets == 300
    assert default_epochs(10**6, 1, learned=True, max_epochs=None).cells == 2
    assert default_epochs(5, 5, learned=False, max_epochs=7).cells == 0
    assert default_epochs(5, 5, learned=True, max_epochs=2).sets == 1


def test_the_generator_has_its_own_learning_rate(make_cells, make_model, train):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, plan, *_):
            groups = {g["population_rate"]: g["lr"] for g in trainer.optimizers[0].param_groups}
            seen.append((plan.in_cell_phase, groups))

    options = {"lr_cells": 1e-3, "lr_sets": 1e-3, "lr_generator": 4e-3}
    model = make_model(make_cells(6))
    train(model, 6, callbacks=[Watch()], plan_kwargs=options)
    assert {phase for phase, _ in seen} == {True, False}
    for in_cell_phase, groups in seen:
        # the gate of the correction learns twenty times as fast
        assert set(groups) == {1e-3, 4e-3, 2e-2}
        assert groups[4e-3] == pytest.approx(groups[1e-3] * (1 if in_cell_phase else 4))
        assert groups[2e-2] == pytest.approx(groups[1e-3] * (1 if in_cell_phase else 20))


def test_early_stopping_ends_each_phase(make_cells, make_model, train):
    model = train(make_model(make_cells(6)), 400, early_stopping=True, check_val_every_n_epoch=1)
    assert len(model.history["train_loss"]) < 400
    assert len(model.history["generator_train"].dropna()) > 0


def test_callbacks_find_the_losses_of_their_own_epoch(make_cells, make_model, train):
    class Record(pl.Callback):
        def __init__(self):
            self.batches, self.train, self.validation = [], [], []

        def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
            self.batches.append((trainer.current_epoch, float(outputs["loss"])))

        def on_train_epoch_end(self, trainer, plan):
            self.train.append(float(trainer.callback_metrics["train_loss"]))

        def on_validation_epoch_end(self, trainer, plan):
            self.validation.append("validation_loss" in trainer.callback_metrics)

    record = Record()
    model = train(make_model(make_cells(6)), 4, callbacks=[record], plan_kwargs={"contrast_weight": 0.0}, batch_size=64)
    history = model.history["train_loss"].to_numpy(dtype=float).ravel()
    np.testing.assert_allclose(record.train, history, rtol=1e-6)
    assert record.validation and all(record.validation)
    assert len(history) == 4
    # sets of the population phase: one batch of all six populations, whose loss is that of the epoch
    last = [loss for epoch, loss in record.batches if epoch == 3]
    assert len(last) == 1 and history[-1] == pytest.approx(last[0], rel=1e-5)


def test_logged_losses_are_means_weighted_by_the_size_of_batches(make_cells, make_model, train, monkeypatch):
    seen, log = [], GDETrainingPlan._log

    def record(self, values, mode, batch_size, *, last):
        seen.append((self.current_epoch, mode, float(values[f"{mode}_loss"]), batch_size))
        log(self, values, mode, batch_size, last=last)

    monkeypatch.setattr(GDETrainingPlan, "_log", record)
    model = train(make_model(make_cells(7)), 4, populations_per_batch=4, batch_size=50)
    for mode in ("train", "validation"):
        history = model.history[f"{mode}_loss"].dropna()
        for epoch, value in zip(history.index, history.to_numpy(dtype=float).ravel(), strict=True):
            losses, sizes = np.array([row[2:] for row in seen if row[:2] == (epoch, mode)]).T
            assert value == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    assert len({size for _, mode, _, size in seen if mode == "train"}) > 2  # batches of unequal size


@pytest.mark.parametrize("limit", [{"max_steps": 2}, {"max_time": {"seconds": 0.0}}], ids=str)
def test_training_that_ends_in_the_cell_phase_is_completed_with_a_warning(limit, make_cells, make_model, train):
    model = make_model(make_cells(6), expression_weight=1.0)
    with pytest.warns(UserWarning, match="ended in the cell phase"):
        train(model, 20, **limit)
    assert (model.module.observation.latent_scale - 1).abs().max() > 1e-3
    assert model.module.skeleton.linear.weight.abs().max() > 0
    assert np.isfinite(embedding_of(model)).all()


def test_interruption_between_the_phases_leaves_a_complete_model(make_cells, make_model, train, monkeypatch):
    import scgde.population_phase

    encode, calls = scgde.population_phase.encode_cells, []

    def interrupt(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(scgde.population_phase, "encode_cells", interrupt)
    model = make_model(make_cells(6))
    with pytest.warns(UserWarning, match="interrupted"):
        train(model, 6)
    assert model.module.skeleton.linear.weight.abs().max() > 0
    assert model.module.set_encoder.centre.abs().max() > 0


@pytest.mark.parametrize(
    "value", [True, None, "0.5", float("nan"), -1, 2, np.array([0.3, 0.4]), np.array(0.3)], ids=repr
)
def test_bad_expression_weights(value, make_cells, make_model):
    with pytest.raises(ValueError, match="expression_weight"):
        make_model(make_cells(6), expression_weight=value)


@pytest.mark.parametrize("value", [True, None, "1", float("nan"), float("inf"), -1], ids=repr)
def test_bad_generator_weights(value, make_cells, make_model):
    with pytest.raises(ValueError, match="generator_weight"):
        make_model(make_cells(6), generator_weight=value)


def test_a_model_needs_something_to_learn_from(make_cells, make_model):
    with pytest.raises(ValueError, match="nothing to learn"):
        make_model(make_cells(6), generator_weight=0, skeleton=False, geometry="emergent")


def test_the_weight_of_the_generator_is_saved_with_the_model(make_cells, quick_model, tmp_path):
    model = quick_model(make_cells(6), train_options={"max_epochs": 2}, generator_weight=0)
    assert model.history["generator_train"].to_numpy(dtype=float)[-1] == 0
    model.save(tmp_path / "model")
    loaded = scgde.GDEModel.load(tmp_path / "model", model.adata, accelerator="cpu")
    assert loaded.module.generator_weight == model.module.generator_weight == 0


def test_further_training_on_continuous_rows_goes_on_from_the_skeleton(make_cells, make_model, train):
    adata = make_cells(6)
    adata.obsm["X_rows"] = np.log1p(adata.X.toarray()[:, :3])
    model = train(make_model(adata, {"obsm_key": "X_rows"}), 2)
    weight = model.module.skeleton.linear.weight.detach().clone()
    train(model, 1, plan_kwargs={"lr_sets": 0.0})
    assert torch.equal(model.module.skeleton.linear.weight, weight)


@pytest.mark.parametrize("phase", ["cell", "population"])
def test_interruption_keeps_what_was_learned(phase, make_cells, make_model, train):
    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer, plan):
            if plan.in_cell_phase == (phase == "cell") and trainer.current_epoch >= (phase == "population"):
                raise KeyboardInterrupt

    model = make_model(make_cells(6))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match=f"interrupted in epoch .* of 6, in the {phase} phase"):
        train(model, 6, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert np.isfinite(embedding_of(model)).all()
    label = model.get_population_embedding().index[0]
    assert model.sample(label, 4).n_obs == 4


def test_control_c_in_a_script(tmp_path):
    code = """
        import os, signal, warnings, numpy as np, scgde, lightning.pytorch as pl
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
        class Interrupt(pl.Callback):
            def on_train_epoch_end(self, trainer, plan):
                os.kill(os.getpid(), signal.SIGINT)
        adata = scgde.datasets.simulate_populations(6, cells_per_population=(10, 20), n_genes=30)
        scgde.GDEModel.setup_anndata(adata)
        model = scgde.GDEModel(adata, n_latent=3, n_embedding=4, n_hidden=8)
        model.train(max_epochs=50, accelerator="cpu", enable_progress_bar=False, callbacks=[Interrupt()])
        print("usable", np.isfinite(model.get_population_embedding().to_numpy()).all())
    """
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="default")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert "usable True" in done.stdout, done.stderr[-2000:]
    assert "interrupted" in done.stderr


def test_unassigned_cells_train_the_latent_and_enter_no_population(trained):
    adata = trained.adata
    loose = adata.obs["population"].isna().to_numpy()
    assert loose.any() and loose[trained.train_indices].any()
    assert trained.get_population_adata().obs["gde_n_cells"].sum() == (~loose).sum()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "half"])  # which rounds counts above 2048
def test_matrix_formats_give_the_same_embedding(kind, trained):
    query = trained.adata.copy()
    expected = trained.get_population_embedding(query)
    query.X = FORMATS[kind](query.X)
    np.testing.assert_allclose(trained.get_population_embedding(query), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["csc", "dense", "csr_array", "half", "big-endian"])
def test_matrix_formats_train(kind, make_cells, quick_model):
    plain, other = make_cells(6), make_cells(6)
    other.X = FORMATS[kind](other.X)
    one, two = (quick_model(a, train_options={"max_epochs": 2}) for a in (plain, other))
    np.testing.assert_allclose(embedding_of(one), embedding_of(two), atol=1e-4)


def test_layer_size_factors_and_covariates(make_cells, quick_model):
    adata = make_cells(6, n_batches=2)
    adata.layers["counts"], adata.X = adata.X.copy(), np.log1p(adata.X.toarray())
    total = np.asarray(adata.layers["counts"].sum(1)).ravel()
    adata.obs["size"], adata.obs["age"] = total / total.mean(), np.linspace(0, 1, adata.n_obs)
    setup = {
        "layer": "counts",
        "size_factor_key": "size",
        "categorical_covariate_keys": ["batch"],
        "continuous_covariate_keys": ["age"],
    }
    model = quick_model(adata, setup, {"max_epochs": 3})
    label = model.get_population_embedding().index[0]
    cells = model.sample(label, 300, covariates={"batch": "batch_1", "age": 0.5}, seed=0)
    assert set(cells.obs["batch"]) == {"batch_1"} and set(cells.obs["age"]) == {np.float32(0.5)}
    # size factors of mean one stand for the data's mean total count
    assert float(cells.obs["gde_library_size"].mean()) == pytest.approx(total.mean(), rel=0.5)
    assert "counts" in cells.layers
    with pytest.raises(KeyError, match="is not a covariate"):
        model.sample(label, 3, covariates={"sex": "f"})


def test_continuous_rows(make_cells, make_model, train):
    adata = make_cells(12)
    adata.obsm["X_rows"] = np.asarray(adata.obsm["X_true_latent"], dtype=np.float32) * 7 + 3
    model = train(make_model(adata, {"obsm_key": "X_rows"}), 3)
    assert model.get_latent_representation().shape == (adata.n_obs, 4)
    cells = model.sample(model.get_population_embedding().index[:2], 400, seed=0)
    assert cells.n_vars == 4 and cells.obsm["X_rows"].shape == (800, 4)
    for label in cells.obs["gde_population"].unique():
        real = adata.obsm["X_rows"][(adata.obs["population"] == label).to_numpy()]
        made = np.asarray(cells.X)[(cells.obs["gde_population"] == label).to_numpy()]
        # within three standard errors of two samples of this size, and not a standard cloud at the origin
        error = np.sqrt(real.var(0) / len(real) + made.var(0) / len(made))
        assert (np.abs(made.mean(0) - real.mean(0)) < 4 * error + 1).all()
    assert np.isfinite(model.get_population_embedding(cells)).all(axis=None)
    assert model.get_population_adata().uns["gde"]["params"]["scale"] > 1
    adata.X = adata.X.toarray() + 0.5
    assert train(make_model(adata[:, :8].copy(), gene_likelihood="normal"), 2).module.observation.n_latent == 8


def test_scvi_idiom(trained, capsys):
    assert trained.adata_manager.summary_stats.n_population == 12
    repr(trained)
    trained.view_anndata_setup()
    assert "encoder: residual" in capsys.readouterr().out.replace("\n", " ")


def test_posterior_predictive_checks_of_scvi_tools_run(trained):
    cells = trained.adata.copy()
    cells.X = cells.X.toarray()  # scvi-tools 1.4.2 compares sparse floats in a way that scipy refuses
    check = scvi.criticism.PosteriorPredictiveCheck(cells, {"gde": trained}, n_samples=2)
    check.coefficient_of_variation("cells")
    table = check.metrics["cv_gene"]
    assert len(table) == cells.n_vars and {"gde", "Raw"} <= set(table.columns)
    assert np.isfinite(table["gde"]).all() and table["gde"].mean() > 0


def test_a_second_call_of_train_goes_on(make_cells, make_model, train):
    model = train(make_model(make_cells(6)), 2)
    before = embedding_of(model)
    train(model, 2)
    assert np.abs(embedding_of(model) - before).max() > 0


def test_emergent_and_isometric_embeddings_follow_true_distances():
    adata = scgde.datasets.simulate_populations(
        24, design="independent", cells_per_population=(60, 80), n_genes=100, n_latent=3, seed=1
    )
    truth = adata.uns["simulation"]["w2"]
    scgde.GDEModel.setup_anndata(adata)
    model = scgde.GDEModel(adata, n_latent=5)
    model.train(max_epochs=60, seed=0, accelerator="cpu", enable_progress_bar=False)
    labels = np.asarray(adata.uns["simulation"]["populations"]).astype(str)
    d = model.get_population_distances().loc[labels, labels].to_numpy()
    pairs = np.triu_indices(len(d), 1)
    assert np.corrcoef(d[pairs], truth[pairs])[0, 1] > 0.9


@pytest.mark.slow  # many processors have to imitate bfloat16
def test_mixed_precision_trains_to_about_the_same_bound(make_cells, make_model, train):
    bounds = []
    for precision in ("32-true", "bf16-mixed"):
        model = train(make_model(make_cells(8)), 6, precision=precision)
        bounds.append(float(model.history["elbo_validation"].iloc[-1, 0]))
        assert np.isfinite(model.get_population_embedding().to_numpy()).all()
    assert bounds[0] != bounds[1] and abs(bounds[1] / bounds[0] - 1) < 0.01
