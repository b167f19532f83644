"""Replicates of a perturbation: how much they differ, and cells that start from them."""

import numpy as np
import pandas as pd
import pytest

import scgde
from scgde import PerturbationPredictor
from scgde.perturbation.calibration import joined_freedom, region_level
from scgde.perturbation.design import Design, Treatment
from scgde.perturbation.observed import ObservedShifts
from scgde.perturbation.replicates import replicate_variance
from scgde.perturbation.shifts import ShiftModel

KEYS = {"perturbation_key": "target", "control": "control"}


def simulated(rng, n_pairs=60, n_replicates=4, between=(0.5, 0.1, 0.0), sizes=(80,)):
    """Replicates around the centres of pairs, the last three pairs controls that differ little; with cells of the given numbers."""
    codes = np.repeat(np.arange(n_pairs), n_replicates)
    centres = rng.normal(size=(n_pairs, 3))
    is_control = np.arange(n_pairs) >= n_pairs - 3
    spread = np.where(is_control[:, None], 0.01, np.asarray(between))
    true = centres[codes] + rng.normal(size=(len(codes), 3)) * np.sqrt(spread[codes])
    sampling = np.tile(4 / rng.choice(sizes, len(codes))[:, None], 3)
    z = true + rng.normal(size=true.shape) * np.sqrt(sampling)
    return z, sampling, codes, is_control


class TestVariance:
    """Moments of differences between replicates."""

    def test_is_that_of_the_simulation_by_coordinate(self):
        z, variance, codes, is_control = simulated(np.random.default_rng(0), n_pairs=400)
        result, freedom = replicate_variance(z, variance, codes, is_control)
        assert result[~is_control].mean(0) == pytest.approx([0.5, 0.1, 0.0], abs=0.03)
        assert result[is_control].sum(1).max() < 0.2
        # all pairs are alike, and say so
        assert freedom[~is_control].min() > 50

    def test_a_pair_whose_replicates_differ_more_says_so(self):
        z, variance, codes, is_control = simulated(np.random.default_rng(1))
        rng = np.random.default_rng(2)
        wide = np.flatnonzero(codes % 6 == 0)
        z[wide] += 2 * rng.normal(size=(len(wide), 3))
        result, freedom = replicate_variance(z, variance, codes, is_control)
        total = result.sum(1)
        assert np.median(total[0:54:6]) > 3 * np.median(total[~is_control])
        assert freedom[~is_control].max() < 50

    def test_without_replicates_there_is_none(self):
        z = np.random.default_rng(0).normal(size=(5, 3))
        result, freedom = replicate_variance(z, np.full_like(z, 0.1), np.arange(5), np.arange(5) == 0)
        assert (result == 0).all()
        assert np.isinf(freedom).all()

    def test_a_pair_with_one_replicate_has_that_of_the_others(self):
        z, variance, codes, is_control = simulated(np.random.default_rng(0))
        keep = (codes != 0) | (np.arange(len(codes)) == 0)
        result = replicate_variance(z[keep], variance[keep], codes[keep], is_control)[0].sum(1)
        assert result[0] == pytest.approx(result[1:][~is_control[1:]].mean(), rel=0.3)

    @pytest.mark.parametrize("sizes", [(80,), (10, 1000)])
    def test_regions_of_new_replicates_hold_what_they_say(self, sizes):
        inside, without = [], []
        for seed in range(5):
            z, variance, codes, is_control = simulated(np.random.default_rng(seed), sizes=sizes)
            first = np.r_[True, codes[1:] != codes[:-1]] & ~is_control[codes]
            treatments = [Treatment(("control",) if c else (f"p{i}",)) for i, c in enumerate(is_control)]
            table = pd.DataFrame({"context": "all", "treatment": [treatments[c] for c in codes], "n_cells": 50})
            design = Design.from_populations(table[~first], z[~first], variance[~first], "control")
            shifts = ShiftModel(design, None)
            control = design.z[design.control_row("all")]
            for i in np.flatnonzero(first):
                shift = shifts.predict(treatments[codes[i]], "all", control)
                error, own = z[i] - control - shift.mean, shift.total(np.zeros(3))
                between, freedom = shifts.between(treatments[codes[i]], "all")
                joined = joined_freedom([own, between], [shift.freedom, freedom])
                inside.append(region_level(error, own + between, variance[i], joined, shift.ratios) < 0.9)
                without.append(region_level(error, own, variance[i], shift.freedom, shift.ratios) < 0.9)
        assert 0.85 < np.mean(inside) < 0.95
        assert np.mean(without) < 0.8

    @pytest.mark.parametrize("n_pairs", [1, 3])
    def test_few_pairs_are_no_reason_for_more(self, n_pairs):
        found = []
        for seed in range(200):
            z, variance, codes, _ = simulated(np.random.default_rng(seed), n_pairs + 3, 2)
            own = codes < n_pairs
            result, freedom = replicate_variance(z[own], variance[own], codes[own], np.zeros(n_pairs, dtype=bool))
            found.append(result.sum(1).mean())
        assert np.mean(found) == pytest.approx(0.6, rel=0.25)
        assert freedom[0] < 20

    def test_identical_replicates_change_nothing_for_others(self):
        z, variance, codes, is_control = simulated(np.random.default_rng(0))
        before = replicate_variance(z, variance, codes, is_control)[0]
        z[codes == 0] = z[0]
        after, freedom = replicate_variance(z, variance, codes, is_control)
        assert after[1:].mean() == pytest.approx(before[1:].mean(), rel=0.15)
        assert freedom.min() > 5

    def test_a_missing_standard_error_does_not_spread(self):
        z, variance, codes, is_control = simulated(np.random.default_rng(0))
        before = replicate_variance(z, variance, codes, is_control)[0]
        variance[0] = np.nan
        assert replicate_variance(z, variance, codes, is_control)[0] == pytest.approx(before, rel=0.1, abs=0.01)


