"""What sampling of cells does to distances between populations, and tests that take it into account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import pdist, squareform
from scipy.stats import false_discovery_control

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_PACKED_ENTRIES = 2**24
_DRAWN_CELLS = 2**22

MOST_PERMUTATIONS = 10**7
"""Permutations that a test draws at most: hours, for populations of some hundred cells."""

SPREAD_WEIGHT = 0.25
"""Weight of each of the two parts of :func:`spread_vectors` that are about spread, against one for the mean."""

N_SPREAD = 10
"""Leading principal components whose spread :func:`spread_vectors` looks at: the number of its entries is about half the square."""


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
    z, trace, trace_square = sampling_noise(vectors, members)
    return noisy_distances(z, trace, trace_square, lambda block: packed_covariances(vectors, members[block]))


def sampling_noise(
    vectors: NDArray[np.floating], members: list[NDArray[np.intp]]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means ``(K, w)`` of populations, and the traces of their sampling covariances and of the squares of these, ``(K,)`` each."""
    n_sets = len(members)
    z = np.full((n_sets, vectors.shape[1]), np.nan)
    trace, trace_square = (np.full(n_sets, np.nan) for _ in range(2))
    for k, rows in enumerate(members):
        if len(rows) < 1:
            continue
        x = np.asarray(vectors[rows], dtype=np.float64)
        z[k] = x.mean(0)
        if len(rows) > 1:
            total, square = _trace_estimates(x - z[k])
            trace[k], trace_square[k] = total / len(rows), square / len(rows) ** 2
    return z, trace, trace_square


