"""Mutual information from neighbours: against closed forms, the null, and what goes wrong."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import digamma

from scgde.datasets import lineage_information
from scgde.lineage import Projection, clone_information, ksg_information
from scgde.lineage._dependence import NormalDependence


def gaussian(n, d, r, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, r * x + np.sqrt(1 - r**2) * rng.normal(size=(n, d))


def compositions(n, n_cells=5, seed=0):
    """Early and late compositions of clones, with the information that their cells share."""
    rng = np.random.default_rng(seed)
    laws = 0.2 / 3 + 0.8 * np.eye(3)
    joint = (0.05 + 0.85 * np.eye(3)) / 3
    pairs = rng.choice(9, size=n, p=joint.ravel() / joint.sum())
    early, late = (np.array([rng.multinomial(n_cells, laws[i]) for i in v]) for v in (pairs // 3, pairs % 3))
    early, late = (v / n_cells + 0.02 * rng.normal(size=v.shape) for v in (early, late))
    # unrelated coordinates, of the size of the others
    noise = rng.normal(size=(2, n, 30)) * 0.5
    names = [f"clone_{i}" for i in range(n)]
    frames = [pd.DataFrame(np.hstack(v), index=names) for v in ((early, noise[0]), (late, noise[1]))]
    return *frames, lineage_information(joint / joint.sum(), laws, laws, n_cells, n_cells)


class TestKSG:
    """The estimator."""

    @pytest.mark.parametrize(("d", "r"), [(1, 0.9), (2, 0.6)])
    def test_gaussian(self, d, r):
        value = ksg_information(*gaussian(3000, d, r)).mean()
        assert value == pytest.approx(-d / 2 * np.log2(1 - r**2), abs=0.06)

    def test_independent(self):
        assert abs(ksg_information(*gaussian(2000, 2, 0.0)).mean()) < 0.06

    def test_is_symmetric_and_keeps_order(self):
        x, y = gaussian(300, 1, 0.8)
        one, other = ksg_information(x, y), ksg_information(y, x)
        assert one == pytest.approx(other, abs=1e-6)
        order = np.random.default_rng(0).permutation(300)
        assert ksg_information(x[order], y[order]) == pytest.approx(one[order], abs=1e-6)

    @pytest.mark.parametrize("k", [1, 4])
    def test_neighbours_counted_one_by_one(self, k):
        x, y = gaussian(60, 2, 0.7)
        near_x, near_y = (np.abs(v[:, None] - v[None]).max(2) for v in (x, y))
        both = np.maximum(near_x, near_y)
        expected = []
        for i in range(60):
            reach = np.sort(np.delete(both[i], i))[k - 1]
            n_x, n_y = ((np.delete(v[i], i) < reach).sum() for v in (near_x, near_y))
            expected.append((digamma(k) + digamma(60) - digamma(n_x + 1) - digamma(n_y + 1)) / np.log(2))
        assert ksg_information(x, y, k) == pytest.approx(expected)

    def test_input_that_cannot_be(self):
        x, y = gaussian(20, 1, 0.5)
        with pytest.raises(ValueError, match="k=20"):
            ksg_information(x, y, k=20)
        with pytest.raises(ValueError, match="rows"):
            ksg_information(x, y[:-1])
        with pytest.raises(ValueError, match="NaN"):
            ksg_information(np.where(x > 1, np.nan, x), y)


class TestClones:
    """Held-out clones, projection and null."""

    def test_is_that_of_the_observed_cells(self):
        early, late, expected = compositions(2000)
        found = clone_information(early, late, n_permutations=20)
        assert found.bits == pytest.approx(expected, rel=0.12)
        assert found.interval[0] < found.bits < found.interval[1]
        assert found.n_components == 2
        assert found.n_clones == 2000  # halves teach each other
        assert found.pointwise.mean() == pytest.approx(found.raw)
        assert found.p_value == pytest.approx(1 / 21)

    def test_shuffled_clones_share_nothing(self):
        early, late, _ = compositions(1000)
        late.index = np.random.default_rng(0).permutation(late.index)
        found = clone_information(early, late, n_permutations=40)
        assert abs(found.bits) < 0.2
        assert found.p_value > 0.02

    def test_without_projection_little_is_seen(self):
        early, late, expected = compositions(1000)
        assert ksg_information(early.to_numpy(), late.to_numpy()).mean() < 0.6 * expected

    def test_projection_to_training_clones_does_not_see_the_others(self):
        early, late, _ = compositions(400)
        chosen = list(early.index[:200])
        one = clone_information(early, late, training=chosen, n_permutations=5)
        assert set(one.pointwise.index) == set(early.index[200:])
        changed = early.copy()
        changed.iloc[250:] += 10.0
        left, right = (Projection(e.loc[chosen], late.loc[chosen]).axes[0] for e in (early, changed))
        assert left == pytest.approx(right)

    def test_clones_at_one_time_have_no_part(self):
        early, late, _ = compositions(200)
        found = clone_information(early.iloc[:150], late.iloc[50:], n_permutations=5)
        assert found.n_clones == 100

    def test_input_that_cannot_be(self):
        early, late, _ = compositions(100)
        with pytest.raises(ValueError, match="at least 10"):
            clone_information(early.iloc[:15], late, n_permutations=5)
        with pytest.raises(ValueError, match="several rows"):
            clone_information(pd.concat([early, early]), late)


class TestSeveralDimensions:
    """Dependence that spreads, classes, and what chance gives."""

    @staticmethod
    def frames(x, y, n_noise=8, seed=0):
        rng = np.random.default_rng(seed + 1000)
        turned = []
        for v in (x, y):
            v = np.hstack([v, rng.normal(size=(len(v), n_noise))])
            basis = np.linalg.qr(rng.normal(size=(v.shape[1],) * 2))[0]
            turned.append(pd.DataFrame(v @ basis, index=[f"clone_{i}" for i in range(len(v))]))
        return turned

    @pytest.mark.parametrize(("d", "r"), [(2, 0.7), (4, 0.7), (8, 0.6)])
    def test_normal_pairs(self, d, r):
        truth = -d / 2 * np.log2(1 - r**2)
        found = [
            clone_information(*self.frames(*gaussian(300, d, r, seed=s), seed=s), n_permutations=20) for s in range(10)
        ]
        assert {f.method for f in found} == {"normal"}
        # five standard errors of a mean of ten
        assert np.mean([f.bits for f in found]) == pytest.approx(truth, abs=0.2)
        assert sum(f.interval[0] <= truth <= f.interval[1] for f in found) >= 8

    def test_independent(self):
        found = [
            clone_information(*self.frames(*gaussian(200, 4, 0.0, seed=s), seed=s), n_permutations=20)
            for s in range(20)
        ]
        assert abs(np.mean([f.bits for f in found])) < 0.06
        p = np.array([f.p_value for f in found])
        assert 0.3 < p.mean() < 0.7
        assert (p < 0.06).sum() <= 4

    def test_numbers_of_cells_that_go_together(self):
        """Means of cells of one law scatter less where both sides have more cells: no information but that of sizes."""
        found = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            n_early = rng.geometric(0.2, 150)
            n_late = 1 + rng.poisson(1.5 * n_early)
            names = [f"clone_{i}" for i in range(150)]
            early, late = (
                pd.DataFrame(rng.normal(size=(150, 20)) / np.sqrt(n)[:, None], names) for n in (n_early, n_late)
            )
            sizes = pd.Series(n_late, names).sample(frac=1, random_state=seed)
            found.append([clone_information(early, late, n_permutations=39, n_cells=s) for s in (None, sizes)])
        assert np.mean([one.bits for one, _ in found]) > 0.5
        assert abs(np.mean([given.bits for _, given in found])) < 0.25
        assert sum(given.p_value <= 0.05 for _, given in found) <= 3

    def test_numbers_of_cells_take_nothing_from_others(self):
        early, late = self.frames(*gaussian(300, 4, 0.7, seed=1), seed=1)
        size = pd.Series(np.random.default_rng(0).geometric(0.2, 300), early.index)
        plain, given = (clone_information(early, late, n_permutations=20, n_cells=s).bits for s in (None, size))
        assert given == pytest.approx(plain, abs=0.1)

    def test_equal_numbers_of_cells_take_nothing(self):
        """One clone in ten keeps its own late population in a permutation, which is no chance."""
        taken = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            classes = rng.integers(8, size=60)
            names = [f"clone_{i}" for i in range(60)]
            early, late = (pd.DataFrame(8 * np.eye(8)[classes] + rng.normal(size=(60, 8)), names) for _ in range(2))
            plain, given = (
                clone_information(early, late, n_permutations=40, n_cells=s).bits for s in (None, pd.Series(5, names))
            )
            taken.append(plain - given)
        assert np.mean(taken) < 0.01

    def test_numbers_of_cells_that_cannot_be(self):
        early, late = self.frames(*gaussian(60, 2, 0.7))
        with pytest.raises(ValueError, match=r"n_cells has no number for the clones \['clone_59'\]"):
            clone_information(early, late, n_cells=pd.Series(3, early.index[:-1]))
        with pytest.raises(ValueError, match=r"several entries for the clones \['clone_0'\]"):
            clone_information(early, late, n_cells=pd.Series(3, ["clone_0", *early.index]))
        with pytest.raises(TypeError, match="n_cells is a ndarray and must be a Series"):
            clone_information(early, late, n_cells=np.full(60, 3))

    def test_classes(self):
        """Eight classes: two bits and more, in seven dimensions, where correlations alone would give too much."""
        rng = np.random.default_rng(0)
        early = rng.integers(8, size=600)
        late = np.where(rng.random(600) < 0.8, early, rng.integers(8, size=600))
        stay = 0.8 + 0.2 / 8
        truth = 3 + stay * np.log2(stay) + 7 * 0.025 * np.log2(0.025)
        x, y = (8 * np.eye(8)[v] + rng.normal(size=(600, 8)) for v in (early, late))
        found = clone_information(*self.frames(x, y), n_permutations=20)
        assert found.method == "classes"
        assert found.bits == pytest.approx(truth, rel=0.12)
        assert found.pointwise.mean() == pytest.approx(found.raw)

    def test_chance_is_that_of_permutations(self):
        rng = np.random.default_rng(0)
        normal = NormalDependence(rng.normal(size=(100, 5)), rng.normal(size=(100, 8)))
        draws = [normal.local(rng.permutation(100)).mean() for _ in range(400)]
        mean, spread = normal.chance
        assert np.mean(draws) == pytest.approx(mean, abs=5 * spread / 20)
        assert np.std(draws) == pytest.approx(spread, rel=0.2)
