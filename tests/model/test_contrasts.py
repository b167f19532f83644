import dataclasses

import numpy as np
import pytest

from scgde.components import CellComponents
from scgde.contrasts import Contrasts, between_covariance, discriminant_axes


def components(gap=3.0, k=10, n=40, seed=0):
    """Cells whose populations differ along the second of five axes, in which most of the spread is along the first."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(k), n)
    x = rng.normal(size=(k * n, 5)) * [10, 1, 1, 1, 1]
    x[:, 1] += gap * rng.normal(size=k)[codes]
    return x, codes


def discriminant_scores(x, codes):
    axes = discriminant_axes(x - x.mean(0), codes)
    return (x - x.mean(0)) @ axes


def test_scores_find_the_axis_along_which_populations_differ():
    x, codes = components()
    scores = discriminant_scores(x, codes)
    means = np.stack([x[codes == k, 1].mean() for k in range(10)])
    first = np.stack([scores[codes == k, 0].mean() for k in range(10)])
    assert abs(np.corrcoef(means, first)[0, 1]) > 0.99
    # the axis of most spread, along which populations do not differ, has next to no weight
    assert abs(np.corrcoef(scores[:, 0], x[:, 0])[0, 1]) < 0.3


def test_weight_follows_the_differences_between_populations():
    norms = [np.square(discriminant_scores(*components(gap))).sum() for gap in (0.6, 3.0)]
    assert norms[0] < norms[1]


def test_units_of_the_axes_do_not_matter():
    x, codes = components()
    scores, rescaled = discriminant_scores(x, codes), discriminant_scores(x * 1000, codes)
    np.testing.assert_allclose(np.abs(scores), np.abs(rescaled), rtol=1e-6)


@pytest.mark.parametrize(("k", "n"), [(6, 30), (12, 100), (60, 20)])
def test_nothing_is_kept_of_populations_of_one_law(k, n):
    # one direction too many in a twentieth of the data sets: 20 permutations
    kept = [
        discriminant_axes(np.random.default_rng(seed).normal(size=(k * n, 30)), np.repeat(np.arange(k), n)) is not None
        for seed in range(20)
    ]
    assert np.mean(kept) <= 0.25


def test_weak_directions_beside_strong_ones_are_kept():
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(30), 60)
    x = rng.normal(size=(len(codes), 20))
    x[:, 0] += 4 * rng.normal(size=30)[codes]
    x[:, 1] += 0.6 * rng.normal(size=30)[codes]
    axes = discriminant_axes(x - x.mean(0), codes)
    spanned = np.linalg.qr(axes)[0]
    assert axes.shape[1] <= 4 and np.square(spanned[:2]).sum() > 1.8


def test_between_covariance_is_of_products_of_different_cells():
    rng = np.random.default_rng(2)
    sizes = np.array([2, 5, 5, 9])
    codes = np.repeat(np.arange(4), sizes)
    truth, estimates = np.diag([1.0, 0.0]), []
    for _ in range(3000):
        x = rng.normal(size=(len(codes), 2)) + (rng.normal(size=(4, 2)) @ truth)[codes]
        estimates.append(between_covariance(x, codes, sizes))
    np.testing.assert_allclose(np.mean(estimates, axis=0), truth, atol=0.08)  # four standard errors


def test_covariates_are_taken_out_as_batches_are(make_cells, make_model):
    adata = make_cells(6, n_batches=2)
    rng = np.random.default_rng(0)
    adata.obs["number"] = 1e5 * rng.normal(size=adata.n_obs) + 1e6
    settings = [{"batch_key": "batch"}, {"categorical_covariate_keys": ["batch"]}]
    scores = []
    for setup in settings:
        table = make_model(adata.copy(), setup)._table()
        indices = np.arange(table.n_cells)
        scores.append(scores_of(Contrasts.fit(table, indices, CellComponents.fit(table, indices)), table, indices))
    # permutations stay within batches only: how many directions are kept may differ, and the means of chance do a little
    for first, second in zip(*(s.T[:2] for s in scores), strict=True):
        assert np.corrcoef(first, second)[0, 1] > 0.9999
    table = make_model(adata, {"batch_key": "batch", "continuous_covariate_keys": ["number"]})._table()
    indices = np.arange(table.n_cells)
    components = CellComponents.fit(table, indices)
    left = scores_of(Contrasts.fit(table, indices, components), table, indices)
    for column in (table.batch, table.continuous[:, 0]):
        assert np.abs([np.corrcoef(column, score)[0, 1] for score in left.T]).max() < 1e-3


@pytest.mark.parametrize("codes", [[0, 1, 2, 3], [0, 0, -1, -1]])
def test_nothing_to_learn_without_replicates_of_two_populations(codes, make_cells, make_model):
    adata = make_cells(6)
    model = make_model(adata)
    table = model._table()
    table.codes[:] = -1
    table.codes[:4] = codes
    everything = np.arange(adata.n_obs)
    assert Contrasts.fit(table, everything, CellComponents.fit(table, everything)) is None


def scores_of(contrasts, table, indices):
    return contrasts.of(indices, table.matrix[indices], table)


def test_scores_are_the_same_when_they_are_computed_as_they_are_used(make_cells, make_model):
    table = make_model(make_cells(6, n_batches=2), {"batch_key": "batch"})._table()
    indices = np.arange(0, table.n_cells, 2)
    contrasts = Contrasts.fit(table, indices, CellComponents.fit(table, indices))
    later = dataclasses.replace(contrasts, known=None)
    np.testing.assert_allclose(scores_of(later, table, indices), scores_of(contrasts, table, indices), atol=1e-4)


def test_contrasts_hold_one_finite_row_per_cell_and_no_batch(make_cells, make_model):
    adata = make_cells(6, n_batches=2, unassigned_fraction=0.1)
    table = make_model(adata, {"batch_key": "batch"})._table()
    indices = np.arange(0, adata.n_obs, 2)
    fit = CellComponents.fit(table, indices, seed=0)
    contrasts = scores_of(Contrasts.fit(table, indices, fit), table, indices)
    assert contrasts.shape[0] == len(indices) and np.isfinite(contrasts).all() and contrasts.dtype == np.float32
    again = CellComponents.fit(table, indices, seed=0)
    np.testing.assert_array_equal(contrasts, scores_of(Contrasts.fit(table, indices, again), table, indices))
    batch = table.batch[indices]
    gap = np.abs(contrasts[batch == 0].mean(0) - contrasts[batch == 1].mean(0))
    assert (gap < 0.2 * contrasts.std(0) + 1e-3).all()


def test_cells_that_do_not_differ_have_no_contrasts(make_cells, make_model):
    adata = make_cells(6, n_batches=2)
    adata.X = np.tile(adata.X[0].toarray(), (adata.n_obs, 1))
    table = make_model(adata, {"batch_key": "batch"})._table()
    everything = np.arange(adata.n_obs)
    assert Contrasts.fit(table, everything, CellComponents.fit(table, everything)) is None
