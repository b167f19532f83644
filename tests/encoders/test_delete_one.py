"""Roots without one cell, found from that of the whole set, against roots computed anew."""

import numpy as np
import pytest
import torch

from scgde.encoders import ENCODERS
from scgde.encoders._delete_one import RationalPower, least_size
from scgde.encoders.base import PooledEncoder
from scgde.moments import PopulationMoments


def make_sets(d, sizes, *, df, seed=0):
    """Sets of different means and spreads, with tails as heavy as those of Student's t."""
    rng = np.random.default_rng(seed)
    segment = np.repeat(np.arange(len(sizes)), sizes)
    spread = rng.normal(size=(len(sizes), d, d)) / d**0.5 + np.diag(np.geomspace(0.05, 1.5, d))
    x = rng.standard_t(df, size=(len(segment), d))
    u = np.einsum("ni,nij->nj", x, spread[segment]) + rng.normal(size=(len(sizes), d))[segment]
    order = rng.permutation(len(segment))
    return torch.tensor(u[order]), torch.tensor(segment[order])


def make_encoder(d, u, segment, share):
    encoder = ENCODERS["residual"](d, 24).double()
    n_sets = int(segment.max()) + 1
    encoder.fit(u, segment, PopulationMoments.from_cells(u, segment, n_sets), set_size=256)
    encoder.spectrum.share.fill_(share)
    torch.nn.init.normal_(encoder.residual[-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return encoder.eval()


def standard_errors(without, segment, n_sets):
    n = torch.bincount(segment, minlength=n_sets).double()[:, None]
    mean = torch.zeros((n_sets, without.shape[1]), dtype=torch.float64).index_add_(0, segment, without.double()) / n
    square = torch.zeros_like(mean).index_add_(0, segment, (without.double() - mean[segment]).square())
    return ((n - 1) / n * square).sqrt(), n * mean


@pytest.mark.parametrize("share", [0.0, 0.03, 0.1])
@pytest.mark.parametrize(
    ("d", "sizes", "df"),
    [
        (5, [20, 25, 25, 40, 300], 30),
        (5, [20, 25, 25, 40, 300], 3),
        (10, [7, 20, 30, 75, 175, 2], 5),
        (33, [64, 66, 140], 30),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_delete_one_is_that_of_covariances_computed_anew(d, sizes, df, share, dtype):
    u, segment = make_sets(d, sizes, df=df)
    encoder = make_encoder(d, u, segment, share)
    with torch.no_grad():
        exact = PooledEncoder.delete_one(encoder, u, segment, len(sizes))
        found = encoder.to(dtype).delete_one(u.to(dtype), segment, len(sizes))
    assert found.dtype == dtype
    if dtype == torch.float32:
        # the few cells of small sets are computed anew, in single precision at the cost of digits
        large = torch.bincount(segment)[segment] >= least_size(d)
        exact, found, segment = exact[large], found[large], segment[large].unique(return_inverse=True)[1]
    n_sets = int(segment.max()) + 1
    error, total = standard_errors(exact, segment, n_sets)
    error_found, total_found = standard_errors(found, segment, n_sets)
    assert (error_found / error - 1).abs().max() <= 2e-4
    if dtype == torch.float32:
        # single precision rounds in units of the largest coordinates, and some vary a fiftieth as much
        error = error.square().mean(1, keepdim=True).sqrt().expand_as(error)
    # the jackknife subtracts n - 1 times the mean
    assert ((total_found - total).abs() / error).max() <= 2e-3
    # and each cell on its own
    limit = 5e-4 if dtype == torch.float64 else 2e-3
    assert ((found - exact).abs() / error[segment]).max() <= limit


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["sums of others", "constant", "no spread at all"])
def test_sets_without_spread_along_an_axis_are_computed_anew(kind, share):
    u, segment = make_sets(5, [30, 40, 60], df=30)
    if kind == "sums of others":
        u[:, 4] = u[:, 0] - u[:, 1]
    elif kind == "constant":
        u[:, 4] = 1.0
    else:
        u[segment == 1] = 1.0
    encoder = make_encoder(5, u, segment, share)
    rows = slice(None) if kind != "no spread at all" else segment != 1
    with torch.no_grad():
        exact = PooledEncoder.delete_one(encoder, u, segment, 3)
        found = encoder.delete_one(u, segment, 3)
    torch.testing.assert_close(found[rows], exact[rows], rtol=1e-3, atol=1e-5)
    assert torch.isfinite(found).all()


def test_delete_one_of_a_cell_far_from_all_others():
    u, segment = make_sets(5, [60, 60], df=30)
    u[3] += 40.0
    encoder = make_encoder(5, u, segment, 0.1)
    with torch.no_grad():
        exact = PooledEncoder.delete_one(encoder, u, segment, 2)
        found = encoder.delete_one(u, segment, 2)
    assert (found - exact).abs().max() <= 1e-3 * (exact - exact.mean(0)).abs().max()


def test_sets_are_the_same_alone_and_with_others():
    u, segment = make_sets(10, [30, 75, 120, 290, 40], df=5)
    encoder = make_encoder(10, u, segment, 0.1).float()
    with torch.no_grad():
        together = encoder.delete_one(u.float(), segment, 5)
        for k in range(5):
            rows = segment == k
            alone = encoder.delete_one(u[rows].float(), torch.zeros(int(rows.sum()), dtype=torch.long), 1)
            assert (alone - together[rows]).abs().max() <= 1e-5


@pytest.mark.parametrize("power", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("decades", [1, 3, 6])
def test_rational_function_is_the_power(power, decades):
    rational = RationalPower.fit(power, decades)
    x = torch.logspace(0, decades, 200, dtype=torch.float64)[:, None]
    slope = rational.slope - (rational.weights / (x + rational.poles).square()).sum(1)
    assert (slope / (power * x[:, 0] ** (power - 1)) - 1).abs().max() <= 5e-4
