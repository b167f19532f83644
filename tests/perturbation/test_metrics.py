"""Metrics against their definitions, and against pertpy and cell-eval where these are installed."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from scgde.perturbation import metrics


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(30, 5)), rng.normal(0.5, 1.5, size=(40, 5))


def test_energy_distance_is_its_definition(samples):
    x, y = samples
    within = [cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in samples]
    assert metrics.energy_distance(x, y) == pytest.approx(2 * cdist(x, y).mean() - sum(within))


def test_unbiased_distances_are_zero_on_average_between_samples_of_one_law():
    rng = np.random.default_rng(1)
    values = [[f(*rng.normal(size=(2, 12, 3))) for f in (metrics.energy_distance, metrics.mmd)] for _ in range(400)]
    mean, error = np.mean(values, axis=0), np.std(values, axis=0) / 20
    assert (np.abs(mean) < 3.5 * error).all()
    biased = metrics.energy_distance(*rng.normal(size=(2, 12, 3)), unbiased=False)
    assert biased > 0


def test_energy_distance_of_shifted_copies_is_zero_only_without_a_shift(samples):
    x, _ = samples
    assert metrics.energy_distance(x, x, unbiased=False) == pytest.approx(0, abs=1e-12)
    assert metrics.energy_distance(x, x + 1.0) > 0.3


def test_linear_mmd_is_the_squared_distance_of_means(samples):
    x, y = samples
    expected = np.square(x.mean(0) - y.mean(0)).sum()
    assert metrics.mmd(x, y, kernel="linear", unbiased=False) == pytest.approx(expected)


def test_two_kinds_of_r2_differ_by_scale():
    real = np.array([1.0, -2.0, 3.0, 0.5])
    assert metrics.pearson_delta(2 * real, real) == pytest.approx(1)
    assert metrics.r2_delta(real, real) == pytest.approx(1)
    assert metrics.r2_delta(2 * real, real) < 0
    assert np.isnan(metrics.pearson_delta(np.zeros(4), real))


def test_discrimination_score_counts_nearer_perturbations():
    real = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [9.0, 9.0]])
    assert metrics.discrimination_score(real, real).tolist() == [1, 1, 1, 1]
    # predicted as the first: one is nearer than the second, two nearer than the third
    scores = metrics.discrimination_score(np.repeat(real[:1], 4, axis=0), real)
    assert scores.tolist() == [1.0, 0.75, 0.5, 0.25]
    # without its own target gene, the second perturbation is the first
    alone = metrics.discrimination_score(real[[0, 0]], real[:2], exclude=[None, 0])
    assert alone[1] >= 0.5


def test_differential_overlap_of_the_truth_with_itself_is_complete():
    rng = np.random.default_rng(0)
    control, real = rng.normal(size=(2, 200, 30))
    real[:, :6] += 1.0
    real[:, 6:9] -= 1.0
    assert metrics.differential_overlap(real, real, control) == (1.0, 1.0)
    opposite = 2 * control.mean(0) - real
    overlap, direction = metrics.differential_overlap(opposite, real, control)
    assert overlap > 0.9
    assert direction < 0.1
    assert np.isnan(metrics.differential_overlap(control, control, control)[0])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "the same features"),
        (np.zeros((1, 2)), np.zeros((3, 2)), "at least 2"),
        (np.zeros(3), np.zeros((3, 2)), "shapes"),
    ],
)
def test_samples_that_cannot_be_compared_raise(x, y, message):
    with pytest.raises(ValueError, match=message):
        metrics.energy_distance(x, y)


def test_log_normalise_leaves_empty_cells_at_zero():
    values = metrics.log_normalise(np.array([[1, 3], [0, 0]]))
    assert np.allclose(values, [[np.log1p(2500), np.log1p(7500)], [0, 0]])


def test_agreement_with_pertpy(samples):
    pertpy = pytest.importorskip("pertpy", reason="pertpy is not installed")
    x, y = samples
    edistance = pertpy.tools.Distance("edistance")(x, y)
    assert metrics.energy_distance(x, y, unbiased=False) == pytest.approx(edistance, rel=1e-5)
    mmd = pertpy.tools.Distance("mmd")(x, y)
    assert metrics.mmd(x, y, kernel="linear", unbiased=False) == pytest.approx(mmd, rel=1e-5)
    rbf = pertpy.tools.Distance("mmd")(x, y, kernel="rbf", gamma=0.1)
    assert metrics.mmd(x, y, gamma=0.1, unbiased=False) == pytest.approx(rbf, rel=1e-5)


def test_agreement_with_cell_eval():
    pytest.importorskip("cell_eval", reason="cell-eval is not installed")
    from cell_eval._types import PerturbationAnndataPair
    from cell_eval.metrics._anndata import discrimination_score, mse_delta, pearson_delta

    rng = np.random.default_rng(0)
    names = ["control", "g0", "g1", "g2", "g3"]
    labels = np.repeat(names, 25)
    effects = {n: rng.normal(size=8) * (n != "control") for n in names}
    genes = [f"g{i}" for i in range(8)]

    def cells(noise):
        x = np.stack([3 + effects[n] + rng.normal(0, noise, 8) for n in labels]).astype(np.float32)
        return ad.AnnData(
            x, obs=pd.DataFrame({"p": labels}, index=map(str, range(len(x)))), var=pd.DataFrame(index=genes)
        )

    real, pred = cells(1.0), cells(3.0)
    control = labels == "control"
    pred.X[control] = real.X[control]
    pair = PerturbationAnndataPair(real=real, pred=pred, pert_col="p", control_pert="control")
    change = {
        k: np.stack([a.X[labels == n].mean(0) - a.X[control].mean(0) for n in names[1:]])
        for k, a in (("real", real), ("pred", pred))
    }
    for theirs, ours in ((pearson_delta, metrics.pearson_delta), (mse_delta, metrics.mse_delta)):
        expected = theirs(pair)
        for i, name in enumerate(names[1:]):
            assert ours(change["pred"][i], change["real"][i]) == pytest.approx(expected[name], rel=1e-4)
    expected = discrimination_score(pair)
    own = [genes.index(n) for n in names[1:]]
    scores = metrics.discrimination_score(change["pred"], change["real"], exclude=own)
    assert scores.tolist() == [expected[n] for n in names[1:]]
