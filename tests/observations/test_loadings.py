import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor

from scgde.observations._loadings import fit_loadings


def simulate(theta=np.inf, n=3000, n_vars=40, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 3))
    loadings = rng.normal(0, 0.4, (n_vars, 3))
    intercept = rng.normal(0, 1, n_vars) - 5
    library = rng.lognormal(np.log(2000), 0.4, n)
    mu = library[:, None] * np.exp(intercept + scores @ loadings.T)
    rate = mu if np.isinf(theta) else mu * rng.gamma(theta, 1 / theta, mu.shape)
    return rng.poisson(rate), library, scores, intercept, loadings


@pytest.mark.parametrize("theta", [np.inf, 2.0])
def test_known_loadings_and_dispersions_are_recovered(theta):
    counts, library, scores, intercept, loadings = simulate(theta)
    a, w, log_theta = fit_loadings(counts, library, scores, 1.0, overdispersed=np.isfinite(theta))
    assert np.abs(a - intercept).max() < 0.15
    assert np.abs(w - loadings).max() < 0.15 and np.corrcoef(w.ravel(), loadings.ravel())[0, 1] > 0.99
    if np.isfinite(theta):
        assert np.median(np.exp(log_theta)) == pytest.approx(theta, rel=0.1)


def test_poisson_loadings_are_those_of_penalised_regression():
    counts, library, scores, *_ = simulate(n=400, n_vars=3)
    prior_sd = 0.1
    a, w, _ = fit_loadings(counts, library, scores, prior_sd, overdispersed=False)
    for g in range(3):
        # sklearn fits rates with weights: the same likelihood, divided by the sum of the weights
        reference = PoissonRegressor(alpha=prior_sd**-2 / library.sum(), max_iter=1000, tol=1e-10)
        reference.fit(scores, counts[:, g] / library, sample_weight=library)
        np.testing.assert_allclose([a[g], *w[g]], [reference.intercept_, *reference.coef_], atol=1e-4)


def test_a_narrow_prior_shrinks_loadings_and_leaves_intercepts():
    counts, library, scores, intercept, _ = simulate(n=200)
    wide, narrow = (fit_loadings(counts, library, scores, sd) for sd in (1.0, 0.01))
    assert np.abs(narrow[1]).max() < 0.2 * np.abs(wide[1]).max()
    assert np.abs(narrow[0] - intercept).mean() < 0.3


def test_genes_and_cells_without_counts_give_finite_loadings():
    counts, library, scores, *_ = simulate(n=50, n_vars=5)
    counts[:, 0] = 0
    counts[3] = 0
    assert all(np.isfinite(part).all() for part in fit_loadings(counts, library, scores, 0.07))
