"""Shrinkage of the spectrum of covariances."""

import pytest
import torch

from scgde.encoders.residual import ResidualEncoder
from scgde.generators import AffineSkeleton
from scgde.moments import PopulationMoments
from scgde.ot import sqrtm_psd
from scgde.spectrum import MOST, SpectrumShrinkage

D, K = 6, 200


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances(k: int = K, seed: int = 0) -> torch.Tensor:
    """Wishart covariances of different size, anisotropic on average."""
    a = torch.randn((k, D, D + 2), generator=seeded(seed), dtype=torch.float64)
    a = a * torch.linspace(1, 5, D, dtype=torch.float64)[:, None]
    return a @ a.mT / (D + 2) * (0.5 + torch.rand((k, 1, 1), generator=seeded(seed + 1), dtype=torch.float64))


def sampled(cov: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """Covariances of ``n`` normal points of each."""
    x = torch.randn((len(cov), n, D), generator=seeded(seed), dtype=torch.float64) @ sqrtm_psd(cov)
    x = x - x.mean(1, keepdim=True)
    return x.mT @ x / (n - 1)


def fitted(n: int = 40, share: float | None = None) -> SpectrumShrinkage:
    cov = covariances()
    spectrum = SpectrumShrinkage(D).double()
    sizes = [torch.full((K,), n)] * 2
    spectrum.fit([sampled(cov, n, 2), sampled(cov, n, 3)], sizes, cov.mean(0), 1.0)
    if share is not None:
        spectrum.share.fill_(share)
    return spectrum


def test_inverse_undoes_the_shrinkage():
    spectrum, cov = fitted(share=0.1), covariances(seed=5)
    assert float((spectrum(cov) - cov).abs().max()) > 0.1
    torch.testing.assert_close(spectrum.inverse(spectrum(cov)), cov, rtol=1e-8, atol=1e-8)


def test_multiples_of_the_pooled_covariance_stay_as_they_are():
    spectrum = fitted(share=0.1)
    pooled = covariances().mean(0)
    scaled = torch.tensor([0.2, 1.0, 7.0], dtype=torch.float64)[:, None, None] * pooled
    torch.testing.assert_close(spectrum(scaled), scaled, rtol=1e-6, atol=1e-6)


def test_other_covariances_come_closer_to_their_multiple_of_it():
    spectrum, cov = fitted(share=0.1), covariances(seed=5)
    inverse = torch.linalg.inv(sqrtm_psd(covariances().mean(0)))
    before, after = (torch.linalg.eigvalsh(inverse @ c @ inverse).log().std(1) for c in (cov, spectrum(cov)))
    torch.testing.assert_close(after, 0.9 * before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("equal", [True, False])
def test_gradient_where_eigenvalues_repeat_and_where_they_do_not(equal):
    spectrum = fitted(share=0.1)
    cov = covariances().mean(0) if equal else covariances(1)[0]

    def shrunk(x):
        return spectrum((x + x.T) / 2)

    assert torch.autograd.gradcheck(shrunk, (cov.clone().requires_grad_(True),), atol=1e-4)


def test_share_is_that_of_noise_and_falls_with_the_number_of_cells():
    shares = [float(fitted(n).share) for n in (400, 2000)]
    # noise of log eigenvalues is about 2 / n a direction and pair; variance between populations is about 1 / (D + 2)
    assert 0.003 < shares[0] < 0.05
    assert 3 < shares[0] / shares[1] < 8


def test_populations_that_are_all_alike_lose_little():
    cov = covariances().mean(0).expand(K, D, D)
    spectrum = SpectrumShrinkage(D).double()
    spectrum.fit([sampled(cov, 50, 2), sampled(cov, 50, 3)], [torch.full((K,), 50)] * 2, cov[0], 1.0)
    assert float(spectrum.share) == pytest.approx(MOST)


def test_few_cells_give_no_estimate_and_no_error():
    cov = sampled(covariances(), 4, 2)
    spectrum = SpectrumShrinkage(D).double()
    spectrum.fit([cov, cov], [torch.full((K,), 4)] * 2, cov.mean(0), 1.0)
    assert float(spectrum.share) == pytest.approx(MOST)
    assert torch.isfinite(spectrum(cov)).all()


def encoded(n: int = 32) -> tuple[ResidualEncoder, torch.Tensor, torch.Tensor]:
    """Encoder fitted to centred populations of 64 cells, with embeddings and covariances of ``n`` cells of new ones."""
    x = torch.randn((K, 64, D), generator=seeded(2), dtype=torch.float64) @ sqrtm_psd(covariances())
    codes = torch.arange(K).repeat_interleave(64)
    encoder = ResidualEncoder(D, D + D * (D + 1) // 2).double()
    with torch.no_grad():
        encoder.fit(x.flatten(0, 1), codes, PopulationMoments.from_cells(x.flatten(0, 1), codes, K), 64)
        cov = covariances(60, seed=9)
        x = torch.randn((60, n, D), generator=seeded(4), dtype=torch.float64) @ sqrtm_psd(cov)
        x = x - x.mean(1, keepdim=True)
        z = encoder(x.flatten(0, 1), torch.arange(60).repeat_interleave(n))
    return encoder, z, x.mT @ x / n


def test_skeleton_reads_the_covariance_itself_off_an_embedding_of_the_shrunk_one():
    encoder, z, own = encoded()
    assert encoder.spectrum.share > 0.01
    skeleton = AffineSkeleton(D, z.shape[1]).double()
    skeleton.spectrum.load_state_dict(encoder.spectrum.state_dict())
    skeleton.floor = 1e-6
    own = own + encoder.floor * encoder.pooled_cov
    skeleton.fit(z, skeleton.vector(torch.zeros(60, D, dtype=torch.float64), own))
    with torch.no_grad():
        root = skeleton(z)[1]
    torch.testing.assert_close(root @ root, own, rtol=0.02, atol=0.02)


def test_shrunk_distances_of_spread_are_as_long_as_noiseless_ones():
    encoder, _, _ = encoded()
    mean, cov = torch.zeros(60, D, dtype=torch.float64), covariances(60, seed=9)
    with torch.no_grad():
        z = encoder.vector(mean, cov + encoder.floor * encoder.pooled_cov) @ encoder.projection
    ratio = torch.pdist(z) / torch.pdist(sqrtm_psd(cov).flatten(1))
    # axes are scaled by the root of their reliability, so that noise makes up for the rest
    assert 0.8 < float(ratio.mean()) < 1.05


def with_column(cov: torch.Tensor, kind: str) -> torch.Tensor:
    """The same covariances with one more column, that is a sum of the others or (nearly) constant."""
    last = torch.ones(1, D) if kind == "sum" else torch.zeros(1, D)
    change = torch.cat([torch.eye(D), last]).to(cov)
    cov = change @ cov @ change.T
    cov[:, D, D] += 1e-6 if kind == "tiny" else 0.0
    return cov


@pytest.mark.parametrize("kind", ["sum", "constant", "tiny"])
def test_columns_that_say_nothing_change_neither_the_share_nor_what_is_decoded(kind):
    spectrum, cov = SpectrumShrinkage(D + 1), with_column(covariances(), kind)
    halves = [sampled(covariances(), 40, seed) for seed in (2, 3)]
    spectrum.fit([with_column(half, kind) for half in halves], [torch.full((K,), 40)] * 2, cov.mean(0).float(), 1.0)
    assert float(spectrum.share) == pytest.approx(float(fitted(40).share), rel=0.35 if kind == "sum" else 0.01)
    spectrum.share.fill_(0.1)
    skeleton = AffineSkeleton(D + 1, D + 1 + (D + 1) * (D + 2) // 2).double()
    skeleton.spectrum = spectrum
    with torch.no_grad():
        skeleton.linear.weight.copy_(torch.eye(len(skeleton.linear.weight)))
        skeleton.linear.bias.zero_()
        root = skeleton(skeleton.vector(torch.zeros(K, D + 1, dtype=torch.float64), cov))[1]
    torch.testing.assert_close((root @ root)[:, :D, :D], cov[:, :D, :D], rtol=1e-3, atol=1e-3)
