"""Wasserstein-2 distances between populations of points: exact, Gaussian, sliced, and over all pairs of ragged sets."""

from .exact import wasserstein
from .gaussian import bures, gaussian_wasserstein, pairwise_gaussian_wasserstein, sqrtm_psd
from .pairwise import estimate_cost, pairwise_distances
from .sliced import sliced_wasserstein

__all__ = [
    "bures",
    "estimate_cost",
    "gaussian_wasserstein",
    "pairwise_distances",
    "pairwise_gaussian_wasserstein",
    "sliced_wasserstein",
    "sqrtm_psd",
    "wasserstein",
]
