"""Optimal transport between populations of points: distances, over all pairs of ragged sets too, geodesics, barycenters."""

from .barycenters import free_support_barycenter, gaussian_barycenter
from .cost import estimate_cost
from .debiased import debiased_wasserstein
from .exact import wasserstein
from .gaussian import bures, gaussian_wasserstein, pairwise_gaussian_wasserstein, sqrtm_psd
from .geodesics import displacement_interpolation, gaussian_geodesic, gaussian_map
from .mixture import fit_gaussian_mixture, mixture_wasserstein
from .pairwise import pairwise_distances
from .sinkhorn import sinkhorn_divergence
from .sliced import sliced_wasserstein

__all__ = [
    "bures",
    "debiased_wasserstein",
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
