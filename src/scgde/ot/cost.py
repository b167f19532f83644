from time import perf_counter
from typing import Any

import numpy as np

from ._validate import to_numpy, to_tensor
from .gaussian import pairwise_gaussian_wasserstein
from .pairwise import Metric, check_metric, moments, pair_cost
from .sinkhorn import sinkhorn_divergence
from .sliced import draw_directions, sort_projections

# Growth of the time of one pair with the product of the two sizes, from timings of 50 to 1,000 points in 2 to 10
# dimensions; the Gaussian distance works on moments, whatever the sizes.
_GROWTH = {"exact": 1.3, "sliced": 0.7, "gaussian": 0.0, "sinkhorn": 1.0}
# Largest sizes that are timed, so that an estimate takes well under a second.
_TIMED_SIZE = {"exact": 300, "sliced": 300, "gaussian": 300, "sinkhorn": 100}
# Pairs of a batch that is timed.
_TIMED_PAIRS = 16


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
    check_metric(metric)
    sizes = _check_sizes("sizes", sizes)
    others = None if sizes_other is None else _check_sizes("sizes_other", sizes_other)
    n = min(int(np.median(sizes)), _TIMED_SIZE[metric])
    # One point more on one side where sizes vary: pairs of equal size take a shortcut that few pairs of such a
    # collection can take.
    varied = len(np.unique(sizes if others is None else np.concatenate([sizes, others]))) > 1
    m = n + 1 if varied else min(int(np.median(sizes if others is None else others)), _TIMED_SIZE[metric])
    rng = np.random.default_rng(0)
    x: Any = rng.normal(size=(n, n_features))
    y: Any = rng.normal(size=(m, n_features)) + 0.5
    if metric == "sliced":
        directions = draw_directions(n_features, n_projections, 0)
        x, y = (sort_projections(to_tensor(points), directions)[0] for points in (x, y))
    elif metric == "sinkhorn":
        x, y = (np.repeat(points[None], _TIMED_PAIRS, axis=0) for points in (x, y))
    elif metric == "gaussian":
        # A batch of 64 pairs, as the matrix of distances is computed in large batches.
        x, y = ([np.repeat(moment, 8, axis=0) for moment in moments([points])] for points in (x, y))

    def run() -> float:
        start = perf_counter()
        if metric == "gaussian":
            pairwise_gaussian_wasserstein(*x, *y)
            return (perf_counter() - start) / 64
        if metric == "sinkhorn":
            sinkhorn_divergence(x, y)
            return (perf_counter() - start) / _TIMED_PAIRS
        pair_cost(x, y, metric)
        return perf_counter() - start

    # The first call also pays for imports and caches.
    run()
    seconds = min(run() for _ in range(3))

    growth = _GROWTH[metric]
    left = sizes**growth / n**growth
    if others is not None:
        return float(seconds * left.sum() * (others**growth / m**growth).sum())
    return float(seconds * (left.sum() ** 2 - (left**2).sum()) / 2)


def _check_sizes(name: str, sizes: Any) -> np.ndarray:
    sizes = to_numpy(sizes)
    if sizes.ndim != 1 or len(sizes) == 0 or not (sizes >= 1).all():
        raise ValueError(
            f"`{name}` has shape {sizes.shape} and holds {sizes.ravel()[:5].tolist()}: it must be a list of sizes of at "
            "least 1. Drop empty sets first."
        )
    return sizes
