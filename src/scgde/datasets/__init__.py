"""Simulated populations of known truth, and public data sets."""

from .real import has_dataset, list_datasets, load
from .screen import simulate_screen
from .simulate import simulate_cells, simulate_populations

__all__ = ["has_dataset", "list_datasets", "load", "simulate_cells", "simulate_populations", "simulate_screen"]
