"""Populations of cells as the unit of analysis: Generative Distribution Embeddings on scvi-tools."""

from importlib.metadata import version

from . import datasets, ot, pl, tl
from .model import GDEModel

__all__ = ["GDEModel", "datasets", "ot", "pl", "tl"]

__version__ = version("scgde")
