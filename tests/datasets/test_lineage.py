"""Simulated clones: laws, cells, and information that is a finite sum."""

import numpy as np
import pytest
from scipy.stats import entropy

from scgde.datasets import fate_probabilities, lineage_information, simulate_lineage


@pytest.fixture(scope="module")
def adata():
    return simulate_lineage(300, n_genes=40, early_cells=(4, 8), late_cells=(10, 20), seed=1)


class TestCells:
    """Cells follow the laws of their clones."""

    def test_shape_and_columns(self, adata):
        assert set(adata.obs) == {"clone", "time", "state", "batch"}
        assert adata.obs["clone"].isna().mean() == pytest.approx(0.3, abs=0.01)
        assert (adata.X.data == adata.X.data.round()).all()
        assert adata.obs["clone"].nunique() == 300

    def test_sizes_of_clones(self, adata):
        sizes = adata.obs.groupby(["clone", "time"], observed=True).size().unstack()
        assert sizes["early"].between(4, 8).all()
        assert sizes["late"].between(10, 20).all()

    def test_states_follow_the_laws(self, adata):
        truth = adata.uns["simulation"]
        own = adata.obs[adata.obs["clone"].notna()]
        code = own["clone"].astype(str).str.removeprefix("clone_").astype(int).to_numpy()
        for time, laws, name, first in (("early", "early_laws", "early_law", 0), ("late", "late_laws", "late_law", 6)):
            here = (own["time"] == time).to_numpy()
            law = truth[name][code[here]]
            state = np.array([list(truth["populations"]).index(s) - first for s in own["state"][here]])
            for i in range(4):
                share = np.bincount(state[law == i], minlength=truth[laws].shape[1]) / (law == i).sum()
                assert np.abs(share - truth[laws][i]).max() < 0.06

    def test_memory_is_kept_with_its_fidelity(self):
        truth = simulate_lineage(4000, n_genes=2, early_cells=(0, 1), late_cells=(0, 1), fidelity=0.7).uns["simulation"]
        assert (truth["early_law"] == truth["late_law"]).mean() == pytest.approx(0.7, abs=0.03)
        assert truth["joint"].sum() == pytest.approx(1)

    @pytest.mark.parametrize(
        "wrong", [{"n_early_states": 3}, {"fidelity": 1.2}, {"unbarcoded": 1.0}, {"n_fates": 1}, {"separation": 0.0}]
    )
    def test_arguments_out_of_range(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            simulate_lineage(10, **wrong)


class TestInformation:
    """Sums over outcomes."""

    def test_of_laws(self):
        joint = np.diag([0.5, 0.5])
        assert lineage_information(joint) == pytest.approx(1.0)
        assert lineage_information(np.full((3, 3), 1 / 9)) == pytest.approx(0.0, abs=1e-12)

    def test_one_cell_by_hand(self):
        joint, early = np.diag([0.5, 0.5]), np.array([[0.9, 0.1], [0.1, 0.9]])
        expected = 1 - entropy([0.9, 0.1], base=2)
        assert lineage_information(joint, early, n_early=1) == pytest.approx(expected)

    def test_grows_with_cells_to_that_of_laws(self, adata):
        truth = adata.uns["simulation"]
        parts = truth["joint"], truth["early_laws"], truth["late_laws"]
        values = [lineage_information(*parts, n, n) for n in (1, 3, 6, 12)]
        assert (np.diff(values) > 0).all()
        assert values[-1] < lineage_information(truth["joint"])

    def test_states_in_proportion_tell_nothing_apart(self):
        joint = np.diag([0.5, 0.5])
        laws, split = np.array([[0.8, 0.2], [0.2, 0.8]]), np.array([[0.5, 0.3, 0.2], [0.125, 0.075, 0.8]])
        one, other = (lineage_information(joint, v, n_early=4) for v in (laws, split))
        assert one == pytest.approx(other)

    def test_agrees_with_a_simulation(self, adata):
        truth, rng = adata.uns["simulation"], np.random.default_rng(0)
        early = np.array([rng.multinomial(5, truth["early_laws"][i]) for i in truth["early_law"].repeat(40)])
        posterior = fate_probabilities(early, truth["joint"], truth["early_laws"])
        # H(late law) - H(late law | cells)
        value = entropy(truth["joint"].sum(0), base=2) - entropy(posterior, base=2, axis=1).mean()
        assert value == pytest.approx(lineage_information(truth["joint"], truth["early_laws"], n_early=5), abs=0.03)

    def test_too_many_outcomes(self, adata):
        truth = adata.uns["simulation"]
        with pytest.raises(ValueError, match="fewer cells"):
            lineage_information(truth["joint"], truth["early_laws"], truth["late_laws"], 100, 100)
        with pytest.raises(ValueError, match="early_laws"):
            lineage_information(truth["joint"], n_early=3)
