"""Observation models: from a row of data to a cell latent and back."""

from scgde.observations.base import Context, ObservationModel
from scgde.observations.continuous import ContinuousModel
from scgde.observations.counts import CountModel

COUNT_LIKELIHOODS = ("zinb", "nb", "poisson")

__all__ = ["COUNT_LIKELIHOODS", "Context", "ContinuousModel", "CountModel", "ObservationModel"]
