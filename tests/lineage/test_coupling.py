"""Coupling of sisters: against pairs one by one, the null, states that clones prefer, and what goes wrong."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from scgde.lineage import clonal_coupling


def units(n_clones=40, size=4, d=5, coupling=0.0, n_states=3, seed=0):
    """Units of clones with a mean of their own, in states far apart that clones have no part in."""
    rng = np.random.default_rng(seed)
    clone = np.repeat(np.arange(n_clones), size)
    state = rng.integers(n_states, size=len(clone))
    x = 10 * rng.normal(size=(n_states, d))[state] + coupling * rng.normal(size=(n_clones, d))[clone]
    names = [f"unit_{i}" for i in range(len(clone))]
    obs = pd.DataFrame({"clone": [f"c{i}" for i in clone], "state": state}, index=names)
    return pd.DataFrame(x + rng.normal(size=x.shape), index=names), obs


def one_by_one(x, clones, strata):
    """Within, between and coupling of each clone, from all pairs."""
    own, other = {}, {}
    for i in range(len(x)):
        for j in range(i):
            if strata[i] == strata[j]:
                distance = np.linalg.norm(x[i] - x[j])
                pairs = own.setdefault(strata[i], []) if clones[i] == clones[j] else other.setdefault(strata[i], [])
                pairs.append((clones[i], distance))
    between = {s: np.mean([v for _, v in pairs]) for s, pairs in other.items()}
    rows = [(c, v, between[s]) for s, pairs in own.items() if s in between for c, v in pairs]
    frame = pd.DataFrame(rows, columns=["clone", "own", "other"])
    sums = frame.groupby("clone").sum()
    return frame["own"].mean(), frame["other"].mean(), sums["own"] / sums["other"], len(frame)


class TestRatio:
    """The statistic."""

    def test_pairs_counted_one_by_one(self):
        x, obs = units(n_clones=12, size=3, coupling=1.0)
        obs.loc["unit_0":"unit_8", "clone"] = "large"
        # a stratum of one clone has nothing to compare with
        obs.loc["unit_9":"unit_11", "state"] = 7
        found = clonal_coupling(x, obs["clone"], obs["state"], n_permutations=10)
        within, between, each, n_pairs = one_by_one(x.to_numpy(), obs["clone"].tolist(), obs["state"].tolist())
        assert found.within == pytest.approx(within)
        assert found.between == pytest.approx(between)
        assert found.ratio == pytest.approx(within / between)
        assert found.n_pairs == n_pairs
        assert found.n_clones == len(each)
        assert found.per_clone.to_dict() == pytest.approx(each.to_dict())
        assert "c3" not in found.per_clone

    def test_is_found_where_it_is(self):
        x, obs = units(coupling=2.0)
        found = clonal_coupling(x, obs["clone"], obs["state"], n_permutations=500)
        # differences of sisters have variance 2, of strangers 2 + 2 * 2 ** 2
        assert found.ratio == pytest.approx(1 / np.sqrt(5), abs=0.06)
        assert found.p_value == pytest.approx(1 / 501)
        assert found.z_score < -5
        assert found.null.mean() == pytest.approx(1, abs=0.02)
        assert (found.per_clone < 1).mean() > 0.9

    def test_p_values_are_uniform_without(self):
        values = []
        for seed in range(60):
            x, obs = units(seed=seed)
            found = clonal_coupling(x, obs["clone"], obs["state"], n_permutations=99, seed=seed)
            values.append(found.p_value)
        assert np.mean(values) == pytest.approx(0.5, abs=0.12)
        assert 0.1 < np.mean(np.array(values) < 0.25) < 0.42

    def test_clones_that_prefer_a_state_are_not_coupled(self):
        rng = np.random.default_rng(1)
        x, obs = units(n_states=1)
        preferred = np.repeat(rng.integers(2, size=40), 4)
        state = np.where(rng.random(160) < 0.85, preferred, 1 - preferred)
        x = x + 10 * np.eye(5)[state]
        blind = clonal_coupling(x, obs["clone"], n_permutations=500)
        assert blind.p_value == pytest.approx(1 / 501)
        assert blind.ratio < 0.95
        found = clonal_coupling(x, obs["clone"], state, n_permutations=500)
        assert found.p_value > 0.05
        assert found.ratio == pytest.approx(1, abs=0.05)

    def test_columns_are_crossed_and_rows_without_labels_dropped(self):
        x, obs = units(coupling=1.0)
        obs["well"] = np.arange(len(obs)) // 2 % 2
        crossed = obs["state"].astype(str) + "_" + obs["well"].astype(str)
        one = clonal_coupling(x, obs["clone"], obs[["state", "well"]], n_permutations=20)
        other = clonal_coupling(x, obs["clone"], crossed, n_permutations=20)
        assert one.ratio == pytest.approx(other.ratio)
        assert one.n_pairs == other.n_pairs
        obs["state"] = obs["state"].astype(float)
        obs.iloc[:8, 0], obs.iloc[8:12, 1] = None, np.nan
        # what a row without labels holds does not matter
        x.iloc[:12] = np.nan
        dropped = clonal_coupling(x, obs["clone"], obs["state"], n_permutations=20)
        rest = clonal_coupling(x.iloc[12:], obs["clone"].iloc[12:], obs["state"].iloc[12:], n_permutations=20)
        assert dropped.ratio == pytest.approx(rest.ratio)
        assert dropped.null == pytest.approx(rest.null)
        assert dropped.p_value == rest.p_value

    def test_same_seed_same_result_and_equal_divisions_are_ties(self):
        x, obs = units(coupling=0.5)
        one, other = (clonal_coupling(x.to_numpy(), obs["clone"].tolist(), seed=3, n_permutations=50) for _ in range(2))
        assert np.array_equal(one.null, other.null)
        # of four units in two clones, a third of permutations gives the same pairs
        x = np.array([[0.1, 0.3], [0.7, 0.2], [5.1, 3.3], [5.3, 2.9]])
        found = clonal_coupling(x, list("aabb"), n_permutations=3000)
        assert found.p_value == pytest.approx(1 / 3, abs=0.04)


class TestSize:
    """Strata that are not taken whole."""

    @pytest.mark.parametrize("large", [3, 100, 500])
    def test_drawn_pairs_tell_what_all_pairs_do(self, large):
        rng = np.random.default_rng(0)
        clone = np.concatenate([np.zeros(large, dtype=int), 1 + np.arange(600 - large) // 3])
        x = rng.normal(size=(600, 3)) + 1.5 * rng.normal(size=(200, 3))[clone]
        whole = clonal_coupling(x, clone, n_permutations=100)
        drawn = clonal_coupling(x, clone, n_permutations=100, max_pairs=20_000)
        assert drawn.n_pairs == whole.n_pairs
        assert drawn.n_clones == whole.n_clones
        assert drawn.within == pytest.approx(whole.within, rel=0.02)
        assert drawn.between == pytest.approx(whole.between, rel=0.02)
        assert drawn.null.mean() == pytest.approx(whole.null.mean(), abs=0.01)
        assert drawn.null.std() == pytest.approx(whole.null.std(), rel=0.4)
        common = whole.per_clone.index[1:]
        assert drawn.per_clone[common].to_numpy() == pytest.approx(whole.per_clone[common].to_numpy(), rel=0.02)

    def test_p_values_are_uniform_with_drawn_pairs(self):
        values = []
        for seed in range(40):
            x = np.random.default_rng(seed).normal(size=(80, 2))
            clone = np.concatenate([np.zeros(70, dtype=int), 1 + np.arange(10) // 2])
            values.append(clonal_coupling(x, clone, n_permutations=59, max_pairs=300, seed=seed).p_value)
        assert np.mean(values) == pytest.approx(0.5, abs=0.14)

    def test_many_units_are_never_compared_all(self):
        n = 30_000
        rng = np.random.default_rng(0)
        clone = np.arange(n) // 3
        clone[:4000] = -1
        x = (rng.normal(size=(n, 8)) + 0.5 * rng.normal(size=(n, 8))[clone]).astype(np.float32)
        tracemalloc.start()
        found = clonal_coupling(x, clone, n_permutations=10)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.05 * 4 * n**2
        assert found.n_pairs > 4000 * 3999 // 2
        assert found.ratio == pytest.approx(1 / np.sqrt(1.25), abs=0.02)
        assert found.per_clone.drop("-1").median() == pytest.approx(1 / np.sqrt(1.25), abs=0.03)


class TestInput:
    """What goes wrong."""

    def test_labels_that_teach_nothing(self):
        x, obs = units(n_clones=10)
        with pytest.raises(ValueError, match="singletons teach nothing"):
            clonal_coupling(x, obs.index)
        with pytest.raises(ValueError, match="singletons teach nothing"):
            clonal_coupling(x, obs["clone"], obs.index)
        with pytest.raises(ValueError, match="among 0 rows"):
            clonal_coupling(x, [None] * len(x))
        with pytest.raises(ValueError, match="no pairs of different clones"):
            clonal_coupling(x, obs["clone"], obs["clone"])
        with pytest.raises(ValueError, match="same coordinates"):
            clonal_coupling(x * 0, obs["clone"])

    def test_rows_that_do_not_fit(self):
        x, obs = units(n_clones=10)
        with pytest.raises(ValueError, match="clones has 39 entries and x 40"):
            clonal_coupling(x, obs["clone"].iloc[1:])
        with pytest.raises(ValueError, match="strata has 39 entries"):
            clonal_coupling(x, obs["clone"], obs["state"].iloc[1:])
        with pytest.raises(ValueError, match="another order"):
            clonal_coupling(x, obs["clone"].iloc[::-1])
        with pytest.raises(ValueError, match="strata has other row names than clones, or in another order"):
            clonal_coupling(x.to_numpy(), obs["clone"], obs[["state"]].iloc[::-1])
        with pytest.raises(ValueError, match="dimensions"):
            clonal_coupling(x[0], obs["clone"])

    def test_values_and_arguments(self):
        x, obs = units(n_clones=10)
        with pytest.raises(ValueError, match="NaN"):
            clonal_coupling(x.where(x < x.max()), obs["clone"])
        with pytest.raises(ValueError, match="n_permutations=0"):
            clonal_coupling(x, obs["clone"], n_permutations=0)
        with pytest.raises(ValueError, match="max_pairs=0"):
            clonal_coupling(x, obs["clone"], max_pairs=0)
