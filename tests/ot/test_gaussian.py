import numpy as np
import pytest
import scipy.linalg
import torch

from scgde.ot import bures, gaussian_wasserstein, pairwise_gaussian_wasserstein, sqrtm_psd


def random_psd(*shape, seed=0):
    factor = np.random.default_rng(seed).normal(size=(*shape, shape[-1]))
    return factor @ np.swapaxes(factor, -1, -2) + 0.1 * np.eye(shape[-1])


def test_square_root_squares_to_the_matrix_and_agrees_with_scipy():
    matrices = random_psd(2, 3, 5)
    root = sqrtm_psd(matrices)
    assert isinstance(root, np.ndarray)
    np.testing.assert_allclose(root @ root, matrices, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(root[1, 2], scipy.linalg.sqrtm(matrices[1, 2]), atol=1e-10)
    np.testing.assert_allclose(sqrtm_psd(torch.tensor(matrices)).numpy(), root, atol=1e-12)


def test_square_root_keeps_single_precision():
    assert sqrtm_psd(np.eye(3, dtype=np.float32)).dtype == np.float32
    assert sqrtm_psd(torch.eye(3)).dtype == torch.float32


def test_read_only_arrays_are_accepted_without_a_warning(recwarn):
    matrix = np.eye(3)
    matrix.setflags(write=False)
    assert (sqrtm_psd(matrix) == np.eye(3)).all() and bures(matrix, matrix) == 0
    assert len(recwarn) == 0


def test_slightly_negative_eigenvalues_count_as_zero():
    np.testing.assert_allclose(sqrtm_psd(np.diag([4.0, -1e-12])), np.diag([2.0, 0.0]), atol=1e-12)


@pytest.mark.parametrize(
    "matrix",
    [random_psd(4), np.eye(3), np.diag([2.0, 2.0, 5.0]), random_psd(2, 3, seed=1)],
    ids=["distinct", "identity", "one pair equal", "batched"],
)
def test_square_root_gradient(matrix):
    # gradcheck perturbs single entries, so it also checks that only the symmetric part counts.
    assert torch.autograd.gradcheck(sqrtm_psd, torch.tensor(matrix, requires_grad=True))


def test_gradient_through_a_repeated_eigenvalue_of_a_product():
    factor = torch.tensor(np.linalg.qr(random_psd(4))[0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: sqrtm_psd(f @ f.T), factor)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 0.0, 0.0]))])
def test_gradient_of_singular_matrices_is_finite(matrix):
    matrix = matrix.requires_grad_()
    sqrtm_psd(matrix).sum().backward()
    assert torch.isfinite(matrix.grad).all()


def test_commuting_covariances_have_a_closed_form():
    basis = np.linalg.qr(random_psd(4))[0]
    a, b = np.array([1.0, 2, 3, 4]), np.array([4.0, 0.5, 3, 0])
    value = bures(basis * a @ basis.T, basis * b @ basis.T)
    assert value == pytest.approx(np.linalg.norm(np.sqrt(a) - np.sqrt(b)), rel=1e-7)


def test_general_covariances_agree_with_scipy():
    a, b = random_psd(5), random_psd(5, seed=1)
    root = scipy.linalg.sqrtm(a)
    expected = np.trace(a + b - 2 * scipy.linalg.sqrtm(root @ b @ root).real)
    assert bures(a, b) ** 2 == pytest.approx(expected, rel=1e-9)


def test_gaussian_distance_in_one_dimension():
    # On the line W2^2 = (m1 - m2)^2 + (s1 - s2)^2.
    value = gaussian_wasserstein(np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[36.0]]))
    assert value == pytest.approx(5.0, rel=1e-12)


def test_translation_of_a_singular_law():
    cov = np.diag([1.0, 0.0])
    assert gaussian_wasserstein(np.zeros(2), cov, np.array([3.0, 4.0]), cov) == pytest.approx(5, rel=1e-12)


def test_broadcasting_and_squares():
    mean, cov = np.random.default_rng(0).normal(size=(6, 3)), random_psd(6, 3)
    value = gaussian_wasserstein(mean[:, None], cov[:, None], mean, cov)
    assert value.shape == (6, 6)
    squared = gaussian_wasserstein(mean[:, None], cov[:, None], mean, cov, squared=True)
    np.testing.assert_allclose(value**2, squared, atol=1e-12)
    one = gaussian_wasserstein(mean[1], cov[1], mean[4], cov[4])
    assert value[1, 4] == pytest.approx(one, rel=1e-12)


def test_metric_axioms():
    mean, cov = np.random.default_rng(0).normal(size=(7, 4)), random_psd(7, 4)
    distances = pairwise_gaussian_wasserstein(mean, cov)
    assert (np.diag(distances) == 0).all()
    np.testing.assert_array_equal(distances, distances.T)
    assert (distances[:, None] <= distances[:, :, None] + distances[None] + 1e-12).all()
    # Rounding of the traces: the root of the double resolution.
    assert gaussian_wasserstein(mean, cov, mean, cov).max() < 1e-6


def test_pairwise_agrees_with_broadcasting_in_any_chunking(monkeypatch):
    mean, cov = np.random.default_rng(0).normal(size=(9, 3)), random_psd(9, 3)
    expected = gaussian_wasserstein(mean[:, None], cov[:, None], mean[:4], cov[:4])
    for limit in (1, 1000, 2**26):
        monkeypatch.setattr("scgde.ot.gaussian._CHUNK_BYTES", limit)
        # Equal laws carry the rounding of the traces.
        actual = pairwise_gaussian_wasserstein(mean, cov, mean[:4], cov[:4])
        np.testing.assert_allclose(actual, expected, atol=1e-6)
        square = pairwise_gaussian_wasserstein(mean, cov)
        np.testing.assert_allclose(square[:, :4], expected, atol=1e-6)
    assert pairwise_gaussian_wasserstein(mean[:1], cov[:1]).tolist() == [[0.0]]


def test_tensors_stay_tensors_and_pass_gradients():
    mean = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    cov = torch.tensor(random_psd(4, 3), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, c: gaussian_wasserstein(m[:2], c[:2], m[2:], c[2:], squared=True), (mean, cov)
    )
    assert torch.autograd.gradcheck(pairwise_gaussian_wasserstein, (mean, cov))
    equal = gaussian_wasserstein(mean, cov, mean, cov, squared=True).sum()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(equal, (mean, cov)))


def test_gradient_for_identical_and_degenerate_laws_is_finite():
    mean, cov = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, 2, requires_grad=True)
    pairwise_gaussian_wasserstein(mean, cov).sum().backward()
    assert torch.isfinite(mean.grad).all() and torch.isfinite(cov.grad).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sqrtm_psd(np.zeros((2, 3))), "`matrix` has shape"),
        (lambda: bures(np.eye(2), np.eye(3)), "`cov_x` has 2 dimensions"),
        (lambda: bures(np.ones(3), np.eye(3)), "`cov_x` has shape"),
        (lambda: gaussian_wasserstein(np.zeros(3), np.eye(2), np.zeros(2), np.eye(2)), "`mean_x` has shape"),
        (lambda: pairwise_gaussian_wasserstein(np.zeros((2, 2)), np.eye(2)), "Stack the laws"),
        (lambda: pairwise_gaussian_wasserstein(np.zeros((1, 1)), np.ones((1, 1, 1)), np.zeros((1, 1))), "`cov_y`"),
    ],
)
def test_errors_name_the_argument(call, match):
    with pytest.raises(ValueError, match=match):
        call()
