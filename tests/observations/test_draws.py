"""Draws of counts have the probabilities of their law."""

import numpy as np
import pytest
import torch
from scipy import stats

from scgde.observations._draws import LARGEST_MEAN, draw_counts

N = 200_000


def law_of(mu, theta):
    return stats.poisson(mu) if theta is None else stats.nbinom(theta, theta / (theta + mu))


@pytest.mark.parametrize("extra", [None, 0.3])
@pytest.mark.parametrize(
    ("mu", "theta"),
    [
        (0.05, None),
        (2.5, None),
        (40.0, None),
        (0.05, 2.0),
        (0.4, 0.05),
        (2.9, 0.3),
        (3.1, 0.3),
        (0.5, 0.01),
        (20.0, 5.0),
    ],
)
def test_frequencies_are_those_of_the_law(mu, theta, extra):
    means = torch.full((N // 100, 100), mu)
    thetas = None if theta is None else torch.full((1, 100), theta)
    zeros = None if extra is None else torch.full((100,), extra)
    x = draw_counts(means, thetas, zeros, torch.Generator().manual_seed(0)).numpy().ravel()
    law, kept = law_of(mu, theta), 1 - (extra or 0.0)
    assert (x == np.floor(x)).all() and (x >= 0).all()
    # counts in classes that are expected at least fifty times
    edges = [-1, 0]
    while kept * law.sf(edges[-1]) * N > 100:
        top = edges[-1] + 1
        while kept * (law.cdf(top) - law.cdf(edges[-1])) * N < 50:
            top += 1
        edges.append(top)
    expected = kept * np.diff([*law.cdf(edges), 1.0])
    expected[0] += 1 - kept
    observed = np.histogram(x, [*(np.array(edges) + 0.5), np.inf])[0]
    assert stats.chisquare(observed, N * expected).pvalue > 1e-4
    assert x.mean() == pytest.approx(kept * mu, abs=5 * x.std() / np.sqrt(N))


def test_both_ways_of_drawing_meet_at_the_bound():
    x = torch.stack([draw_counts(torch.full((N,), LARGEST_MEAN + d), torch.ones(N), generator=torch.Generator().manual_seed(1))
                     for d in (-1e-4, 1e-4)])  # fmt: skip
    assert stats.ks_2samp(*x.numpy()).pvalue > 1e-3


def test_draws_repeat_with_their_seed_and_leave_global_randomness_alone():
    mu = torch.rand(50, 40) * 6
    before = torch.get_rng_state()
    one, same, other = (draw_counts(mu, mu + 0.1, mu / 10, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(before, torch.get_rng_state())


def test_nothing_is_drawn_where_nothing_is_expected():
    mu = torch.zeros(3, 4)
    for theta in (None, torch.tensor([[1e-4, 1.0, 100.0, 1e5]])):
        assert draw_counts(mu, theta).sum() == 0


def test_uniform_numbers_next_to_zero_are_drawn_to_more_digits(monkeypatch):
    # in single precision the least uniform number above zero is 6e-8, and one less exp(-1e-8) is nothing
    draws = iter([torch.zeros(3), torch.full((3,), 0.5), torch.full((2,), 0.5, dtype=torch.float64)])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws))
    assert draw_counts(torch.tensor([1e-8, 4e-8, 1e-3])).tolist() == [0.0, 1.0, 1.0], "half a grid step is 3e-8"