def packed_covariances(vectors: NDArray[np.floating], members: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    """Sampling covariances of populations, ``(K, w (w + 1) / 2)``; NaN for fewer than two cells.

    Symmetric matrices are packed into vectors whose inner product is the trace of the product.
    """
    rows, columns, scale = _packing(vectors.shape[1])
    packed = np.full((len(members), len(scale)), np.nan)
    for i, chosen in enumerate(members):
        n = len(chosen)
        if n > 1:
            x = np.asarray(vectors[chosen], dtype=np.float64)
            x -= x.mean(0)
            packed[i] = (x.T @ x)[rows, columns] * scale / (n * (n - 1))
    return packed


def noisy_distances(
    z: NDArray[np.float64],
    trace: NDArray[np.float64],
    trace_square: NDArray[np.float64],
    covariances: Callable[[slice], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """:func:`corrected_distances` from what :func:`sampling_noise` gives, and packed covariances of a range of populations."""
    width = z.shape[1]
    # squares of coordinates far from the origin would cancel badly in the quadratic forms
    z = z - np.nanmean(z, axis=0)
    forms, products = _pairwise_forms(z, covariances)

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


def spread_vectors(cells: NDArray[np.floating], block: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    r"""Vectors whose means tell populations apart with high power, from the pooled cells of two of them.

    Three parts lie side by side, all centred within blocks:

    - the cells themselves, multiplied by :math:`S^{-1/4}` with :math:`S` their covariance: halfway between plain distance, which is
      blind to small directions, and a Mahalanobis distance, in which noisy directions weigh as much as any;
    - their influence on the root of the covariance of the leading :data:`N_SPREAD` principal components, balanced in the same way;
    - the Mahalanobis length in these components: populations of one mean and different spread differ in it.

    The covariance of each part is scaled to the Frobenius norm 1, and the last two by :data:`SPREAD_WEIGHT`: these are the ratios of
    the standard deviations that the parts of the squared difference of two means have under the hypothesis. Labels of populations are
    not used, so that permuting them is exact.

    Parameters
    ----------
    cells
        Cells of both populations in a representation that was learned without labels, ``(cells, w)``.
    block
        Block of each cell, ``(cells,)``; one block by default.

    Returns
    -------
    ``(cells, w + k (k + 1) / 2 + 1)`` with ``k`` components at most, zero on average in every block.
    """
    weights = np.sqrt([1.0, SPREAD_WEIGHT, SPREAD_WEIGHT])
    return np.concatenate([w * part for w, part in zip(weights, spread_parts(cells, block), strict=True)], axis=1)


def spread_parts(
    cells: NDArray[np.floating], block: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The three parts of :func:`spread_vectors`, each scaled to the norm 1."""
    x = _centre(np.asarray(cells, dtype=np.float64), block)
    values, axes = np.linalg.eigh(x.T @ x / max(len(x) - 1, 1))
    values, axes = values[::-1], axes[:, ::-1]
    # directions in which cells do not vary stay out
    seen = values > 1e-10 * max(values[0], 1e-300)
    scores = x @ axes[:, seen]
    mean = scores * values[seen] ** -0.25
    lead, root = scores[:, :N_SPREAD], np.sqrt(values[seen][:N_SPREAD])
    i, j = np.triu_indices(lead.shape[1])
    # the differential of a root of a diagonal matrix (Higham 2008, Functions of Matrices, theorem 3.11)
    spread = lead[:, i] * lead[:, j] / (root[i] + root[j]) * np.where(i == j, 1.0, np.sqrt(2.0))
    length = np.sqrt(np.square(lead / root).sum(1, keepdims=True))
    return _to_unit(mean), _to_unit(_balanced(_varying(spread, block))), _to_unit(_varying(length, block))


def _varying(x: NDArray[np.float64], block: NDArray[np.integer] | None) -> NDArray[np.float64]:
    """Rows less the mean of their block, or zeros where they differ by rounding only: all of few cells are equally far away."""
    centred = _centre(x, block)
    return centred if np.square(centred).sum() > 1e-16 * np.square(x).sum() else np.zeros_like(x)


def _balanced(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred rows multiplied by the inverse fourth root of their covariance."""
    values, axes = np.linalg.eigh(x.T @ x / max(len(x) - 1, 1))
    largest = values[-1] if len(values) else 0.0
    root = np.where(values > 1e-10 * largest, np.maximum(values, 1e-300) ** -0.25, 0.0) if largest > 0 else values * 0
    return x @ axes * root


def _to_unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred rows whose covariance has the Frobenius norm 1, or zeros."""
    norm = float(np.linalg.norm(x.T @ x / max(len(x) - 1, 1)))
    return x / np.sqrt(norm) if norm > 1e-200 else np.zeros_like(x)


def permutation_test(
    vectors: NDArray[np.floating],
    in_source: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    n_permutations: int = 999,
    block: NDArray[np.integer] | None = None,
) -> tuple[float, float]:
    r"""Test whether two groups of exchangeable vectors have the same mean, by permuting the groups.

    The statistic is the squared Euclidean distance between the two means over its average under permutation, and the
    p-value :math:`(1 + \#\{T^* \ge T\}) / (1 + B)`, which is exact: it is at most :math:`\alpha` with probability at
    most :math:`\alpha` (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9, article 39).

    Parameters
    ----------
    vectors
        Vectors of all cells, ``(cells, w)``, computed without the groups.
    in_source
        Whether each cell is in the first group, ``(cells,)``.
    rng
        Source of the permutations.
    n_permutations
        Number ``B`` of permutations.
    block
        Block of each cell, ``(cells,)``. Cells are permuted within blocks, and vectors are compared after
        subtraction of the mean of their block.

    Returns
    -------
    Statistic, about 1 where there is no difference, and p-value. Both are NaN where no permutation could change the
    statistic: no block has cells of both groups, or all vectors are equal.
    """
    x = _centre(np.asarray(vectors, dtype=np.float64), block)
    codes = np.zeros(len(x), dtype=np.int64) if block is None else np.unique(block, return_inverse=True)[1]
    expected, observed, groups = 0.0, np.zeros(x.shape[1]), []
    for rows in _members(codes, int(codes.max()) + 1):
        part, chosen = x[rows], in_source[rows]
        n, m = len(rows), int(chosen.sum())
        if not 0 < m < n:
            continue
        # mean square of the sum of m of n vectors drawn without replacement
        expected += m * (n - m) / (n * (n - 1)) * float(np.square(part).sum())
        # sums of the two groups are opposite: that of the smaller one costs less
        sign = 1.0 if 2 * m <= n else -1.0
        chosen, m = (chosen, m) if sign > 0 else (~chosen, n - m)
        observed += sign * part[chosen].sum(0)
        groups.append((sign * part, m))
    if not expected > 1e-20:
        return float("nan"), float("nan")
    statistic = float(observed @ observed) / expected
    # sums in another order differ by rounding: equal groups must count as ties
    least = statistic - 1e-9 * max(statistic, 1.0)
    exceeding, step = 0, max(_DRAWN_CELLS // max(sum(m for _, m in groups), x.shape[1]), 1)
    for start in range(0, n_permutations, step):
        b = min(step, n_permutations - start)
        sums = np.zeros((b, x.shape[1]))
        for part, m in groups:
            drawn = np.concatenate([rng.choice(len(part), m, replace=False, shuffle=False) for _ in range(b)])
            sums += sp.csr_matrix((np.ones(b * m), drawn, np.arange(b + 1) * m), shape=(b, len(part))) @ part
        exceeding += int((np.square(sums).sum(1) / expected >= least).sum())
    return statistic, (1 + exceeding) / (1 + n_permutations)


def check_permutations(n_permutations: Any) -> None:
    """Raise unless this is a number of permutations."""
    is_integer = isinstance(n_permutations, int | np.integer) and not isinstance(n_permutations, bool)
    if not is_integer or not 1 <= n_permutations <= MOST_PERMUTATIONS:
        message = f"n_permutations={n_permutations!r} must be an integer from 1 to {MOST_PERMUTATIONS:,}."
        raise ValueError(message)


def adjust_p_values(p_values: NDArray[np.floating], correction: str | None) -> NDArray[np.float64]:
    """P-values adjusted for their number; NaN are no tests and stay.

    Parameters
    ----------
    p_values
        ``(tests,)``.
    correction
        ``"fdr_bh"`` (Benjamini and Hochberg), ``"fdr_by"`` (Benjamini and Yekutieli), ``"bonferroni"``, or None for no
        adjustment.

    Raises
    ------
    ValueError
        If ``correction`` is unknown.
    """
    if correction not in ("fdr_bh", "fdr_by", "bonferroni", None):
        message = f"correction={correction!r} must be 'fdr_bh', 'fdr_by', 'bonferroni' or None."
        raise ValueError(message)
    adjusted = np.array(p_values, dtype=np.float64)
    tested = np.isfinite(adjusted)
    if correction == "bonferroni":
        adjusted[tested] = np.minimum(adjusted[tested] * tested.sum(), 1.0)
    elif correction is not None and tested.any():
        adjusted[tested] = false_discovery_control(adjusted[tested], method=correction.removeprefix("fdr_"))
    return adjusted


def _centre(x: NDArray[np.float64], block: NDArray[np.integer] | None) -> NDArray[np.float64]:
    """Rows less the mean of their block."""
    if block is None:
        return x - x.mean(0)
    _, codes = np.unique(block, return_inverse=True)
    sums = np.zeros((codes.max() + 1, x.shape[1]))
    np.add.at(sums, codes, x)
    return x - (sums / np.bincount(codes)[:, None])[codes]


def _members(segment: NDArray[np.integer], n_sets: int) -> list[NDArray[np.intp]]:
    """Rows of each population."""
    order = np.argsort(segment, kind="stable")
    bounds = np.searchsorted(segment[order], np.arange(n_sets + 1))
    return [order[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _trace_estimates(centred: NDArray[np.float64]) -> tuple[float, float]:
    """Unbiased estimates of the traces of a covariance and of its square from centred vectors ``(n, w)``.

    The plug-in trace of the square is too large by about the squared trace over n. The correction is that of Himeno and
    Yamada (2014, Journal of Multivariate Analysis 130), which holds for any law; it needs four vectors, and
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


def _packing(width: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Rows and columns of the entries of a packed symmetric matrix, and what each is multiplied by."""
    rows, columns = np.triu_indices(width)
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))


def _pairwise_forms(
    z: NDArray[np.float64], covariances: Callable[[slice], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``(z_i - z_j)' C_i (z_i - z_j)`` and ``tr(C_i C_j)`` for all pairs, ``(K, K)`` each.

    All pairs are matrix products of packed covariances, which are held for a block of populations at a time.
    """
    n_sets, width = z.shape
    rows, columns, scale = _packing(width)
    step = max(_PACKED_ENTRIES // len(scale), 1)
    blocks = [slice(start, min(start + step, n_sets)) for start in range(0, n_sets, step)]
    forms, products = np.empty((n_sets, n_sets)), np.empty((n_sets, n_sets))

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
