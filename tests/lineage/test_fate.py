"""Fates from early embeddings: against what the simulation allows, and what goes wrong."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from scgde.datasets import fate_probabilities
from scgde.lineage import late_composition, posterior_embedding, predict_fate

LAWS = 0.1 + 0.6 * np.eye(4)
JOINT = (0.05 + 0.8 * np.eye(4)) / 4


@pytest.fixture(scope="module")
def clones():
    """Compositions of five early cells in a rotated space, late classes, and what the best classifier knows."""
    rng = np.random.default_rng(0)
    pairs = rng.choice(16, size=3000, p=JOINT.ravel())
    counts = np.array([rng.multinomial(5, LAWS[i]) for i in pairs // 4])
    names = [f"clone_{i}" for i in range(3000)]
    x = np.hstack([counts / 5, 0.2 * rng.normal(size=(3000, 6))]) @ np.linalg.qr(rng.normal(size=(10, 10)))[0]
    late = pd.Series([f"fate_{i}" for i in pairs % 4], index=names)
    return pd.DataFrame(x, index=names), late, pd.DataFrame(fate_probabilities(counts, JOINT, LAWS), index=names)


class TestFate:
    """Classes and compositions."""

    def test_is_nearly_the_best_that_can_be(self, clones):
        early, late, best = clones
        fate = predict_fate(early, late)
        held = fate.probabilities.index
        limit = np.mean([roc_auc_score(late[held] == f"fate_{i}", best.loc[held, i]) for i in range(4)])
        assert limit - 0.01 < fate.mean_auroc <= limit + 0.005
        assert np.abs(fate.probabilities.to_numpy() - best.loc[held].to_numpy()).mean() < 0.06
        assert fate.log_loss < fate.baseline - 0.3

    def test_numbers_of_cells_are_evidence(self, clones):
        early, late, _ = clones
        rng = np.random.default_rng(1)
        number = rng.choice([1, 25], size=len(early))
        # of one law and many or few cells
        law = late.str[-1].astype(int).to_numpy()
        x = np.array([rng.multinomial(n, LAWS[i] / LAWS[i].sum()) / n for n, i in zip(number, law, strict=True)])
        frame = pd.DataFrame(x, index=early.index)
        plain, weighted = (predict_fate(frame, late, n_cells=n) for n in (None, pd.Series(number, index=early.index)))
        assert plain.power == 0
        assert weighted.power > 0
        assert weighted.log_loss < plain.log_loss - 0.03
        with pytest.raises(ValueError, match="n_cells"):
            predict_fate(frame, late, n_cells=pd.Series(number, index=early.index).iloc[:-1])

    def test_compositions(self, clones):
        early, late, _ = clones
        whole = pd.get_dummies(late) * 10 + 1
        fate = predict_fate(early, whole)
        assert fate.probabilities.sum(axis=1).to_numpy() == pytest.approx(1)
        assert fate.truth.max().max() == pytest.approx(11 / 14)
        # shares are between those of the mean and those of classes
        assert fate.probabilities.max().max() < 0.9

    def test_shuffled_fates_are_not_predicted(self, clones):
        early, late, _ = clones
        shuffled = pd.Series(np.random.default_rng(0).permutation(late), index=late.index)
        fate = predict_fate(early, shuffled)
        assert fate.mean_auroc == pytest.approx(0.5, abs=0.05)
        assert fate.log_loss < fate.baseline + 0.02

    def test_only_training_clones_teach(self, clones):
        early, late, _ = clones
        training = list(early.index[:1500])
        one = predict_fate(early, late, training=training)
        changed = late.copy()
        changed.iloc[1500:] = "fate_0"
        assert np.allclose(one.probabilities, predict_fate(early, changed, training=training).probabilities)

    def test_input_that_cannot_be(self, clones):
        early, late, _ = clones
        with pytest.raises(ValueError, match="same fate"):
            predict_fate(early, pd.Series("a", index=late.index))
        with pytest.raises(ValueError, match="at least 10"):
            predict_fate(early.iloc[:12], late)
        with pytest.raises(ValueError, match="several rows"):
            predict_fate(pd.concat([early, early]), late)
        with pytest.raises(ValueError, match="negative"):
            predict_fate(early, pd.get_dummies(late) - 1.0)


class TestPosterior:
    """Small populations."""

    def test_is_nearer_to_the_truth(self):
        rng = np.random.default_rng(0)
        truth = rng.normal(size=(500, 3)) * [2.0, 1.0, 0.0] + [0.0, 0.0, 5.0]
        error = np.sqrt(1 / rng.choice([1, 20], 500))[:, None] * np.ones(3)
        names = [f"p{i}" for i in range(500)]
        z = pd.DataFrame(truth + error * rng.normal(size=truth.shape), index=names)
        shrunk = posterior_embedding(z, pd.DataFrame(error, index=names))
        before, after = (np.square(v.to_numpy() - truth) for v in (z, shrunk))
        # what the normal prior allows, by coordinate and number of cells
        for d, b in enumerate((4.0, 1.0, 0.0)):
            for e in (1.0, 0.05):
                own = np.isclose(error[:, 0] ** 2, e)
                assert after[own, d].mean() < b * e / (b + e) * 1.25 + 0.02
        assert after.sum() < 0.6 * before.sum()

    def test_without_errors_nothing_changes(self):
        z = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)))
        assert posterior_embedding(z, z * 0).to_numpy() == pytest.approx(z.to_numpy())

    def test_one_cell_has_no_error_and_is_drawn_most(self):
        rng = np.random.default_rng(0)
        z = pd.DataFrame(rng.normal(size=(50, 2)) * 2)
        error = pd.DataFrame(np.full((50, 2), 0.5))
        error.iloc[0], error.iloc[1] = np.nan, 1.0
        shrunk = posterior_embedding(z, error)
        assert np.isfinite(shrunk.to_numpy()).all()
        with pytest.raises(ValueError, match="same populations"):
            posterior_embedding(z, error.iloc[::-1])


class TestComposition:
    """Counts of late cells."""

    @pytest.fixture
    def obs(self):
        return pd.DataFrame(
            {
                "clone": ["a", "a", "b", None, "b", "c", "a", "c"],
                "fate": pd.Categorical(["x", "y", "x", "x", None, "y", "x", "x"], categories=["x", "y", "z"]),
                "day": [6, 6, 6, 6, 6, 4, 6, 2],
            },
            index=["cell"] * 8,
        )

    def test_counts_cells(self, obs):
        counts = late_composition(obs, "clone", "fate", "day", 6)
        assert counts.to_dict("index") == {"a": {"x": 2, "y": 1}, "b": {"x": 1, "y": 0}}
        assert counts.index.name == "clone"
        whole = late_composition(obs, "clone", "fate")
        assert whole.to_numpy().sum() == 6
        assert whole.loc["c"].to_dict() == {"x": 1, "y": 1}
        assert late_composition(obs, "clone", "fate", "day").equals(whole)

    @pytest.mark.parametrize("kind", [int, float, str, "category", "decimals"])
    def test_times_match_however_they_are_written(self, obs, kind):
        expected = late_composition(obs, "clone", "fate", "day", 6)
        obs["day"] = obs["day"].astype(float).astype(str) if kind == "decimals" else obs["day"].astype(kind)
        for time in (6, "6", 6.0, "6.0", np.int64(6)):
            assert late_composition(obs, "clone", "fate", "day", time).equals(expected)

    def test_missing_times_and_names(self, obs):
        obs["day"] = ["late", "late", None, "late", "early", "early", "late", np.nan]
        assert late_composition(obs, "clone", "fate", "day", "late").to_numpy().sum() == 3
        with pytest.raises(ValueError, match=r"there are \['early', 'late'\]"):
            late_composition(obs, "clone", "fate", "day", "nan")

    def test_numbers_of_clones_are_names_of_populations(self, obs):
        obs["clone"] = [1.0, 1.0, 2.0, np.nan, 2.0, 3.0, 1.0, 3.0]
        assert late_composition(obs, "clone", "fate").index.tolist() == ["1", "2", "3"]

    def test_is_what_fates_are_predicted_of(self, clones):
        early, late, _ = clones
        early, late = early.iloc[:200], late.iloc[:200]
        rng = np.random.default_rng(0)
        cells = pd.DataFrame({"clone": np.repeat(late.index, 3), "fate": np.repeat(late.to_numpy(), 3)})
        cells = cells.iloc[rng.permutation(len(cells))]
        one = predict_fate(early, late_composition(cells, "clone", "fate"))
        other = predict_fate(early, late)
        pd.testing.assert_frame_equal(one.probabilities, other.probabilities, check_names=False)

    def test_many_clones_need_no_matrix_of_cells(self):
        n = 100_000
        cells = pd.DataFrame({"clone": np.arange(n) // 2, "fate": np.arange(n) % 2})
        counts = late_composition(cells, "clone", "fate")
        assert counts.shape == (n // 2, 2)
        assert (counts == 1).all(axis=None)

    def test_input_that_cannot_be(self, obs):
        for keys in (("barcode", "fate"), ("clone", "state"), ("clone", "fate", "time")):
            with pytest.raises(KeyError, match=f"'{[k for k in keys if k not in obs][0]}' is not a column"):
                late_composition(obs, *keys)
        with pytest.raises(ValueError, match="needs time_key="):
            late_composition(obs, "clone", "fate", time=6)
        with pytest.raises(ValueError, match=r"day=8; there are \['2', '4', '6'\]"):
            late_composition(obs, "clone", "fate", "day", 8)
        obs["clone"] = obs["clone"].where(obs["day"] < 6)
        with pytest.raises(ValueError, match="None of 6 cells has both a clone"):
            late_composition(obs, "clone", "fate", "day", 6)


def test_posterior_needs_standard_errors():
    z = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 2)))
    with pytest.raises(ValueError, match="Populations of one cell have none"):
        posterior_embedding(z, z * np.nan)
    with pytest.raises(ValueError, match="1 populations"):
        posterior_embedding(z[:1], z[:1].abs())


def test_clones_are_named_and_not_masked(clones):
    early, late, _ = clones
    with pytest.raises(TypeError, match="mask"):
        predict_fate(early, late, training=[True] * len(early))
    numbered = early.set_axis(range(len(early)))
    fate = predict_fate(numbered, late.set_axis(numbered.index), training=[str(i) for i in range(1500)])
    assert len(fate.probabilities) == 1500