@pytest.fixture(scope="module")
def screen():
    """Six targets of three guides each, one context."""
    adata = scgde.datasets.simulate_screen(
        6, 0, n_genes=50, n_latent=4, cells_per_population=(45, 45), control_cells=80, seed=3
    )
    adata.obs["target"] = adata.obs["perturbation"].astype(str)
    adata.obs["guide"] = adata.obs["target"] + np.array(["_a", "_b", "_c"])[np.arange(adata.n_obs) % 3]
    return adata


@pytest.fixture(scope="module")
def predictor(screen, quick_model):
    """Has not seen the last guide of p2."""
    known = screen[screen.obs["guide"] != "p2_c"].copy()
    model = quick_model(known, n_latent=5, n_embedding=20, setup={"population_key": ["target", "guide"]})
    return PerturbationPredictor(model, **KEYS).fit()


class TestCells:
    """Cells of pairs that were seen."""

    def test_three_quarters_start_from_their_own(self, predictor, screen):
        cells = predictor.predict("p0", n_cells=41, seed=0)
        assert cells.obs["gde_start"].value_counts().to_dict() == {"control": 11, "perturbed": 30}
        origin = screen.obs.loc[cells.obs["gde_source_cell"].astype(str), "target"].to_numpy().astype(str)
        assert (origin == np.where(cells.obs["gde_start"] == "control", "control", "p0")).all()
        assert set(cells.obs["guide"]) == {"predicted"}
        # in no order, so that the first cells are of both kinds
        assert cells.obs["gde_start"].iloc[:11].nunique() == 2
        assert (cells.X.toarray() >= 0).all()

    def test_their_own_come_once_however_many_are_asked_for(self, predictor):
        cells = predictor.predict("p0", n_cells=500, seed=0)
        own = cells.obs[cells.obs["gde_start"] == "perturbed"]
        assert len(own) == own["gde_source_cell"].nunique() == 45

    def test_a_pair_with_one_population_is_not_handed_back(self, screen, quick_model):
        model = quick_model(screen, n_latent=5, n_embedding=20, setup={"population_key": "target"})
        cells = PerturbationPredictor(model, **KEYS).fit().predict("p0", n_cells=30, seed=0)
        assert set(cells.obs["gde_start"]) == {"control"}

    def test_cells_of_no_population_are_no_replicate(self, screen, quick_model):
        known = screen.copy()
        known.obs["guide"] = known.obs["guide"].where(np.arange(known.n_obs) % 4 > 0)
        model = quick_model(known, n_latent=5, n_embedding=20, setup={"population_key": ["target", "guide"]})
        cells = PerturbationPredictor(model, **KEYS).fit().predict("p0", n_cells=100, seed=0)
        own = cells.obs["gde_source_cell"][cells.obs["gde_start"] == "perturbed"].astype(str)
        assert known.obs.loc[own, "guide"].notna().all()

    def test_what_is_written_for_a_challenge_starts_from_controls(self, predictor, tmp_path):
        written = predictor.write_cell_eval(str(tmp_path / "x.h5ad"), ["p0"], n_cells=40, seed=0)
        expected = predictor.predict("p0", n_cells=40, start="control", seed=0)
        assert (written[written.obs["target_gene"] == "p0"].X != expected.X).nnz == 0

    def test_repeats_with_its_seed(self, predictor):
        one, again, other = (predictor.predict("p1", n_cells=30, seed=s).X.toarray() for s in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).any()

    def test_all_start_from_control_where_that_is_asked_for(self, predictor, screen):
        for arguments in ({"n_cells": 30, "start": "control"}, {"n_cells": None}):
            cells = predictor.predict("p0", seed=0, **arguments)
            assert set(cells.obs["gde_start"]) == {"control"}
        for own in (screen[screen.obs["target"] == "control"].copy(), predictor.model.adata):
            assert set(predictor.predict("p0", adata=own, n_cells=30).obs["gde_start"]) == {"control"}

    def test_one_cell(self, predictor):
        assert predictor.predict("p0", n_cells=1).n_obs == 1

    def test_other_starts_are_refused(self, predictor):
        with pytest.raises(ValueError, match="start="):
            predictor.predict("p0", start="perturbed")

    def test_spread_of_replicates_is_reported(self, predictor):
        frame = predictor.predict_embedding(["p0", "p1"])
        error = np.array(frame.attrs["replicate_error"])
        assert error.shape == (2, 20)
        between = predictor._design.between[predictor._shifts.row_of(Treatment(("p0",)), "all")]
        assert error[0] ** 2 == pytest.approx(between)
        assert error[0].max() > 0

    def test_a_new_replicate_is_nearest_to_both(self, predictor, screen):
        new = screen[screen.obs["guide"] == "p2_c"].copy()
        rows = predictor.evaluate(new, per_population=True).set_index("method")
        assert rows.loc["scgde", "situation"] == "seen"
        assert rows.loc["scgde", "e_distance"] < 0.5 * rows.loc["control copy", "e_distance"]
        assert rows.loc["scgde", "in_region"] == 1

    def test_the_column_of_replicates_is_not_needed(self, predictor, screen):
        new = screen[screen.obs["guide"] == "p2_c"].copy()
        one = predictor.evaluate(new, per_population=True)
        del new.obs["guide"]
        pd.testing.assert_frame_equal(one, predictor.evaluate(new, per_population=True))

    def test_only_new_replicates_differ_from_those_that_trained(self, predictor, screen, monkeypatch):
        new = screen[screen.obs["guide"] == "p2_c"].copy()
        wide = np.full(20, 100.0), np.inf
        monkeypatch.setattr(ObservedShifts, "between", lambda *_: wide)
        level = predictor.evaluate(new, per_population=True).set_index("method").loc["scgde", "region_level"]
        assert level < 0.01
        new.obs["guide"] = "p2_a"
        level = predictor.evaluate(new, per_population=True).set_index("method").loc["scgde", "region_level"]
        assert level > 0.01

    def test_error_of_the_control_cancels(self, predictor, screen):
        design, shifts = predictor._fitted()
        row = shifts.row_of(Treatment(("p0",)), "all")
        error = np.array(predictor.predict_embedding("p0").attrs["standard_error"][0])
        assert error**2 == pytest.approx(design.variance[row])
        foreign = screen[screen.obs["target"] == "control"][:40].copy()
        more = np.array(predictor.predict_embedding("p0", adata=foreign).attrs["standard_error"][0])
        assert (more > error).all()

    def test_files_of_another_version_are_refused(self):
        design = {"contexts": [], "dose": [], "parts": [], "labels": []}
        with pytest.raises(ValueError, match="fit it again"):
            Design.from_dict(design)


def test_a_dose_in_single_precision_is_the_same_dose(screen, quick_model):
    known = screen[screen.obs["guide"].str[-1] != "c"].copy()
    dose = np.where(known.obs["guide"].str[-1] == "a", 0.1, 0.7).astype(np.float32)
    known.obs["dose"] = np.where(known.obs["target"] == "control", np.float32(0), dose)
    model = quick_model(known, n_latent=5, n_embedding=20, setup={"population_key": ["target", "dose"]})
    predictor = PerturbationPredictor(model, dose_key="dose", **KEYS).fit()
    frame = predictor.predict_embedding("p0", dose=[0.1, 0.7, float(np.float32(0.7))])
    assert frame.attrs["extrapolated"] == [False] * 3
    assert frame.iloc[1].to_numpy() == pytest.approx(frame.iloc[2].to_numpy())
    assert len(set(frame.attrs["freedom"])) <= 2
    assert 3.0 not in frame.attrs["freedom"]
