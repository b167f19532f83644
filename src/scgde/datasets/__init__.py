"""Simulated populations of known truth, and public data sets."""

from .lineage import fate_probabilities, lineage_information, simulate_lineage
from .real import has_dataset, list_datasets, load
from .screen import simulate_screen
from .simulate import simulate_cells, simulate_populations

__all__ = [
    "fate_probabilities",
    "has_dataset",
    "lineage_information",
    "list_datasets",
    "load",
    "simulate_cells",
    "simulate_lineage",
    "simulate_populations",
    "simulate_screen",
]
