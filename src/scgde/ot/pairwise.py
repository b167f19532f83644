from collections.abc import Iterator
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch

from ._validate import check_cloud, check_same_dimension, to_numpy, to_tensor
from .exact import exact_cost
from .gaussian import pairwise_gaussian_wasserstein
from .sliced import draw_directions, quantile_cost, sort_projections

Metric = Literal["exact", "gaussian", "sliced"]
_METRICS = ("exact", "gaussian", "sliced")

# Growth of the time of one pair with the product of the two sizes, from timings of 50 to 1,000 points in 2 to 10
# dimensions; the Gaussian distance works on moments, whatever the sizes.
_GROWTH = {"exact": 1.3, "sliced": 0.7, "gaussian": 0.0}
# Largest size that is timed, so that an estimate takes well under a second.
_TIMED_SIZE = 300


def pairwise_distances(
    x: Any,
    segment: Any,
    *,
    metric: Metric = "exact",
    x_other: Any = None,
    segment_other: Any = None,
    n_segments: int | None = None,
    n_segments_other: int | None = None,
    n_projections: int = 128,
    seed: int | np.random.Generator | torch.Generator = 0,
    progress: bool = True,
) -> np.ndarray | torch.Tensor:
    """2-Wasserstein distances between all pairs of sets of points, given as flat rows and codes.

    Parameters
    ----------
    x
        All points, one per row, of shape ``(rows, d)``.
    segment
        Integer code of the set of each row, of shape ``(rows,)``; rows of code -1 are in no set and are ignored.
    metric
        ``"exact"`` solves the transport problem of each pair, ``"gaussian"`` compares means and covariances (of the
        points themselves, with divisor n), ``"sliced"`` averages over directions that all pairs share.
    x_other, segment_other
        A second collection of sets in the same space; by default the first is compared with itself.
    n_segments, n_segments_other
        Number of sets in each collection; by default one more than the largest code.
    n_projections, seed
        Number of directions of the sliced distance, and the seed or generator that they are drawn from.
    progress
        Show a progress bar.

    Returns
    -------
    Matrix of distances of shape ``(sets, sets)`` or ``(sets, other sets)``, in float64; a tensor if ``x`` is one.
    For a single collection it is symmetric with a zero diagonal.

    Raises
    ------
    ValueError
        If a set is empty, a point is not finite, dimensions or lengths differ, or the metric is unknown.
    TypeError
        If the codes are not integers.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.array([[0.0], [2.0], [5.0], [9.0]])
    >>> pairwise_distances(points, np.array([0, 0, 1, -1]), progress=False).round(3)
    array([[0.   , 4.123],
           [4.123, 0.   ]])
    """
    _check_metric(metric)
    if (x_other is None) != (segment_other is None):
        given, lacking = ("x_other", "segment_other") if segment_other is None else ("segment_other", "x_other")
        raise ValueError(f"`{given}` is given without `{lacking}`: a second collection needs both. Give `{lacking}`.")
    as_tensor, device = isinstance(x, torch.Tensor), getattr(x, "device", None)
    # Matrices of points; for the sliced distance they become sorted projections.
    sets: list[Any] = _split(x, segment, n_segments, "x", "segment")
    others: list[Any] | None = None
    if x_other is not None:
        others = _split(x_other, segment_other, n_segments_other, "x_other", "segment_other")
        check_same_dimension("x", sets[0], "x_other", others[0])

    if metric == "gaussian":
        distances = pairwise_gaussian_wasserstein(*_moments(sets), *(() if others is None else _moments(others)))
    else:
        if metric == "sliced":
            # The root of the dimension puts the values on the scale of W2, as in `sliced_wasserstein`.
            d = sets[0].shape[1]
            directions = d**0.5 * draw_directions(d, n_projections, seed)
            sets = [sort_projections(to_tensor(points), directions)[0] for points in sets]
            if others is not None:
                others = [sort_projections(to_tensor(points), directions)[0] for points in others]
        columns = sets if others is None else others
        distances = np.zeros((len(sets), len(columns)))
        for i, j in _pairs(len(sets), len(columns), others is None, progress, metric):
            distances[i, j] = np.sqrt(_pair_cost(sets[i], columns[j], metric))
        if others is None:
            distances += distances.T
    return torch.as_tensor(distances, device=device) if as_tensor else distances


