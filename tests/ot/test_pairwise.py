import numpy as np
import pytest
import torch

from scgde.ot import (
    estimate_cost,
    gaussian_wasserstein,
    pairwise_distances,
    sinkhorn_divergence,
    sliced_wasserstein,
    wasserstein,
)


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
METRICS = [*REFERENCE, "sinkhorn"]


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


@pytest.mark.parametrize("pairs_at_once", [1, 3, 1000])
def test_sinkhorn_agrees_with_a_loop_however_pairs_are_batched(ragged, monkeypatch, pairs_at_once):
    monkeypatch.setattr("scgde.ot.sinkhorn._CHUNK_BYTES", pairs_at_once * 5 * 8 * 20 * 20)
    x, segment = ragged
    x[segment == 3] += 1e4
    distances = pairwise_distances(x, segment, metric="sinkhorn", blur=0.6, progress=False)
    np.testing.assert_array_equal(distances, distances.T)
    sets = [x[segment == i] for i in range(5)]
    for i, j in np.ndindex(5, 5):
        # Both stop at a misplaced mass of 1e-3.
        assert distances[i, j] == pytest.approx(sinkhorn_divergence(sets[i], sets[j], blur=0.6), rel=1e-3, abs=1e-6)
    keep = segment > 1
    other = pairwise_distances(
        x, segment, metric="sinkhorn", blur=0.6, x_other=x[keep], segment_other=segment[keep] - 2, progress=False
    )
    # The divergence of equal sets is the difference of two values that are right to 1e-3 of the temperature.
    np.testing.assert_allclose(other, distances[:, 2:], rtol=1e-3, atol=0.03)


def test_sinkhorn_default_blur_precision_and_progress(ragged, capsys):
    x, segment = ragged
    distances = pairwise_distances(x, segment, metric="sinkhorn")
    assert "10/10" in capsys.readouterr().err
    spread = np.mean([x[segment == i].var(0).sum() for i in range(5)])
    expected = pairwise_distances(x, segment, metric="sinkhorn", blur=0.1 * spread**0.5, progress=False)
    np.testing.assert_allclose(distances, expected, rtol=1e-9)
    scaled = pairwise_distances(1e3 * x, segment, metric="sinkhorn", progress=False)
    np.testing.assert_allclose(scaled, 1e3 * distances, rtol=1e-6)
    single = pairwise_distances(torch.tensor(x).float(), torch.tensor(segment), metric="sinkhorn", progress=False)
    assert single.dtype == torch.float64
    np.testing.assert_allclose(single.numpy(), distances, rtol=1e-4)
    assert not np.array_equal(single.numpy(), distances)
    points = pairwise_distances(np.array([[0.0], [3.0]]), np.array([0, 1]), metric="sinkhorn", progress=False)
    np.testing.assert_allclose(points, [[0, 3], [3, 0]])


def test_sinkhorn_warns_once_for_all_pairs(ragged, monkeypatch):
    monkeypatch.setattr("scgde.ot.sinkhorn._ITERATIONS", 3)
    with pytest.warns(UserWarning, match="of 15 transport problems did not converge in 3") as caught:
        pairwise_distances(*ragged, metric="sinkhorn", blur=0.01, progress=False)
    # The warning points at the line above.
    assert len(caught) == 1 and caught[0].filename == __file__


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
    with pytest.raises(ValueError, match="`debiased` is asked of metric 'sliced'"):
        pairwise_distances(*good, metric="sliced", debiased=True)
    with pytest.raises(ValueError, match="`blur` is -1"):
        pairwise_distances(*good, metric="sinkhorn", blur=-1)
    with pytest.raises(ValueError, match="`x` has shape"):
        pairwise_distances(x, np.full(len(x), -1))


@pytest.mark.parametrize("metric", METRICS)
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
