"""Coupled counts have the law that is asked for, and leave alone what does not change."""

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

from scgde.perturbation.decoding import couple_counts
from scgde.perturbation.design import Treatment
from scgde.perturbation.targets import TargetEffects

N = 60_000


def law(kind, mean, theta=1.5, logit=-1.0):
    mu = torch.full((N, 1), mean)
    if kind == "poisson":
        return Poisson(rate=mu)
    if kind == "nb":
        return NegativeBinomial(mu=mu, theta=torch.full_like(mu, theta))
    return ZeroInflatedNegativeBinomial(mu=mu, theta=torch.full_like(mu, theta), zi_logits=torch.full_like(mu, logit))


def frequencies(x):
    return np.bincount(x.numpy().astype(int).ravel().clip(max=9), minlength=10) / N


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
@pytest.mark.parametrize("target", [0.3, 2.0, 6.0], ids=["falls", "stays", "rises"])
def test_counts_get_the_law_of_the_new_mean(kind, target):
    torch.manual_seed(0)
    before, wanted = law(kind, 2.0), law(kind, target)
    x = before.sample()
    moved = couple_counts(x, before, torch.full((N, 1), target), torch.Generator().manual_seed(1))
    assert np.abs(frequencies(moved) - frequencies(wanted.sample())).max() < 0.012
    assert (moved == moved.round()).all()
    assert (moved >= 0).all()
    if target == 2.0:
        assert torch.equal(moved, x)
    if target < 2.0:
        assert (moved <= x).all()


def test_cells_with_more_than_expected_stay_ahead():
    before = law("nb", 2.0)
    x = before.sample()
    moved = couple_counts(x, before, torch.full((N, 1), 4.0), torch.Generator().manual_seed(0))
    assert moved[x >= 5].mean() > moved[x <= 1].mean() + 3


class TestTargets:
    """Changes of target genes."""

    @staticmethod
    def effects(ratios, variances=None):
        keys = {(p, "c"): r for p, r in ratios.items()}
        errors = dict.fromkeys(keys, 0.01) if variances is None else {(p, "c"): variances[p] for p in ratios}
        return TargetEffects(keys, errors, {f"g{i}": i for i in range(6)})

    def test_unseen_targets_get_the_mean_effect(self):
        effects = self.effects({"g0": -2.0, "g1": -1.0, "g2": -1.5})
        assert effects.log_ratios(Treatment(("g5",)), "c")[5] == pytest.approx(-1.5, abs=0.05)
        assert effects.log_ratios(Treatment(("stim",)), "c") == {}

    def test_seen_targets_keep_their_own_as_far_as_it_is_certain(self):
        ratios = {"g0": -2.0, "g1": -1.0, "g2": -1.5}
        sure = self.effects(ratios).log_ratios(Treatment(("g0",)), "c")[0]
        unsure = self.effects(ratios, {"g0": 9.0, "g1": 0.01, "g2": 0.01}).log_ratios(Treatment(("g0",)), "c")[0]
        assert sure < -1.9
        assert unsure > -1.6

    def test_fewer_than_three_targets_say_nothing_about_others(self):
        assert self.effects({"g0": -2.0, "g1": -1.0}).log_ratios(Treatment(("g5",)), "c") == {}

    def test_doses_have_none(self):
        effects = self.effects({"g0": -2.0, "g1": -1.0, "g2": -1.5})
        assert effects.log_ratios(Treatment(("g0",), 3.0), "c") == {}

    def test_round_trip(self):
        effects = self.effects({"g0": -2.0, "g1": -1.0, "g2": -1.5})
        again = TargetEffects.from_dict(effects.to_dict())
        assert again.log_ratios(Treatment(("g0", "g5")), "c") == effects.log_ratios(Treatment(("g0", "g5")), "c")
