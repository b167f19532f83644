from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from ._validate import as_pair, check_covariances, check_means, restore
from .sliced import safe_sqrt

# Bytes of the stacks of matrices that are held at once when all pairs are compared.
_CHUNK_BYTES = 64 * 2**20


def sqrtm_psd(matrix: Any) -> Any:
    r"""Square root of symmetric positive semi-definite matrices.

    Eigenvalues below zero, left by rounding, count as zero. For tensors the backward pass solves the Sylvester equation
    :math:`S\,dS + dS\,S = dC` in the eigenbasis of :math:`S`, where it reads :math:`dS_{ij} = dC_{ij} / (s_i + s_j)`.
    It is finite for repeated eigenvalues, where the gradient of an eigendecomposition is not. Denominators are kept
    above the rounding error of the eigenvalues, which also bounds the gradient of singular matrices.

    Parameters
    ----------
    matrix
        Array or tensor of shape ``(*, d, d)``. Only its symmetric part is used.

    Returns
    -------
    The symmetric square roots, of the same kind and shape.

    Raises
    ------
    ValueError
        If the last two dimensions are not equal.

    Examples
    --------
    >>> import numpy as np
    >>> sqrtm_psd(np.diag([4.0, 9.0]))
    array([[2., 0.],
           [0., 3.]])
    """
    if not isinstance(matrix, torch.Tensor):
        matrix = np.asarray(matrix)
        dtype = np.float32 if matrix.dtype == np.float32 else np.float64
        return sqrtm_psd(torch.from_numpy(np.require(matrix, dtype, ["C", "W"]))).numpy()
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"`matrix` has shape {tuple(matrix.shape)}: the last two dimensions must be equal. "
            "Give covariance matrices of shape (*, d, d)."
        )
    return _SqrtmPSD.apply((matrix + matrix.mT) / 2)


class _SqrtmPSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor) -> torch.Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        roots = eigenvalues.clamp_min(0).sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors * roots.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        roots, vectors = ctx.saved_tensors
        largest = roots[..., -1:, None]
        # Eigenvalues carry an error of eps times the largest, hence roots one of sqrt(eps) times the largest root.
        floor = torch.where(largest > 0, largest * torch.finfo(roots.dtype).eps ** 0.5, 1.0)
        denominator = torch.maximum(roots.unsqueeze(-1) + roots.unsqueeze(-2), floor)
        inner = vectors.mT @ ((gradient + gradient.mT) / 2) @ vectors / denominator
        return vectors @ inner @ vectors.mT


def bures(cov_x: Any, cov_y: Any) -> Any:
    r"""Bures distance between covariance matrices: the W2 distance of two centred Gaussians.

    .. math:: B(A, B)^2 = \operatorname{tr}\big(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}\big)

    Parameters
    ----------
    cov_x, cov_y
        Symmetric positive semi-definite matrices of shape ``(*, d, d)``; leading dimensions are broadcast.

    Returns
    -------
    The distances (not squared), of shape ``(*,)``: a tensor if an argument is one, else a NumPy array or float.

    Raises
    ------
    ValueError
        If the matrices are not square or of different size.

    Notes
    -----
    Traces cancel when the matrices are nearly equal: distances below ``sqrt(eps * trace)`` are rounding error, where
    ``eps`` is the resolution of the floating type (1e-16 for double, 1e-7 for single precision).

    Examples
    --------
    >>> import numpy as np
    >>> round(float(bures(np.diag([4.0, 1.0]), np.diag([1.0, 1.0]))), 6)
    1.0
    """
    as_tensor = isinstance(cov_x, torch.Tensor) or isinstance(cov_y, torch.Tensor)
    cov_x, cov_y = as_pair(cov_x, cov_y)
    check_covariances("cov_x", cov_x, "cov_y", cov_y)
    return restore(safe_sqrt(squared_bures(cov_x, cov_y)), as_tensor)


def gaussian_wasserstein(mean_x: Any, cov_x: Any, mean_y: Any, cov_y: Any, *, squared: bool = False) -> Any:
    r"""2-Wasserstein distance between Gaussian laws.

    .. math:: W_2^2 = \lVert \mu_x - \mu_y \rVert^2 + B(\Sigma_x, \Sigma_y)^2

    with the Bures distance :math:`B` (Dowson and Landau 1982, J Multivariate Anal 12, 450-455).

    Parameters
    ----------
    mean_x, mean_y
        Means of shape ``(*, d)``; leading dimensions are broadcast.
    cov_x, cov_y
        Covariance matrices of shape ``(*, d, d)``.
    squared
        Return the squared distance, whose gradient is finite for equal laws.

    Returns
    -------
    The distances, of shape ``(*,)``: a tensor if an argument is one, else a NumPy array or float.

    Raises
    ------
    ValueError
        If means and covariances do not have the same dimension.

    Examples
    --------
    >>> import numpy as np
    >>> float(gaussian_wasserstein(np.zeros(2), np.eye(2), np.array([3.0, 4.0]), np.eye(2)))
    5.0
    """
    as_tensor = any(isinstance(value, torch.Tensor) for value in (mean_x, cov_x, mean_y, cov_y))
    mean_x, mean_y = as_pair(mean_x, mean_y)
    cov_x, cov_y = as_pair(cov_x, cov_y)
    check_covariances("cov_x", cov_x, "cov_y", cov_y)
    check_means("mean_x", mean_x, "cov_x", cov_x)
    check_means("mean_y", mean_y, "cov_y", cov_y)
    value = (mean_x - mean_y).square().sum(-1) + squared_bures(cov_x, cov_y)
    return restore(value if squared else safe_sqrt(value), as_tensor)


