"""The predictor: situations, cells, errors, files and writers."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scgde
from scgde import PerturbationPredictor

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}


@pytest.fixture(scope="session")
def double(predictor):
    """A combination that was seen, though not in the first context."""
    seen = {c for c in predictor.perturbations if "+" in c}
    here = {
        t.label
        for t, c in zip(predictor._design.treatments, predictor._design.contexts, strict=True)
        if c == "context_0"
    }
    return sorted(seen - here)[0]


class TestSituations:
    """What is asked decides how it is predicted."""

    @pytest.mark.parametrize(
        ("perturbation", "context", "situation"),
        [
            ("p0", "context_0", "seen"),
            ("p0", "context_2", "transfer"),
            ("p1", "context_0", "features"),
            ("p0+p4", "context_0", "combination"),
        ],
    )
    def test_situation(self, predictor, perturbation, context, situation):
        frame = predictor.predict_embedding(perturbation, context)
        assert frame.attrs["situation"] == [situation]
        assert np.isfinite(frame.to_numpy()).all()
        assert (np.array(frame.attrs["standard_error"]) > 0).all()

    def test_seen_elsewhere(self, predictor, double):
        frame = predictor.predict_embedding(double, "context_0")
        assert frame.attrs["situation"][0] in ("context", "transfer")

    def test_order_of_parts_has_no_meaning_and_labels_are_kept(self, predictor):
        one, other = (predictor.predict_embedding(p, "context_0") for p in ("p4+p0", "p0+p4"))
        assert np.allclose(one, other)
        assert list(one.index) == ["p4+p0"]

    def test_predictions_beat_the_mean_shift_where_contexts_differ(self, predictor, split):
        table = predictor.evaluate(split[1])
        assert table.loc["scgde", "e_distance"] < table.loc["control copy", "e_distance"]
        assert table.loc["scgde", "pearson_delta"] > 0.5
        assert {"mean shift", "mean of training perturbations", "latent shift", "linear", "nearest"} < set(table.index)
        assert table.loc["ceiling (second draw)", "e_distance"] < table.loc["scgde", "e_distance"]
        assert 0 <= table.loc["scgde", "in_region"] <= 1

    def test_per_population_rows_average_to_the_table(self, predictor, split):
        rows = predictor.evaluate(split[1], per_population=True)
        table = predictor.evaluate(split[1])
        own = rows[rows["method"] == "scgde"]
        assert own["e_distance"].mean() == pytest.approx(table.loc["scgde", "e_distance"])
        assert set(own["context"]) == set(split[1].obs["context"])

    def test_additive_is_a_baseline_of_unseen_combinations(self, screen, quick_model):
        adata = screen[screen.obs["context"] == "context_0"].copy()
        held = (adata.obs["perturbation"] == "p4+p5").to_numpy()
        model = quick_model(adata[~held].copy(), n_latent=5, n_embedding=20)
        rows = PerturbationPredictor(model, **KEYS).fit().evaluate(adata[held].copy(), per_population=True)
        assert set(rows["situation"]) == {"combination"}
        assert {"additive", "linear", "latent shift"} < set(rows["method"])

    def test_standard_errors_widen_away_from_what_was_seen(self, model, features):
        far = pd.concat([features, pd.DataFrame(50.0, index=["far"], columns=features.columns)])
        predictor = PerturbationPredictor(model, features=far, **KEYS).fit()
        near, out = (
            np.mean(predictor.predict_embedding(p, "context_0").attrs["standard_error"]) for p in ("p1", "far")
        )
        assert out > near

    def test_heads_tell_what_was_chosen(self, model, features):
        predictor = PerturbationPredictor(model, features=features, **KEYS).fit()
        assert predictor.heads.empty
        predictor.predict_embedding("p1", "context_0")
        heads = predictor.heads
        assert set(heads["head"]) == {"features"}
        assert set(heads["n_groups"]) == {5}
        assert heads["weight"].is_monotonic_decreasing
        assert 0.5 < heads["weight"].sum() <= 1 + 1e-9
        assert heads.loc[0, "error"] == heads["error"].min()


class TestCells:
    """Predicted cells."""

    def test_counts_and_annotation(self, predictor, model):
        cells = predictor.predict(["p0", "p0+p4"], "context_2", n_cells=70, seed=0)
        x = cells.X.toarray()
        assert cells.shape == (140, 60)
        assert (x == x.round()).all()
        assert (x >= 0).all()
        assert list(cells.obs["perturbation"].unique()) == ["p0", "p0+p4"]
        assert set(cells.obs["context"]) == {"context_2"}
        assert set(cells.obs["gde_method"]) == {"transport"}
        control = model.adata.obs
        sources = control.loc[cells.obs["gde_source_cell"]]
        assert set(sources["perturbation"]) == {"control"}
        assert set(sources["context"]) == {"context_2"}
        # all controls before one comes again: 60 controls, 70 cells
        assert cells.obs["gde_source_cell"].iloc[:60].is_unique
        assert len(model.get_population_embedding(cells)) == 2

    def test_seed_decides_and_global_state_stays(self, predictor):
        numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
        first, again, other = (predictor.predict("p0", "context_2", n_cells=20, seed=s) for s in (0, 0, 1))
        assert (first.X != again.X).nnz == 0
        assert (first.X != other.X).nnz > 0
        assert (np.random.get_state()[1] == numpy_state).all()
        assert torch.equal(torch.get_rng_state(), torch_state)

    def test_none_is_each_control_once(self, predictor):
        cells = predictor.predict("p0", "context_2", n_cells=None, seed=0)
        assert cells.n_obs == 60
        assert cells.obs["gde_source_cell"].is_unique

    def test_sampled_cells_need_no_controls(self, predictor):
        cells = predictor.predict("p0", "context_2", n_cells=15, method="sample", seed=0)
        assert cells.n_obs == 15
        assert set(cells.obs["gde_method"]) == {"sample"}
        assert "gde_source_cell" not in cells.obs

    def test_own_control_cells_of_a_context_without_a_name(self, predictor, split):
        own = split[0][(split[0].obs["context"] == "context_1")].copy()
        own.obs = own.obs[["perturbation"]].copy()
        own = own[:, ::-1].copy()  # genes in another order
        cells = predictor.predict("p0", adata=own, n_cells=10, seed=0)
        assert set(cells.obs["gde_source_cell"]) <= set(own.obs_names[own.obs["perturbation"] == "control"])
        assert cells.obs["gde_situation"].iloc[0] == "context"

    def test_user_data_are_left_alone(self, predictor, split):
        truth = split[1].copy()
        before = truth.copy()
        predictor.evaluate(truth)
        assert list(truth.obs.columns) == list(before.obs.columns)
        assert (truth.X != before.X).nnz == 0

    @pytest.mark.parametrize("generator", ["vae", "diffusion"])
    def test_other_generators(self, split, quick_model, generator):
        model = quick_model(split[0].copy(), n_latent=5, n_embedding=20, generator=generator)
        cells = PerturbationPredictor(model, **KEYS).fit().predict("p0", "context_2", n_cells=10, seed=0)
        assert np.isfinite(cells.X.toarray()).all()

    def test_continuous_rows(self, split, quick_model):
        train = split[0].copy()
        train.obsm["X_true_latent"] = train.obsm["X_true_latent"].astype(np.float32)
        model = quick_model(train, {"obsm_key": "X_true_latent"}, n_embedding=20, train_options={"max_epochs": 10})
        predictor = PerturbationPredictor(model, **KEYS).fit()
        cells = predictor.predict("p0", "context_2", n_cells=100, seed=0)
        truth = split[1][split[1].obs["population"] == "context_2|p0"]
        control = train[train.obs["population"] == "context_2|control"].obsm["X_true_latent"].mean(0)
        change = cells.obsm["X_true_latent"].mean(0) - control
        assert np.corrcoef(change, truth.obsm["X_true_latent"].mean(0) - control)[0, 1] > 0.7
        assert predictor.evaluate(truth.copy()).loc["scgde", "e_ratio"] < 1
        with pytest.raises(TypeError, match="counts"):
            predictor.write_cell_eval("never.h5ad", ["p0"], "context_2")


class TestDose:
    """Doses between and beyond those seen."""

    @pytest.fixture(scope="class")
    @staticmethod
    def dosed(screen, quick_model):
        adata = screen[screen.obs["perturbation"].isin(["control", "p0", "p2", "p4"])].copy()
        adata.obs["perturbation"] = adata.obs["perturbation"].astype(str)
        adata.obs["dose"] = adata.obs["perturbation"].map({"control": 0.0, "p0": 1.0, "p2": 10.0, "p4": 100.0})
        adata.obs["perturbation"] = adata.obs["perturbation"].replace({"p2": "drug", "p0": "drug", "p4": "drug"})
        adata.obs["population"] = adata.obs["context"].astype(str) + "|" + adata.obs["dose"].astype(str)
        model = quick_model(adata, n_latent=5, n_embedding=20)
        return PerturbationPredictor(model, dose_key="dose", **KEYS).fit()

    def test_doses_that_were_seen_and_between(self, dosed):
        frame = dosed.predict_embedding("drug", "context_0", dose=[1, 3, 10])
        control = dosed._design.z[dosed._shifts.controls["context_0"]]
        steps = frame.to_numpy() - control
        share = np.log1p(3) - np.log1p(1), np.log1p(10) - np.log1p(1)
        expected = steps[0] + share[0] / share[1] * (steps[2] - steps[0])
        assert np.allclose(steps[1], expected, atol=1e-5)
        assert frame.attrs["extrapolated"] == [False] * 3

    def test_dose_zero_is_the_control_and_beyond_is_said(self, dosed, scgde_log):
        frame = dosed.predict_embedding("drug", "context_0", dose=[0, 100, 1000])
        control = dosed._design.z[dosed._shifts.controls["context_0"]]
        assert np.allclose(frame.iloc[0], control)
        assert np.allclose(frame.iloc[1], frame.iloc[2])
        assert frame.attrs["extrapolated"] == [False, False, True]
        error = np.mean(frame.attrs["standard_error"], axis=1)
        assert error[2] > error[1]
        assert "extrapolated" in scgde_log.text
        cells = dosed.predict("drug", "context_0", n_cells=5, dose=[3, 1000], seed=0)
        assert cells.obs["dose"].tolist() == [3.0] * 5 + [1000.0] * 5
        assert cells.obs["gde_extrapolated"].tolist() == [False] * 5 + [True] * 5

    def test_several_doses_ask_for_one(self, dosed):
        with pytest.raises(ValueError, match=r"doses \[1.0, 10.0, 100.0\]; pass dose="):
            dosed.predict("drug", "context_0")


class TestFiles:
    """Files and the forms of other packages."""

    def test_round_trip(self, predictor, model, tmp_path):
        predictor.save(str(tmp_path / "p"))
        again = PerturbationPredictor.load(str(tmp_path / "p"), model)
        for perturbation, context in (("p0", "context_2"), ("p1", "context_0"), ("p0+p4", "context_1")):
            one, other = (p.predict(perturbation, context, n_cells=10, seed=0) for p in (predictor, again))
            assert (one.X != other.X).nnz == 0
        with pytest.raises(ValueError, match="overwrite=True"):
            predictor.save(str(tmp_path / "p"))

    def test_other_models_and_damaged_files_are_refused(self, predictor, model, split, quick_model, tmp_path):
        path = tmp_path / "p"
        predictor.save(str(path))
        other = quick_model(split[0].copy(), n_latent=5, n_embedding=20)
        with pytest.raises(ValueError, match="another model"):
            PerturbationPredictor.load(str(path), other)
        (path / "model.pt").write_bytes(b"no model")
        with pytest.raises(ValueError, match="damaged"):
            PerturbationPredictor.load(str(path), model)
        model.save(str(tmp_path / "m"))
        with pytest.raises(ValueError, match=r"GDEModel\.load"):
            PerturbationPredictor.load(str(tmp_path / "m"), model)

    def test_a_model_without_its_data_predicts_from_own_controls(self, predictor, model, split, tmp_path):
        predictor.save(str(tmp_path / "p"))
        model.save(str(tmp_path / "m"))
        bare = scgde.GDEModel.load(str(tmp_path / "m"), adata=False)
        again = PerturbationPredictor.load(str(tmp_path / "p"), bare)
        with pytest.raises(ValueError, match="adata="):
            again.predict("p0", "context_2")
        assert again.predict("p0", "context_2", n_cells=5, method="sample", seed=0).n_obs == 5
        assert again.predict("p0", "context_2", adata=split[0], n_cells=5, seed=0).n_obs == 5

    def test_cell_eval_file(self, predictor, tmp_path):
        path = tmp_path / "prediction.h5ad"
        predictor.write_cell_eval(str(path), ["p0", "p1"], "context_2", n_cells=12, seed=0)
        read = ad.read_h5ad(path)
        assert read.obs["target_gene"].value_counts().to_dict() == {"non-targeting": 60, "p0": 12, "p1": 12}
        assert (read.X.data == read.X.data.round()).all()
        assert read.obs_names.is_unique

    def test_perturbation_space(self, predictor):
        space = predictor.get_perturbation_adata()
        assert space.obs_names[0] == "control"
        assert np.allclose(space.X[0], 0)
        assert (space.obs["effect"].iloc[1:] > 0).all()
        assert space.obs.loc["p0", "n_contexts"] == 2
        one = predictor.get_perturbation_adata("context_0")
        assert "p1" not in one.obs_names

    def test_interactions(self, predictor):
        table = predictor.get_interactions(context="context_1")
        assert (table["situation"] == "seen").all()
        assert table["strength"].is_monotonic_decreasing
        asked = predictor.get_interactions(["p0+p4"], "context_1")
        assert asked.loc[0, "situation"] == "combination"


class TestBadInput:
    """What users get wrong."""

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"control": "ctrl"}, ValueError, "control='ctrl' is not among the perturbations"),
            ({"perturbation_key": "drug"}, KeyError, "perturbation_key='drug' is not a column"),
            ({"context_key": "donor"}, KeyError, "context_key='donor'"),
            ({"dose_key": "mode"}, ValueError, "not numbers"),
            ({"context_key": "varying"}, ValueError, "varies within populations"),
        ],
    )
    def test_keys(self, model, change, error, message):
        with pytest.raises(error, match=message):
            PerturbationPredictor(model, **KEYS | change).fit()

    def test_contexts_without_control_are_named(self, split, quick_model):
        adata = split[0][split[0].obs["population"] != "context_1|control"].copy()
        model = quick_model(adata, train_options={"max_epochs": 1})
        with pytest.raises(ValueError, match=r"1 contexts have no 'control' cells: \['context_1'\]"):
            PerturbationPredictor(model, **KEYS).fit()

    @pytest.mark.parametrize(
        ("features", "error", "message"),
        [
            (pd.DataFrame({"x": [1.0, 2.0]}, index=["p0", "p0"]), ValueError, r"several rows for \['p0'\]"),
            (pd.DataFrame({"x": [1.0, np.nan]}, index=["p0", "p1"]), ValueError, r"infinite values for \['p1'\]"),
            (pd.DataFrame({"x": ["a", "b"]}, index=["p0", "p1"]), ValueError, "not numbers"),
            (pd.DataFrame({"x": [1.0]}, index=["p0+p4"]), ValueError, "rows of combinations"),
            (pd.DataFrame(index=["p0"]), ValueError, "no columns"),
            (np.eye(3), TypeError, "must be a DataFrame"),
        ],
    )
    def test_features(self, model, features, error, message):
        with pytest.raises(error, match=message):
            PerturbationPredictor(model, features=features, **KEYS)

    @pytest.mark.parametrize("perturbation", ["new", "p0+new"])
    def test_perturbations_that_nothing_describes_are_named(self, predictor, perturbation):
        with pytest.raises(KeyError, match="'new' was never seen and has no features"):
            predictor.predict(perturbation, "context_0")
        frame = predictor.predict_embedding("new", "context_0", unknown="mean")
        assert frame.attrs["situation"] == ["mean"]

    def test_unknown_without_any_features(self, model):
        predictor = PerturbationPredictor(model, **KEYS).fit()
        assert predictor.features is None
        with pytest.raises(KeyError, match="'p1' was never seen and has no features"):
            predictor.predict("p1", "context_0")
        assert predictor.predict("p1", "context_0", n_cells=3, unknown="mean", seed=0).n_obs == 3

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ({"perturbation": "p0"}, ValueError, "context is needed"),
            ({"perturbation": "p0", "context": "liver"}, KeyError, "'liver' has no control cells in the model"),
            ({"perturbation": "control", "context": "context_0"}, ValueError, "'control' is the control"),
            ({"perturbation": [], "context": "context_0"}, ValueError, "empty"),
            ({"perturbation": "p0+", "context": "context_0"}, ValueError, "empty part"),
            ({"perturbation": "p0", "context": "context_0", "n_cells": 0}, ValueError, "positive integer"),
            ({"perturbation": "p0", "context": "context_0", "method": "guess"}, ValueError, "'transport' or 'sample'"),
            ({"perturbation": "p0", "context": "context_0", "unknown": "zero"}, ValueError, "'raise' or 'mean'"),
            ({"perturbation": "p0", "context": "context_0", "dose": 1.0}, ValueError, "without dose_key"),
            ({"perturbation": "p0", "context": "context_0", "batch": "b"}, ValueError, "without batch_key"),
        ],
    )
    def test_requests(self, predictor, call, error, message):
        with pytest.raises(error, match=message):
            predictor.predict(**call)

    def test_own_cells_without_controls(self, predictor, split):
        own = split[0][split[0].obs["perturbation"] == "p0"].copy()
        with pytest.raises(ValueError, match="0 cells with perturbation='control'"):
            predictor.predict("p0", "context_0", adata=own)

    def test_cells_that_trained_are_refused(self, predictor, split):
        cells = ad.concat([split[1], split[0][split[0].obs["population"] == "context_0|p0"][:6]])
        with pytest.raises(ValueError, match="6 perturbed cells of adata_truth trained the model"):
            predictor.evaluate(cells)

    def test_names_of_cells_that_repeat_elsewhere_are_no_training_cells(self, predictor, split):
        truth = split[1].copy()
        truth.obs_names = list(split[0].obs_names[: truth.n_obs])
        assert "scgde" in predictor.evaluate(truth).index

    def test_truth_without_perturbed_cells(self, predictor, split):
        with pytest.raises(ValueError, match="no pair of context and perturbation"):
            predictor.evaluate(split[0][split[0].obs["perturbation"] == "control"].copy())

    def test_small_populations_are_left_out_and_said(self, split, quick_model, scgde_log):
        adata = split[0]
        rows = np.flatnonzero(adata.obs["population"] == "context_0|p0")[4:]
        adata = adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy()
        model = quick_model(adata, train_options={"max_epochs": 1})
        predictor = PerturbationPredictor(model, **KEYS).fit()
        assert "1 populations have fewer than 5 cells" in scgde_log.text
        assert predictor.predict_embedding("p0", "context_0").attrs["situation"] != ["seen"]

    def test_not_fitted_not_trained_no_model(self, model, split, make_model):
        with pytest.raises(RuntimeError, match="call fit"):
            PerturbationPredictor(model, **KEYS).predict("p0", "context_0")
        with pytest.raises(RuntimeError, match="not trained"):
            PerturbationPredictor(make_model(split[0].copy()), **KEYS)
        with pytest.raises(TypeError, match="must be a trained GDEModel"):
            PerturbationPredictor(split[0], **KEYS)


def test_replicates_are_joined_and_say_how_much_they_differ(screen, quick_model):
    adata = screen[screen.obs["context"] == "context_0"].copy()
    adata.obs["rep"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    model = quick_model(adata, {"population_key": ["perturbation", "rep"]}, n_latent=5, n_embedding=20)
    predictor = PerturbationPredictor(model, "perturbation", "control").fit()
    design = predictor._design
    assert len(design.contexts) == screen.obs["perturbation"].nunique()
    assert predictor.predict_embedding("p0").attrs["situation"] == ["seen"]
    z = model.get_population_embedding()
    row = design.treatments.index(next(t for t in design.treatments if t.parts == ("p0",)))
    mean = z.loc[["p0|a", "p0|b"]].mean(0)
    assert np.linalg.norm(design.z[row] - mean) < 0.5 * np.linalg.norm(z.loc["p0|a"] - z.loc["p0|b"])


def test_numeric_labels_and_a_column_that_is_no_population_key(screen, quick_model):
    adata = screen[~screen.obs["perturbation"].str.contains("+", regex=False)].copy()
    adata.obs["code"] = adata.obs["perturbation"].map({"control": 0} | {f"p{i}": i + 1 for i in range(6)}).astype(int)
    model = quick_model(adata, n_latent=5, n_embedding=20)
    predictor = PerturbationPredictor(model, "code", 0, "context").fit()
    assert predictor.perturbations == ["1", "2", "3", "4", "5", "6"]
    cells = predictor.predict(3, "context_0", n_cells=4, seed=0)
    assert set(cells.obs["code"]) == {"3"}
    assert set(cells.obs["population"]) == {"context_0|3"}
