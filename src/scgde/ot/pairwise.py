from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from ._validate import check_cloud, check_same_dimension, to_numpy, to_tensor
from .debiased import cross_cost, draw_halves
from .exact import exact_cost
from .gaussian import pairwise_gaussian_wasserstein
from .sinkhorn import pairwise_sinkhorn
from .sliced import draw_directions, quantile_cost, sort_projections

Metric = Literal["exact", "gaussian", "sliced", "sinkhorn"]
_METRICS = ("exact", "gaussian", "sliced", "sinkhorn")


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
    blur: float | None = None,
    debiased: bool = False,
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
        points themselves, with divisor n), ``"sliced"`` averages over directions that all pairs share, ``"sinkhorn"`` is
        the debiased :func:`sinkhorn_divergence` of many pairs at once, on the device and in the precision of ``x``.
    x_other, segment_other
        A second collection of sets in the same space; by default the first is compared with itself.
    n_segments, n_segments_other
        Number of sets in each collection; by default one more than the largest code.
    n_projections
        Number of directions of the sliced distance.
    blur
        Blur of the Sinkhorn divergence, one length for all pairs. By default a tenth of the root mean squared distance of
        points from the mean of their set, averaged over all sets.
    debiased
        Take :func:`debiased_wasserstein` for the exact distance, with one split of each set: right on average for sets of
        one law, too small for sets of unlike shape.
    seed
        Seed or generator that the directions, or the halves of the debiased distance, are drawn from.
    progress
        Show a progress bar.

    Returns
    -------
    Matrix of distances of shape ``(sets, sets)`` or ``(sets, other sets)``, in float64; a tensor if ``x`` is one.
    For a single collection it is symmetric with a zero diagonal.

    Raises
    ------
    ValueError
        If a set is empty (or has one point, for the debiased distance), a point is not finite, dimensions or lengths
        differ, the metric is unknown, or ``debiased`` is asked of another metric than the exact one.
    TypeError
        If the codes are not integers.

    Warns
    -----
    UserWarning
        If some Sinkhorn iterations do not converge.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.array([[0.0], [2.0], [5.0], [9.0]])
    >>> pairwise_distances(points, np.array([0, 0, 1, -1]), progress=False).round(3)
    array([[0.   , 4.123],
           [4.123, 0.   ]])
    """
    check_metric(metric)
    if debiased and metric != "exact":
        raise ValueError(
            f"`debiased` is asked of metric {metric!r}: only the exact distance is debiased by halves. "
            "The Sinkhorn divergence is debiased already."
        )
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
        distances = pairwise_gaussian_wasserstein(*moments(sets), *(() if others is None else moments(others)))
    elif metric == "sinkhorn":
        pool = torch.empty(0, device=device, dtype=x.dtype if as_tensor and x.is_floating_point() else torch.float64)
        distances = pairwise_sinkhorn(sets, others, blur=blur, like=pool, progress=progress)
    else:
        if debiased:
            rng = _numpy_generator(seed)
            sets = [draw_halves(f"x[segment == {i}]", points, rng) for i, points in enumerate(sets)]
            if others is not None:
                others = [draw_halves(f"x_other[segment_other == {i}]", points, rng) for i, points in enumerate(others)]
        elif metric == "sliced":
            # The root of the dimension puts the values on the scale of W2, as in `sliced_wasserstein`.
            d = sets[0].shape[1]
            directions = d**0.5 * draw_directions(d, n_projections, seed)
            sets = [sort_projections(to_tensor(points), directions)[0] for points in sets]
            if others is not None:
                others = [sort_projections(to_tensor(points), directions)[0] for points in others]
        columns = sets if others is None else others
        distances = np.zeros((len(sets), len(columns)))
        selves = [np.array([exact_cost(*halves) for halves in group]) / 2 for group in (sets, columns) if debiased]
        for i, j in _pairs(len(sets), len(columns), others is None, progress, metric):
            cost = cross_cost(sets[i], columns[j]) if debiased else pair_cost(sets[i], columns[j], metric)
            distances[i, j] = max(cost - selves[0][i] - selves[1][j], 0.0) ** 0.5 if debiased else cost**0.5
        if others is None:
            distances += distances.T
    return torch.as_tensor(distances, device=device) if as_tensor else distances


def pair_cost(x: Any, y: Any, metric: Metric) -> float:
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


def _numpy_generator(seed: int | np.random.Generator | torch.Generator) -> np.random.Generator:
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (1,), generator=seed, device=seed.device))
    return np.random.default_rng(seed)


def moments(sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means ``(K, d)`` and covariances ``(K, d, d)`` of the points themselves."""
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


def check_metric(metric: str) -> None:
    """Raise unless the metric is known."""
    if metric not in _METRICS:
        raise ValueError(f"`metric` is {metric!r}: it must be one of {', '.join(map(repr, _METRICS))}.")
