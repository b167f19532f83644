"""Replicates of a perturbation: how much they differ, and cells that start from them."""

import numpy as np
import pandas as pd
import pytest

import scgde
from scgde import PerturbationPredictor
from scgde.perturbation.calibration import region_level
from scgde.perturbation.design import Design, Treatment
from scgde.perturbation.observed import ObservedShifts
from scgde.perturbation.replicates import replicate_variance

KEYS = {"perturbation_key": "target", "control": "control"}


def simulated(rng, n_pairs=60, n_replicates=4, between=(0.5, 0.1, 0.0), sampling=0.05):
    """Replicates around the centres of pairs, the last three pairs controls that differ little."""
    codes = np.repeat(np.arange(n_pairs), n_replicates)
    centres = rng.normal(size=(n_pairs, 3))
    is_control = np.arange(n_pairs) >= n_pairs - 3
    spread = np.where(is_control[:, None], 0.01, np.asarray(between))
    true = centres[codes] + rng.normal(size=(len(codes), 3)) * np.sqrt(spread[codes])
    z = true + rng.normal(size=true.shape) * np.sqrt(sampling)
    return z, np.full_like(z, sampling), codes, is_control


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

    def test_regions_of_new_replicates_hold_what_they_say(self):
        inside, without = [], []
        for seed in range(5):
            z, variance, codes, is_control = simulated(np.random.default_rng(seed))
            first = np.r_[True, codes[1:] != codes[:-1]] & ~is_control[codes]
            treatments = [Treatment(("control",) if c else (f"p{i}",)) for i, c in enumerate(is_control)]
            table = pd.DataFrame({"context": "all", "treatment": [treatments[c] for c in codes], "n_cells": 50})
            design = Design.from_populations(table[~first], z[~first], variance[~first], "control")
            shifts = ObservedShifts(design)
            control = design.z[design.control_row("all")]
            for i in np.flatnonzero(first):
                shift = shifts.observed(treatments[codes[i]], "all")
                error = z[i] - control - shift.mean
                level = region_level(error, shift.variance, variance[i], shift.freedom, shift.ratios)
                without.append(level < 0.9)
                between, freedom = shifts.between(treatments[codes[i]], "all")
                level = region_level(error, shift.variance + between, variance[i], freedom, shift.ratios)
                inside.append(level < 0.9)
        assert 0.85 < np.mean(inside) < 0.95
        assert np.mean(without) < 0.8


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
    model = quick_model(known, n_latent=5, n_embedding=24, setup={"population_key": ["target", "guide"]})
    return PerturbationPredictor(model, **KEYS).fit()


class TestCells:
    """Cells of pairs that were seen."""

    def test_three_quarters_start_from_their_own(self, predictor, screen):
        cells = predictor.predict("p0", n_cells=41, seed=0)
        assert cells.obs["gde_start"].value_counts().to_dict() == {"control": 11, "perturbed": 30}
        origin = screen.obs.loc[cells.obs["gde_source_cell"].astype(str), "target"].to_numpy().astype(str)
        assert (origin == np.where(cells.obs["gde_start"] == "control", "control", "p0")).all()
        # in no order, so that the first cells are of both kinds
        assert cells.obs["gde_start"].iloc[:11].nunique() == 2
        assert (cells.X.toarray() >= 0).all()

    def test_each_once_before_one_comes_again(self, predictor):
        cells = predictor.predict("p0", n_cells=60, seed=0)
        assert cells.obs["gde_source_cell"].is_unique

    def test_repeats_with_its_seed(self, predictor):
        one, again, other = (predictor.predict("p1", n_cells=30, seed=s).X.toarray() for s in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).any()

    def test_all_start_from_control_where_that_is_asked_for(self, predictor, screen):
        for arguments in ({"n_cells": 30, "start": "control"}, {"n_cells": None}):
            cells = predictor.predict("p0", seed=0, **arguments)
            assert set(cells.obs["gde_start"]) == {"control"}
        own = screen[screen.obs["target"] == "control"].copy()
        assert set(predictor.predict("p0", adata=own, n_cells=30).obs["gde_start"]) == {"control"}

    def test_one_cell(self, predictor):
        assert predictor.predict("p0", n_cells=1).n_obs == 1

    def test_other_starts_are_refused(self, predictor):
        with pytest.raises(ValueError, match="start="):
            predictor.predict("p0", start="perturbed")

    def test_spread_of_replicates_is_reported(self, predictor):
        frame = predictor.predict_embedding(["p0", "p1"])
        assert np.shape(frame.attrs["replicate_error"]) == (2, 24)

    def test_a_new_replicate_is_nearest_to_both(self, predictor, screen):
        new = screen[screen.obs["guide"] == "p2_c"].copy()
        rows = predictor.evaluate(new, per_population=True).set_index("method")
        assert rows.loc["scgde", "situation"] == "seen"
        assert rows.loc["scgde", "e_distance"] < 0.5 * rows.loc["control copy", "e_distance"]
        assert rows.loc["scgde", "in_region"] == 1
