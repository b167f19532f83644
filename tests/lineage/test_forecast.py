"""Forecasts: nearer to what becomes of held-out clones than what is known without a model, and what goes wrong."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgde.datasets import simulate_lineage
from scgde.lineage import Forecaster
from scgde.lineage._forecast_cells import even_draw, training_cells
from scgde.lineage._steps import N_DONORS, LineagePopulations, StepHead
from scgde.lineage.times import TimeScale


@pytest.fixture(scope="module")
def clones():
    """Training clones with an almost certain memory, and held-out ones; days are strings."""
    adata = simulate_lineage(
        240, bias=0.95, fidelity=1.0, purity=0.9, early_cells=(5, 8), late_cells=(6, 12), n_genes=60, seed=3
    )
    adata.obs["time"] = adata.obs["time"].map({"early": "2", "late": "10"}).astype(str)
    clone = adata.obs["clone"].astype(object)
    adata.obs["clone"] = clone
    held = clone.isin([f"clone_{i}" for i in range(40)]).to_numpy()
    truth = adata.uns.pop("simulation")
    return adata[~held].copy(), adata[held].copy(), truth


@pytest.fixture(scope="module")
def fitted(clones, quick_model):
    setup = {"population_key": ["clone", "time"]}
    model = quick_model(clones[0].copy(), setup, {"max_epochs": 40}, encoder="states")
    return Forecaster(model, "time", "clone").fit()


def at(adata, time):
    return adata[(adata.obs["time"] == time).to_numpy()].copy()


class TestForecast:
    """Embeddings and cells of later populations."""

    def test_is_nearer_to_later_embeddings_than_the_mean_and_the_present(self, fitted, clones):
        _, test, _ = clones
        z = fitted.predict_embedding(10, adata=at(test, "2"))
        found = fitted.model.get_population_embedding(test)
        late, early = (found.loc[[f"{c}|{t}" for c in z.index]].to_numpy() for t in ("10", "2"))
        own = fitted.model.get_population_embedding()
        mean = own[own.index.str.endswith("|10")].mean().to_numpy()
        error = np.square(z.to_numpy() - late).sum(1).mean()
        assert len(z) == 40
        assert error < 0.5 * np.square(mean - late).sum(1).mean()
        assert error < 0.2 * np.square(early - late).sum(1).mean()
        assert z.attrs["from_time"] == ["2"] * 40
        # the late embedding of few cells has an error of its own
        ratio = np.square(z.to_numpy() - late).mean() / np.square(z.attrs["standard_error"]).mean()
        assert 0.4 < ratio < 2.5

    def test_cells_are_counts_with_the_columns_of_the_model(self, fitted, clones):
        cells = fitted.predict("10", ["clone_7", "clone_3"], clones[1], n_cells=30, method="sample", seed=0)
        assert cells.n_obs == 60
        x = cells.X.toarray()
        assert (x >= 0).all()
        assert (x == np.round(x)).all()
        assert x.sum() > 0
        assert cells.obs["clone"].tolist() == ["clone_7"] * 30 + ["clone_3"] * 30
        assert (cells.obs["time"] == "10").all()
        assert set(cells.obs["gde_from_time"]) == {"2"}
        assert cells.obs_names.is_unique
        again = fitted.predict("10", ["clone_7", "clone_3"], clones[1], n_cells=30, method="sample", seed=0)
        other = fitted.predict("10", ["clone_7", "clone_3"], clones[1], n_cells=30, method="sample", seed=1)
        assert (again.X != cells.X).nnz == 0
        assert (other.X != cells.X).nnz > 0
        # generated cells can be embedded as any others
        assert fitted.model.get_population_embedding(cells).index.tolist() == ["clone_3|10", "clone_7|10"]

    def test_matched_cells_are_later_cells_of_other_lineages_with_the_same_memory(self, fitted, clones):
        train, test, truth = clones
        law = pd.Series(truth["late_law"], index=truth["clones"])
        held = [f"clone_{i}" for i in range(40)]
        cells = fitted.predict(10, held, test, n_cells=50, seed=0)
        assert set(cells.obs["gde_method"]) == {"match"}
        source = train[cells.obs["gde_source_cell"].to_numpy()]
        assert (source.obs["time"] == "10").all()
        assert (source.X != cells.X).nnz == 0
        same = law.loc[source.obs["clone"]].to_numpy() == law.loc[cells.obs["clone"].to_numpy().astype(str)].to_numpy()
        assert same.mean() > 0.8
        own = fitted.predict(10, ["clone_100", "clone_101"], n_cells=300, seed=0)
        taken = train.obs.loc[own.obs["gde_source_cell"], "clone"].to_numpy()
        assert (taken != own.obs["clone"].to_numpy()).all()
        with pytest.raises(ValueError, match="method='sample' to decode under a batch"):
            fitted.predict(10, held, test, method="match", batch="batch_0")

    def test_moved_cells_come_from_the_lineage(self, fitted, clones):
        _, test, _ = clones
        cells = fitted.predict(10, ["clone_5"], test, n_cells=20, method="transport", seed=0)
        own = test.obs_names[(test.obs["clone"] == "clone_5").to_numpy() & (test.obs["time"] == "2").to_numpy()]
        assert set(cells.obs["gde_source_cell"]) == set(own)

    def test_evaluation_beats_what_needs_no_model(self, fitted, clones):
        table = fitted.evaluate(clones[1], 10, n_cells=40)
        e = table["e_distance"]
        assert e["scgde"] < 0.5 * e["all later cells"]
        assert e["scgde"] < 0.3 * e["earlier cells"]
        assert e["ceiling (second half)"] < e["scgde"]
        assert table.loc["earlier cells", "e_ratio"] == pytest.approx(1)
        rows = fitted.evaluate(clones[1], 10, n_cells=40, per_lineage=True)
        assert rows["lineage"].nunique() == 40
        assert rows.groupby("method")["e_distance"].mean()["scgde"] == pytest.approx(e["scgde"])

    def test_evaluation_refuses_lineages_that_trained(self, fitted, clones):
        with pytest.raises(ValueError, match=r"'clone_100'.* trained the model"):
            fitted.evaluate(clones[0], 10)

    def test_lineages_of_the_model_are_counted(self, fitted):
        table = fitted.lineages
        assert list(table.columns) == ["2", "10"]
        assert len(table) == 200
        assert table["2"].between(5, 8).all()
        fitted.predict_embedding(10)
        assert set(fitted.heads["steps"]) == {1}
        assert fitted.heads["weight"].max() > 0.01


class TestSteps:
    """Pairs of populations and what is learned of them, without cells."""

    @staticmethod
    def forks(n=400, seed=0):
        """Lineages that start anywhere and become -1 or 1, whatever they were."""
        rng = np.random.default_rng(seed)
        start, end = rng.normal(size=(n, 2)), np.column_stack([rng.choice([-1.0, 1.0], n), np.zeros(n)])
        names = np.tile([f"c{i:04d}" for i in range(n)], 2)
        z = np.concatenate([start, end + 0.05 * rng.normal(size=(n, 2))])
        return LineagePopulations(names, np.repeat([0, 1], n), z, np.full((2 * n, 2), 1e-3), np.full(2 * n, 5.0))

    def test_draws_are_of_both_fates_and_not_between(self):
        data = self.forks()
        head = StepHead(data, np.arange(400), np.arange(400, 800))
        z = np.zeros((1, 2))
        mean = z + head.predict(z, 0).mean
        draws = head.draw(mean, 1, np.array([-1]), 500, np.random.default_rng(0))[0, :, 0]
        assert np.abs(mean).max() < 0.25
        assert 0.2 < (draws > 0).mean() < 0.8  # of 30 lineages
        assert np.abs(draws).min() > 0.5

    def test_few_lineages_have_no_draws(self):
        data = self.forks(N_DONORS)
        head = StepHead(data, np.arange(N_DONORS), np.arange(N_DONORS, 2 * N_DONORS))
        draws = head.draw(np.zeros((1, 2)), 1, np.array([-1]), 5, np.random.default_rng(0))
        assert (draws == 0).all()

    def test_populations_of_a_lineage_and_time_are_joined_by_cells(self):
        obs = pd.DataFrame({"gde_n_cells": [1, 3, 5]}, index=["a", "b", "c"])
        table = AnnData(
            np.array([[0.0], [4.0], [7.0]]), obs=obs, layers={"standard_error": np.array([[np.nan], [1.0], [1.0]])}
        )
        data = LineagePopulations.join(np.array(["x", "x", None], dtype=object), np.array([0, 0, 0]), table)
        assert data.lineage.tolist() == ["x"]
        assert data.z.item() == pytest.approx(3.0)
        assert data.n_cells.item() == 4


class TestThreeTimes:
    """Steps over several times, lineages of several columns, cells that are none."""

    @pytest.fixture(scope="class")
    def mice(self, quick_model):
        """Clones 0 to 129 of two mice on days 2, 4 and 16, in two wells each; some cells have no clone."""
        adata = simulate_lineage(260, early_cells=(3, 4), late_cells=(3, 4), unbarcoded=0.1, n_genes=50, seed=5)
        number = adata.obs["clone"].astype(object).str.removeprefix("clone_")
        missing = number.isna().to_numpy()
        code = number.fillna(0).astype(int).to_numpy()
        rng = np.random.default_rng(0)
        adata.obs["mouse"] = np.where(code % 2, "A", "B")
        adata.obs["cl"] = np.where(missing, "none", (code // 2).astype(str)).astype(object)
        late = (adata.obs["time"] == "late").to_numpy()
        adata.obs["day"] = np.where(late, rng.choice([4, 16], adata.n_obs), 2)
        adata.obs["well"] = rng.choice(["w0", "w1"], adata.n_obs)
        del adata.uns["simulation"]
        setup = {"population_key": ["mouse", "cl", "day", "well"], "unassigned": ["none"]}
        model = quick_model(adata, setup, {"max_epochs": 6}, encoder="states")
        return Forecaster(model, "day", ["mouse", "cl"]).fit()

    def test_matched_cells_are_of_the_day_and_columns_of_the_forecast_lineage(self, mice):
        cells = mice.predict(16, n_cells=20, method="match", seed=0)
        source = mice.model.adata.obs.loc[cells.obs["gde_source_cell"]]
        assert (source["day"] == 16).all()
        assert (source["cl"] != "none").all()
        own = cells.obs["mouse"].astype(str) + "|" + cells.obs["cl"].astype(str)
        taken = (source["mouse"] + "|" + source["cl"]).to_numpy()
        assert (own.to_numpy() != taken).all()
        assert own.nunique() == len(own) // 20
        assert set(cells.obs["well"]) == {"predicted"}
        assert (cells.obs["day"] == 16).all()
        assert mice.model.get_population_embedding(cells).shape[0] == own.nunique()
        generated = mice.predict(16, [("A", 7)], n_cells=5, method="sample", seed=0)
        assert set(generated.obs["mouse"]) == {"A"}
        assert set(generated.obs["cl"]) == {"7"}

    def test_cells_without_a_clone_are_no_lineage(self, mice):
        assert not any("none" in name for name in mice.lineages.index)
        assert not any("none" in name for name, _ in training_cells(mice, mice.model._table()))

    def test_lineages_that_trained_are_forecast_from_others(self, mice):
        data = mice._fitted()
        z = mice.predict_embedding(4, from_time=2)
        head = mice._head(1)
        rows = [data.rows(0)[name] for name in z.index]
        pairs, left_out = head.left_out(np.array(rows))
        with_pair = pairs >= 0
        assert with_pair.any()
        assert z.to_numpy()[with_pair] == pytest.approx(left_out[with_pair], abs=1e-5)

    def test_further_training_makes_it_stale(self, quick_model, clones):
        model = quick_model(clones[0][:600].copy(), {"population_key": ["clone", "time"]}, {"max_epochs": 2})
        forecaster = Forecaster(model, "time", "clone").fit()
        model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", seed=1)
        with pytest.raises(RuntimeError, match="trained further"):
            forecaster.predict(10)

    def test_cells_in_another_order_are_refused(self, fitted, tmp_path):
        model = fitted.model
        model.save(str(tmp_path / "m"))
        other = type(model).load(str(tmp_path / "m"), adata=model.adata[::-1].copy())
        with pytest.raises(ValueError, match="in another order"):
            Forecaster(other, "time", "clone")

    def test_donors_count_alike_whatever_their_size(self):
        groups = [np.arange(3), np.arange(3, 6), np.arange(6, 300)]
        drawn = even_draw(groups, 99, np.random.default_rng(0))
        assert [np.isin(drawn, g).sum() for g in groups] == [33, 33, 33]
        assert len(np.unique(drawn[drawn >= 6])) == 33
        assert (np.bincount(drawn[drawn < 3]) == 11).all()


class TestTimes:
    """How times may be written."""

    @pytest.mark.parametrize(
        "column",
        [
            [6, 2, 4],
            [6.0, 2.0, 4.0],
            ["6", "2.0", "2", "4"],
            ["6", "2", "4"],
            pd.Categorical(["6", "2", "4"], ["6", "2", "4"]),
        ],
    )
    def test_numbers_are_numbers_however_written(self, column):
        scale = TimeScale.from_column(pd.Series(column), "day")
        assert scale.labels == ["2", "4", "6"]
        assert scale.values.tolist() == [2, 4, 6]
        assert [scale.position(t) for t in (2, 4.0, "6", "4.0")] == [0, 1, 2, 1]

    def test_ordered_categories(self):
        column = pd.Series(pd.Categorical(["late", "early", None], ["early", "none here", "late"], ordered=True))
        scale = TimeScale.from_column(column, "day")
        assert scale.labels == ["early", "late"]
        assert scale.positions(column).tolist() == [1, 0, -1]

    def test_strings_without_order_are_refused(self):
        with pytest.raises(ValueError, match=r"'early'.*ordered=True"):
            TimeScale.from_column(pd.Series(["early", "late"]), "day")

    def test_unknown_time(self):
        with pytest.raises(KeyError, match=r"time=8 is no time .*'2', '4'"):
            TimeScale.from_column(pd.Series([2, 4]), "day").position(8)


class TestErrors:
    """What a user gets wrong."""

    def test_one_day_only(self, clones, quick_model):
        one = at(clones[0], "2")
        model = quick_model(one, {"population_key": ["clone", "time"]}, {"max_epochs": 2}, encoder="states")
        with pytest.raises(ValueError, match="No clone has cells at two times"):
            Forecaster(model, "time", "clone").fit()

    def test_columns(self, fitted):
        model = fitted.model
        with pytest.raises(KeyError, match="lineage_key='nope'"):
            Forecaster(model, "time", "nope")
        with pytest.raises(ValueError, match="part of lineage_key"):
            Forecaster(model, "time", ["clone", "time"])
        with pytest.raises(ValueError, match="'state' varies within populations"):
            Forecaster(model, "time", "state").fit()

    def test_not_fitted(self, fitted):
        with pytest.raises(RuntimeError, match=r"call fit\(\)"):
            Forecaster(fitted.model, "time", "clone").predict(10)

    def test_times(self, fitted, clones):
        with pytest.raises(KeyError, match="time=8"):
            fitted.predict(8, adata=clones[1])
        with pytest.raises(ValueError, match="not before"):
            fitted.predict(2, adata=clones[1], from_time=10)
        with pytest.raises(KeyError, match="No lineage has cells before"):
            fitted.predict(2, adata=clones[1])
        with pytest.raises(KeyError, match=r"before 10 of the lineages \['clone_1'\]"):
            fitted.predict(10, ["clone_1"], at(clones[1], "10"))

    def test_arguments(self, fitted, clones):
        with pytest.raises(ValueError, match="n_cells"):
            fitted.predict(10, adata=clones[1], n_cells=0)
        with pytest.raises(ValueError, match="method="):
            fitted.predict(10, adata=clones[1], method="magic")
        with pytest.raises(KeyError, match=r"\['time'\] not in adata.obs"):
            fitted.predict(10, adata=AnnData(clones[1].X, clones[1].obs[["clone"]], clones[1].var))