def pairwise_gaussian_wasserstein(mean: Any, cov: Any, mean_y: Any = None, cov_y: Any = None) -> Any:
    """2-Wasserstein distances between all pairs of Gaussian laws.

    Parameters
    ----------
    mean, cov
        Means of shape ``(K, d)`` and covariances of shape ``(K, d, d)``.
    mean_y, cov_y
        A second set of ``L`` laws; by default the first set is compared with itself.

    Returns
    -------
    Matrix of distances, ``(K, L)``, of the same kind as the input; symmetric with a zero diagonal for a single set.

    Raises
    ------
    ValueError
        If only one of ``mean_y`` and ``cov_y`` is given, or shapes do not fit.

    Notes
    -----
    One square root per law and the eigenvalues of one ``d`` by ``d`` matrix per pair, in chunks of bounded memory.

    Examples
    --------
    >>> import numpy as np
    >>> pairwise_gaussian_wasserstein(np.array([[0.0], [2.0]]), np.ones((2, 1, 1)))
    array([[0., 2.],
           [2., 0.]])
    """
    if (mean_y is None) != (cov_y is None):
        given, lacking = ("mean_y", "cov_y") if cov_y is None else ("cov_y", "mean_y")
        raise ValueError(
            f"`{given}` is given without `{lacking}`: the second set of laws needs both. Give `{lacking}`."
        )
    as_tensor = any(isinstance(value, torch.Tensor) for value in (mean, cov, mean_y, cov_y))
    symmetric = mean_y is None
    mean, mean_y = as_pair(mean, mean if symmetric else mean_y)
    cov, cov_y = as_pair(cov, cov if symmetric else cov_y)
    check_covariances("cov", cov, "cov_y", cov_y)
    for name, value, name_cov, covariance in (("mean", mean, "cov", cov), ("mean_y", mean_y, "cov_y", cov_y)):
        check_means(name, value, name_cov, covariance)
        if value.ndim != 2 or covariance.shape != (*value.shape, value.shape[-1]):
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)} and `{name_cov}` {tuple(covariance.shape)}: they must be "
                "(laws, d) and (laws, d, d). Stack the laws along the first dimension."
            )

    n_rows, n_columns, d = len(mean), len(mean_y), mean.shape[1]
    if symmetric:
        rows, columns = torch.triu_indices(n_rows, n_rows, offset=1, device=mean.device)
    else:
        rows = torch.arange(n_rows, device=mean.device).repeat_interleave(n_columns)
        columns = torch.arange(n_columns, device=mean.device).repeat(n_rows)
    root = sqrtm_psd(cov)
    # A pair holds about four matrices: the two factors, their product and the solver's copy.
    size = max(1, _CHUNK_BYTES // (4 * d * d * mean.element_size()))
    values = [
        (mean[i] - mean_y[j]).square().sum(-1) + squared_bures(cov[i], cov_y[j], root[i])
        for i, j in zip(rows.split(size), columns.split(size), strict=True)
    ]
    flat = safe_sqrt(torch.cat(values)) if values else mean.new_zeros(0)
    if not symmetric:
        return restore(flat.reshape(n_rows, n_columns), as_tensor)
    upper = mean.new_zeros(n_rows, n_rows).index_put((rows, columns), flat)
    return restore(upper + upper.T, as_tensor)


def squared_bures(cov_x: torch.Tensor, cov_y: torch.Tensor, root_x: torch.Tensor | None = None) -> torch.Tensor:
    """Squared Bures distances clipped at zero, given ``root_x``, the square root of ``cov_x``, where it is known."""
    root_x = sqrtm_psd(cov_x) if root_x is None else root_x
    inner = root_x @ cov_y @ root_x
    inner = (inner + inner.mT) / 2
    if inner.requires_grad:
        # tr of the root through the bounded backward pass: roots of vanishing eigenvalues have infinite slope.
        cross = sqrtm_psd(inner).diagonal(dim1=-2, dim2=-1).sum(-1)
    else:
        cross = torch.linalg.eigvalsh(inner).clamp_min(0).sqrt().sum(-1)
    traces = (cov_x.diagonal(dim1=-2, dim2=-1) + cov_y.diagonal(dim1=-2, dim2=-1)).sum(-1)
    return (traces - 2 * cross).clamp_min(0)
