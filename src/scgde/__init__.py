"""Populations of cells as the unit of analysis: Generative Distribution Embeddings on scvi-tools."""

from importlib.metadata import version

from . import cluster, datasets, lineage, ot, perturbation, pl, pp, tl
from .model import GDEModel
from .perturbation import PerturbationPredictor
from .sample_representation import SampleRepresentation

__all__ = [
    "GDEModel",
    "PerturbationPredictor",
    "SampleRepresentation",
    "cluster",
    "datasets",
    "lineage",
    "ot",
    "perturbation",
    "pl",
    "pp",
    "tl",
]

__version__ = version("scgde")
