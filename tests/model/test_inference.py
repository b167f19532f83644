import numpy as np
import pytest
import torch

from scgde.encoders import ENCODERS, PooledEncoder
from scgde.inference import added_influence, cell_vectors, embed
from scgde.moments import PopulationMoments


@pytest.fixture(params=ENCODERS)
def encoder(request):
    """An encoder fitted to twenty populations and moved off its starting point."""
    noise = torch.Generator().manual_seed(0)
    encoder = ENCODERS[request.param](3, 7, 8)
    u, segment = torch.randn(400, 3, generator=noise), torch.arange(20).repeat_interleave(20)
    encoder.fit(u, segment, PopulationMoments.from_cells(u, segment, 20), set_size=20)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
    return encoder.eval()


def make_sets(sizes, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(-1, len(sizes) - 1), sizes))
    return torch.tensor(rng.normal(size=(len(codes), 3)), dtype=torch.float32), codes


@pytest.mark.parametrize("around_limit", [False, True])
def test_mean_of_cell_vectors_is_the_embedding(encoder, around_limit):
    limit = max(encoder.jackknife_max, 1)
    sizes = [5, limit, limit + 1, 3] if around_limit else [0, 1, 2, 30]
    u, codes = make_sets(sizes)
    embedding = embed(encoder, u, codes, ["a", "b", "c"], u[:50])
    assert embedding.labels == ["a", "b", "c"] and embedding.n_cells.tolist() == sizes[1:]
    for k in range(3):
        assert np.abs(embedding.cells[codes == k].mean(0) - embedding.z[k]).max() < 1e-5
    assert np.isfinite(embedding.cells).all()


def test_populations_without_cells_are_left_out(encoder):
    u, codes = make_sets([2, 4, 0, 5])
    embedding = embed(encoder, u, codes, ["a", "b", "c"], None)
    assert embedding.labels == ["a", "c"] and embedding.n_cells.tolist() == [4, 5]
    assert set(embedding.codes) == {-1, 0, 1}


def test_embedding_of_large_populations_is_the_encoders_own(encoder):
    u, codes = make_sets([0, encoder.jackknife_max + 1])
    embedding = embed(encoder, u, codes, ["a"], None)
    np.testing.assert_allclose(embedding.z, encoder(u, torch.from_numpy(codes)).detach(), atol=1e-5)


def test_linear_encoders_need_no_bias_correction(encoder):
    u, codes = make_sets([0, 10, 25])
    plain = encoder(u, torch.from_numpy(codes)).detach().numpy()
    corrected = embed(encoder, u, codes, ["a", "b"], None).z
    assert (np.abs(plain - corrected).max() < 1e-5) == (encoder.is_linear or encoder.jackknife_max == 0)


def test_bias_of_small_populations_is_removed(encoder):
    if not encoder.jackknife_max:
        pytest.skip("uses no delete-one values")
    noise = torch.Generator().manual_seed(0)
    n, many = 15, 3000 if isinstance(encoder, PooledEncoder) else 300
    cells = torch.randn(n * many, 3, generator=noise)
    segment = torch.arange(many).repeat_interleave(n)
    with torch.no_grad():
        # in sets of 2,000, whose bias is a hundredth of that under test: attention is quadratic
        truth = encoder(torch.randn(200_000, 3, generator=noise), torch.arange(100).repeat_interleave(2000)).mean(0)
        plain = encoder(cells, segment)
    corrected = torch.zeros(many, 7).index_add_(0, segment, cell_vectors(encoder, cells, segment, many).float()) / n
    bias = [float((z.mean(0) - truth).norm()) for z in (plain, corrected)]
    # standard error of a mean of 3,000 embeddings
    error = float(corrected.var(0).sum().sqrt()) / many**0.5
    assert bias[1] < 0.5 * bias[0] or bias[1] < 4 * error


def test_standard_errors_are_the_spread_over_independent_draws(encoder):
    noise = torch.Generator().manual_seed(1)
    n, many = 60, 400
    u, codes = torch.randn(n * many, 3, generator=noise), np.repeat(np.arange(many), n)
    embedding = embed(encoder, u, codes, [str(k) for k in range(many)], None)
    truth, claimed = embedding.z.var(0).sum(), np.square(embedding.standard_error).sum(1).mean()
    # a variance over 400 draws has a relative error of 7 %; the jackknife is biased upwards a little
    assert claimed == pytest.approx(truth, rel=0.25)


def test_populations_are_embedded_alike_in_any_company(encoder):
    u, codes = make_sets([0, 20, 6, 40])
    together = embed(encoder, u, codes, ["a", "b", "c"], None)
    for k in range(3):
        alone = embed(encoder, u[codes == k], codes[codes == k], ["a", "b", "c"], None)
        np.testing.assert_allclose(alone.z[0], together.z[k], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alone.standard_error[0], together.standard_error[k], rtol=1e-5, atol=1e-5)


def test_loose_cells_get_the_influence_of_adding_them_to_the_reference(encoder):
    reference, loose = make_sets([0, 50])[0], make_sets([0, 4], seed=1)[0]
    vectors = added_influence(encoder, reference, loose)
    joint = torch.cat([reference, loose])
    weight = torch.cat([torch.ones(50), torch.zeros(4)])
    np.testing.assert_allclose(vectors, encoder.weighted_influence(joint, weight)[50:], atol=1e-4)
    u, codes = torch.cat([reference, loose]), np.repeat([0, -1], [50, 4])
    np.testing.assert_allclose(embed(encoder, u, codes, ["a"], reference).cells[50:], vectors, atol=1e-5)


def test_embeddings_are_the_same_without_vectors_of_cells(encoder):
    u, codes = make_sets([4, 1, 6, encoder.jackknife_max + 1])
    full, bare = (embed(encoder, u, codes, ["a", "b", "c"], u[:9], vectors=v) for v in (True, False))
    np.testing.assert_allclose(bare.z, full.z, atol=1e-5)
    assert bare.cells.shape == (0, 7) and np.isnan(bare.standard_error).all()
