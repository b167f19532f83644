import numpy as np
import pytest
from scipy import stats

from scgde.data import PopulationSampler

SIZES = [1, 2, 5, 8, 30, 100]


def make_sampler(sizes=SIZES, n_unassigned=7, **options):
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(-1, len(sizes)), [n_unassigned, *sizes]))
    defaults = {"populations_per_batch": 3, "cells_per_population": 8, "mixing": 0.0, "seed": 0}
    return codes, PopulationSampler(codes, **defaults | options)


def sets(batches):
    """Rows, sources and weights of each set of each batch."""
    for batch in batches:
        for k in range(len(batch.sources)):
            yield batch.rows[batch.segment == k], batch.sources[k], batch.weights[k]


@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_no_cell_is_replicated_and_none_is_unassigned(mixing):
    codes, sampler = make_sampler(mixing=mixing)
    for epoch in range(30):
        for rows, sources, _ in sets(sampler.epoch(epoch)):
            assert len(np.unique(rows)) == len(rows)
            assert 1 <= len(rows) <= 8
            assert set(codes[rows]) <= set(sources) and (codes[rows] >= 0).all()


@pytest.mark.parametrize("mixing", [0.0, 0.7])
def test_segments_number_the_sets_in_order(mixing):
    _, sampler = make_sampler(mixing=mixing)
    for batch in sampler.epoch(0):
        assert np.array_equal(np.unique(batch.segment), np.arange(3))
        assert (np.diff(batch.segment) >= 0).all()
        assert batch.sources.shape == batch.weights.shape == (3, PopulationSampler.N_MIXED)


def test_small_populations_are_used_whole_and_large_ones_give_m_cells():
    codes, sampler = make_sampler()
    for rows, sources, weights in sets(sampler.epoch(0)):
        population = sources[0]
        assert (sources == population).all() and weights.tolist() == [1, 0, 0]
        if SIZES[population] <= 8:
            assert np.array_equal(np.sort(rows), np.flatnonzero(codes == population))
        else:
            assert len(rows) == 8


@pytest.mark.parametrize("populations_per_batch", [1, 3, 6, 32])
def test_every_population_comes_once_before_any_comes_twice(populations_per_batch):
    _, sampler = make_sampler(populations_per_batch=populations_per_batch)
    for epoch in range(5):
        order = [int(sources[0]) for _, sources, _ in sets(sampler.epoch(epoch))]
        assert len(order) == len(sampler) * populations_per_batch >= len(SIZES)
        for start in range(0, len(order) - len(SIZES) + 1, len(SIZES)):
            assert sorted(order[start : start + len(SIZES)]) == list(range(len(SIZES)))


def test_an_epoch_is_a_pass_over_cells_when_that_is_longer():
    _, sampler = make_sampler(sizes=[400, 400], populations_per_batch=2, cells_per_population=10)
    assert len(sampler) == 40 == len(sampler.epoch(0))


def test_draws_from_a_large_population_are_uniform_over_its_cells():
    codes, sampler = make_sampler()
    drawn = np.concatenate([rows for e in range(400) for rows, s, _ in sets(sampler.epoch(e)) if s[0] == 5])
    members = np.flatnonzero(codes == 5)
    counts = np.bincount(drawn, minlength=len(codes))[members]
    # draws without replacement are less variable than the chi-squared law, so the test is on the safe side
    assert counts.sum() > 2000 and stats.chisquare(counts).pvalue > 1e-3


def test_mixture_weights_are_the_realised_shares():
    codes, sampler = make_sampler(mixing=1.0)
    n_mixed = 0
    for epoch in range(50):
        for rows, sources, weights in sets(sampler.epoch(epoch)):
            assert weights.sum() == pytest.approx(1, abs=1e-6)
            assert len(set(sources[weights > 0])) == (weights > 0).sum(), "a source is listed once"
            for source, weight in zip(sources, weights, strict=True):
                if weight > 0:
                    assert (codes[rows] == source).mean() == pytest.approx(weight, abs=1e-6)
            n_mixed += (weights > 0).sum() > 1
    assert n_mixed > 50


def test_mixing_is_the_probability_of_a_mixture():
    _, sampler = make_sampler(sizes=[100] * 10, mixing=0.3, cells_per_population=64, populations_per_batch=10)
    # at 64 cells a mixture of three practically always holds two sources or more
    mixed = np.array([(w > 0).sum() > 1 for e in range(100) for _, _, w in sets(sampler.epoch(e))])
    assert mixed.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / len(mixed)) + 0.01)


@pytest.mark.parametrize("sizes", [[5], [5, 7]])
def test_few_populations_are_no_obstacle_to_mixing(sizes):
    codes, sampler = make_sampler(sizes=sizes, mixing=1.0)
    for rows, sources, weights in sets(sampler.epoch(0)):
        assert set(codes[rows]) == set(sources[weights > 0])


@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_an_epoch_depends_on_seed_and_epoch_only(mixing):
    def flat(sampler, epoch):
        return np.concatenate([batch.rows for batch in sampler.epoch(epoch)])

    (_, one), (_, two), (_, other) = (make_sampler(mixing=mixing, seed=s) for s in (3, 3, 4))
    one.epoch(0)  # what was drawn before is of no account
    np.random.default_rng(0).random(5)
    assert np.array_equal(flat(one, 7), flat(two, 7))
    assert not np.array_equal(flat(one, 7), flat(one, 8))
    assert not np.array_equal(flat(one, 7), flat(other, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"populations_per_batch": 0}, "populations_per_batch=0"),
        ({"cells_per_population": 2.5}, "cells_per_population=2.5"),
        ({"mixing": 1.5}, "mixing=1.5.*between 0 and 1"),
        ({"min_cells": 1000}, "No population has 1000"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(**options)
