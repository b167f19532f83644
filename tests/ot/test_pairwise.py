import numpy as np
import pytest
import torch

from scgde.ot import estimate_cost, gaussian_wasserstein, pairwise_distances, sliced_wasserstein, wasserstein


@pytest.fixture
def ragged():
    """Five sets of 4 to 20 points in 3 dimensions, in random row order, with rows in no set."""
    rng = np.random.default_rng(0)
    segment = rng.permutation(np.repeat([0, 1, 2, 3, 4, -1], [4, 9, 20, 9, 6, 5]))
    x = rng.normal(size=(len(segment), 3)) + rng.normal(size=(6, 3))[segment]
    x[segment == -1] = np.nan
    return x, segment


def gaussian(x, y):
    return gaussian_wasserstein(x.mean(0), np.cov(x.T, bias=True), y.mean(0), np.cov(y.T, bias=True))


REFERENCE = {"exact": wasserstein, "sliced": sliced_wasserstein, "gaussian": gaussian}


@pytest.mark.parametrize("metric", REFERENCE)
def test_agrees_with_a_loop(ragged, metric):
    x, segment = ragged
    distances = pairwise_distances(x, segment, metric=metric, progress=False)
    assert distances.shape == (5, 5)
    assert (np.diag(distances) == 0).all()
    np.testing.assert_array_equal(distances, distances.T)
    for i in range(5):
        for j in range(i):
            expected = REFERENCE[metric](x[segment == i], x[segment == j])
            assert distances[i, j] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", REFERENCE)
def test_two_collections_agree_with_a_loop(ragged, metric):
    x, segment = ragged
    other, codes = x[segment > 1], segment[segment > 1] - 2
    distances = pairwise_distances(x, segment, metric=metric, x_other=other, segment_other=codes, progress=False)
    assert distances.shape == (5, 3)
    square = pairwise_distances(x, segment, metric=metric, progress=False)
    # Equal Gaussian laws carry the rounding of their traces.
    np.testing.assert_allclose(distances, square[:, 2:], atol=1e-6)


def test_tensors_give_a_tensor(ragged):
    x, segment = ragged
    distances = pairwise_distances(torch.tensor(x), torch.tensor(segment), progress=False)
    assert isinstance(distances, torch.Tensor)
    np.testing.assert_array_equal(distances.numpy(), pairwise_distances(x, segment, progress=False))


def test_one_set_and_progress_bar(ragged, capsys):
    x, segment = ragged
    assert pairwise_distances(x[segment == 0], np.zeros(4, int), progress=False).tolist() == [[0.0]]
    assert capsys.readouterr().err == ""
    pairwise_distances(x, segment, metric="sliced", n_projections=2)
    assert "10/10" in capsys.readouterr().err


def test_errors_name_the_argument(ragged):
    x, segment = ragged
    good = x[segment >= 0], segment[segment >= 0]
    with pytest.raises(ValueError, match=r"no row for 2 of 7 codes \(first \[5, 6\]\)"):
        pairwise_distances(x, segment, n_segments=7)
    with pytest.raises(ValueError, match="codes go from 0 to 2"):
        pairwise_distances(x, segment, n_segments=3)
    with pytest.raises(ValueError, match="`x` holds .* NaN"):
        pairwise_distances(x, np.maximum(segment, 0))
    with pytest.raises(ValueError, match="`x` has 3 dimensions and `x_other` has 2"):
        pairwise_distances(*good, x_other=good[0][:, :2], segment_other=good[1])
    with pytest.raises(ValueError, match="Give `segment_other`"):
        pairwise_distances(*good, x_other=good[0])
    with pytest.raises(ValueError, match="one code per row"):
        pairwise_distances(x, segment[1:])
    with pytest.raises(TypeError, match="pandas.factorize"):
        pairwise_distances(x, segment.astype(float))
    with pytest.raises(ValueError, match="`metric` is 'cosine'"):
        pairwise_distances(*good, metric="cosine")
    with pytest.raises(ValueError, match="`x` has shape"):
        pairwise_distances(x, np.full(len(x), -1))


@pytest.mark.parametrize("metric", REFERENCE)
def test_cost_estimate_grows_with_the_number_of_pairs(metric):
    few, many = estimate_cost([30] * 5, metric=metric), estimate_cost([30] * 50, metric=metric)
    # 1,225 pairs against 10; a factor of ten leaves room for a busy machine.
    assert 0 < 12 * few < many < 1200 * few


def test_cost_estimate_of_two_collections_and_errors():
    assert estimate_cost([30, 40], [20, 50, 60]) > 0
    with pytest.raises(ValueError, match="`sizes` has shape"):
        estimate_cost([30, 0])
    with pytest.raises(ValueError, match="`metric` is"):
        estimate_cost([30], metric="other")
