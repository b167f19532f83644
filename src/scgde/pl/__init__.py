"""Plots. Every function draws on one :class:`matplotlib.axes.Axes` and returns it; none writes to its input."""

from ._distances import population_distances
from ._generated import real_vs_generated
from ._population import population_embedding
from ._replicates import replicates
from ._training import training_curves

__all__ = ["population_distances", "population_embedding", "real_vs_generated", "replicates", "training_curves"]
