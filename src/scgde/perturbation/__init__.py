"""Prediction of perturbed populations, its baselines and its metrics."""

from scgde.perturbation import baselines, metrics
from scgde.perturbation.features import gene_loadings
from scgde.perturbation.joint import PredictableShifts
from scgde.perturbation.predictor import PerturbationPredictor

__all__ = ["PerturbationPredictor", "PredictableShifts", "baselines", "gene_loadings", "metrics"]
