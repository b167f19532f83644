"""Wasserstein-2 distances between populations of points: exact, Gaussian, sliced, and over all pairs of ragged sets."""

from .barycenters import free_support_barycenter, gaussian_barycenter
from .exact import wasserstein
from .gaussian import bures, gaussian_wasserstein, pairwise_gaussian_wasserstein, sqrtm_psd
from .geodesics import displacement_interpolation, gaussian_geodesic, gaussian_map
from .mixture import fit_gaussian_mixture, mixture_wasserstein
from .pairwise import estimate_cost, pairwise_distances
from .sinkhorn import sinkhorn_divergence
from .sliced import sliced_wasserstein

__all__ = [
    "bures",
    "displacement_interpolation",
    "estimate_cost",
    "fit_gaussian_mixture",
    "free_support_barycenter",
    "gaussian_barycenter",
    "gaussian_geodesic",
    "gaussian_map",
    "gaussian_wasserstein",
    "mixture_wasserstein",
    "pairwise_distances",
    "pairwise_gaussian_wasserstein",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "sqrtm_psd",
    "wasserstein",
]