def estimate_cost(
    sizes: Any, sizes_other: Any = None, metric: Metric = "exact", *, n_features: int = 10, n_projections: int = 128
) -> float:
    """Rough time that :func:`pairwise_distances` will take, from timing one pair of the median size on this machine.

    Parameters
    ----------
    sizes, sizes_other
        Numbers of points of the sets of each collection.
    metric
        The distance.
    n_features
        Dimension of the points.
    n_projections
        Number of directions of the sliced distance.

    Returns
    -------
    Seconds, right within a factor of about three: the time of an exact distance depends on the points too.

    Raises
    ------
    ValueError
        If a size is below one or the metric is unknown.

    Examples
    --------
    >>> 0 < estimate_cost([40, 50, 60]) < 10
    True
    """
    _check_metric(metric)
    sizes = _check_sizes("sizes", sizes)
    others = None if sizes_other is None else _check_sizes("sizes_other", sizes_other)
    n = min(int(np.median(sizes)), _TIMED_SIZE)
    # One point more on one side where sizes vary: pairs of equal size take a shortcut that few pairs of such a
    # collection can take.
    varied = len(np.unique(sizes if others is None else np.concatenate([sizes, others]))) > 1
    m = n + 1 if varied else min(int(np.median(sizes if others is None else others)), _TIMED_SIZE)
    rng = np.random.default_rng(0)
    x: Any = rng.normal(size=(n, n_features))
    y: Any = rng.normal(size=(m, n_features)) + 0.5
    if metric == "sliced":
        directions = draw_directions(n_features, n_projections, 0)
        x, y = (sort_projections(to_tensor(points), directions)[0] for points in (x, y))
    elif metric == "gaussian":
        # A batch of 64 pairs, as the matrix of distances is computed in large batches.
        x, y = ([np.repeat(moment, 8, axis=0) for moment in _moments([points])] for points in (x, y))

    def run() -> float:
        start = perf_counter()
        if metric == "gaussian":
            pairwise_gaussian_wasserstein(*x, *y)
            return (perf_counter() - start) / 64
        _pair_cost(x, y, metric)
        return perf_counter() - start

    # The first call also pays for imports and caches.
    run()
    seconds = min(run() for _ in range(3))

    growth = _GROWTH[metric]
    left = sizes**growth / n**growth
    if others is not None:
        return float(seconds * left.sum() * (others**growth / m**growth).sum())
    return float(seconds * (left.sum() ** 2 - (left**2).sum()) / 2)


def _pair_cost(x: Any, y: Any, metric: Metric) -> float:
    """Squared distance of one pair: of points for the exact distance, of sorted projections for the sliced one."""
    if metric == "exact":
        return exact_cost(x, y)
    return float(quantile_cost(x, y).mean())


def _pairs(n_rows: int, n_columns: int, symmetric: bool, progress: bool, metric: str) -> Iterator[tuple[int, int]]:
    from tqdm.auto import tqdm

    total = n_rows * (n_rows - 1) // 2 if symmetric else n_rows * n_columns
    with tqdm(total=total, desc=f"{metric} distances", unit="pair", disable=not progress) as bar:
        for i in range(n_rows):
            for j in range(i + 1 if symmetric else 0, n_columns):
                yield i, j
                bar.update()


def _moments(sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    mean = np.stack([points.mean(axis=0) for points in sets])
    centred = (points - centre for points, centre in zip(sets, mean, strict=True))
    return mean, np.stack([points.T @ points / len(points) for points in centred])


def _split(x: Any, segment: Any, n_segments: int | None, name: str, name_segment: str) -> list[np.ndarray]:
    """The sets as float64 matrices in order of their codes."""
    x = to_numpy(x)
    codes = segment.detach().cpu().numpy() if isinstance(segment, torch.Tensor) else np.asarray(segment)
    if codes.dtype.kind not in "iu":
        raise TypeError(
            f"`{name_segment}` has type {codes.dtype}: it holds integer codes. Use `pandas.factorize` on labels."
        )
    if x.ndim != 2 or codes.shape != (len(x),):
        raise ValueError(
            f"`{name}` has shape {x.shape} and `{name_segment}` {codes.shape}: they must be (rows, d) and (rows,). "
            "Give one code per row."
        )
    x, codes = x[codes != -1], codes[codes != -1].astype(np.int64)
    check_cloud(name, x)
    n_segments = int(codes.max()) + 1 if n_segments is None else n_segments
    if codes.min() < 0 or codes.max() >= n_segments:
        raise ValueError(
            f"`{name_segment}` ranges from {codes.min()} to {codes.max()}: codes go from 0 to {n_segments - 1}, or are "
            "-1 for rows in no set. Renumber them with `pandas.factorize`."
        )
    sizes = np.bincount(codes, minlength=n_segments)
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise ValueError(
            f"`{name_segment}` has no row for {len(empty)} of {n_segments} codes (first {empty[:5].tolist()}): "
            "every set needs at least one point. Drop empty sets and renumber."
        )
    return np.split(x[np.argsort(codes, kind="stable")], np.cumsum(sizes)[:-1])


def _check_metric(metric: str) -> None:
    if metric not in _METRICS:
        raise ValueError(f"`metric` is {metric!r}: it must be one of {', '.join(map(repr, _METRICS))}.")


def _check_sizes(name: str, sizes: Any) -> np.ndarray:
    sizes = to_numpy(sizes)
    if sizes.ndim != 1 or len(sizes) == 0 or not (sizes >= 1).all():
        raise ValueError(
            f"`{name}` has shape {sizes.shape} and holds {sizes.ravel()[:5].tolist()}: it must be a list of sizes of at "
            "least 1. Drop empty sets first."
        )
    return sizes
