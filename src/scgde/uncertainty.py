"""What sampling of cells does to distances between populations, and tests that take it into account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import pdist, squareform

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PACKED_ENTRIES = 2**24


def corrected_distances(
    vectors: NDArray[np.floating], segment: NDArray[np.integer], n_sets: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Squared distances between means of populations, freed of sampling noise, and their variances.

    Means :math:`z_i` with sampling covariances :math:`C_i` have
    :math:`E\|z_i - z_j\|^2 = \|\zeta_i - \zeta_j\|^2 + \operatorname{tr} C_i + \operatorname{tr} C_j`, so that populations
    of few cells look further apart than they are. The estimate without the two traces is the U-statistic of the squared
    distance, unbiased. With :math:`d = z_i - z_j`, :math:`\delta` its expectation and :math:`C = C_i + C_j`, its variance is

    .. math:: \operatorname{Var} = 4\,\delta' C \delta + 2 \operatorname{tr}(C^2),

    exact for Gaussian means (moments of a quadratic form; Mathai and Provost 1992, chapter 3). The first term alone, the
    delta method, vanishes at distance zero; the second is what remains there. :math:`\delta' C \delta` is estimated by
    :math:`d' C d - \operatorname{tr}(C^2)`, at least zero.

    Parameters
    ----------
    vectors
        Per-cell vectors, ``(cells, w)``, whose mean over a population is its embedding.
    segment
        Population of each cell, ``(cells,)``; negative for none.
    n_sets
        Number of populations ``K``.

    Returns
    -------
    Squared distances, which may be negative, and their variances, ``(K, K)`` each. NaN where a population has fewer than
    two cells; zero on the diagonal.
    """
    members = _members(segment, n_sets)
    width = vectors.shape[1]
    z = np.full((n_sets, width), np.nan)
    trace, trace_square = (np.full(n_sets, np.nan) for _ in range(2))
    for k, rows in enumerate(members):
        if len(rows) < 1:
            continue
        x = np.asarray(vectors[rows], dtype=np.float64)
        z[k] = x.mean(0)
        if len(rows) > 1:
            total, square = _trace_estimates(x - z[k])
            trace[k], trace_square[k] = total / len(rows), square / len(rows) ** 2
    # squares of coordinates far from the origin would cancel badly in the quadratic forms
    z -= np.nanmean(z, axis=0)
    forms, products = _pairwise_forms(vectors, members, z)

    squared = squareform(pdist(z, "sqeuclidean"))
    squared -= trace[:, None] + trace[None, :]
    products *= 2.0
    products += trace_square[:, None] + trace_square[None, :]
    forms += forms.T
    variance = np.maximum(forms - products, 0.0)
    variance *= 4.0
    # sums of squares cannot be small where those of their parts are not
    variance += 2.0 * np.maximum(products, (trace[:, None] + trace[None, :]) ** 2 / width)
    np.fill_diagonal(squared, 0.0)
    np.fill_diagonal(variance, 0.0)
    return squared, variance


def distance_and_error(
    squared: NDArray[np.floating], variance: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Distances from squared distances, and standard errors that stay finite at zero.

    A root has no derivative at zero. With the standard error :math:`s` of the squared distance :math:`q`, the standard
    error returned is :math:`\{x^{1/2} - (x - 2 s)^{1/2}\} / 2` at :math:`x = \max(q, 2 s)`: half the way from a distance
    to the root of what is two standard errors below. It is :math:`s / (2 q^{1/2})`, the delta method, for distances that
    are large against their error and :math:`(s / 2)^{1/2}` for others, and the distance plus or minus two standard
    errors holds the roots of :math:`q \pm 2 s`.

    Parameters
    ----------
    squared, variance
        Of the same shape; see :func:`corrected_distances`.

    Returns
    -------
    Roots of ``squared``, zero where it is negative, and standard errors, of the same shape.
    """
    error = np.sqrt(variance)
    x = np.maximum(squared, 2 * error)
    return np.sqrt(np.maximum(squared, 0.0)), (np.sqrt(x) - np.sqrt(x - 2 * error)) / 2


def _members(segment: NDArray[np.integer], n_sets: int) -> list[NDArray[np.intp]]:
    """Rows of each population."""
    order = np.argsort(segment, kind="stable")
    bounds = np.searchsorted(segment[order], np.arange(n_sets + 1))
    return [order[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _trace_estimates(centred: NDArray[np.float64]) -> tuple[float, float]:
    """Unbiased estimates of the traces of a covariance and of its square from centred vectors ``(n, w)``.

    The plug-in trace of the square is too large by about the squared trace over n. The correction is that of Himeno and
    Yamada (2014, Journal of Multivariate Analysis 130, section 2), which holds for any law; it needs four vectors, and
    fewer keep the plug-in.
    """
    n, width = centred.shape
    lengths = np.square(centred).sum(1)
    trace = float(lengths.sum() / (n - 1))
    gram = centred @ centred.T if n < width else centred.T @ centred
    plug_in = float(np.square(gram).sum() / (n - 1) ** 2)
    if n < 4:
        return trace, plug_in
    fourth = float(np.square(lengths).sum() / (n - 1))
    square = (n - 1) / (n * (n - 2) * (n - 3)) * ((n - 1) * (n - 2) * plug_in + trace**2 - n * fourth)
    # unbiased estimates can leave the range that eigenvalues allow
    return trace, min(max(square, trace**2 / width), plug_in)


def _pairwise_forms(
    vectors: NDArray[np.floating], members: list[NDArray[np.intp]], z: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(z_i - z_j)' C_i (z_i - z_j)`` and ``tr(C_i C_j)`` for all pairs, ``(K, K)`` each.

    Symmetric matrices are packed into vectors whose inner product is the trace of the product, so that all pairs are
    matrix products; packed covariances are held for a block of populations at a time.
    """
    n_sets, width = z.shape
    rows, columns = np.triu_indices(width)
    scale = np.where(rows == columns, 1.0, np.sqrt(2.0))
    step = max(_PACKED_ENTRIES // len(scale), 1)
    blocks = [slice(start, min(start + step, n_sets)) for start in range(0, n_sets, step)]
    forms, products = np.empty((n_sets, n_sets)), np.empty((n_sets, n_sets))

    def covariances(block: slice) -> NDArray[np.float64]:
        packed = np.full((block.stop - block.start, len(scale)), np.nan)
        for i, chosen in enumerate(members[block]):
            n = len(chosen)
            if n > 1:
                x = np.asarray(vectors[chosen], dtype=np.float64)
                x -= x.mean(0)
                packed[i] = (x.T @ x)[rows, columns] * scale / (n * (n - 1))
        return packed

    for i in blocks:
        cov = covariances(i)
        full = np.zeros((width, width))
        moved = np.empty((i.stop - i.start, width))
        for k, (row, point) in enumerate(zip(cov, z[i], strict=True)):
            full[rows, columns] = full[columns, rows] = row / scale
            moved[k] = full @ point
        own = (moved * z[i]).sum(1)
        for j in blocks:
            outer = z[j][:, rows] * z[j][:, columns] * scale
            forms[i, j] = cov @ outer.T - 2 * moved @ z[j].T + own[:, None]
            products[i, j] = cov @ (cov if i == j else covariances(j)).T
    # rounding of the sum of three terms
    np.maximum(forms, 0.0, out=forms)
    return forms, products
