"""Clones over time: labels from barcodes, and what early cells know about late ones."""

from scgde.lineage.barcodes import clone_labels, shared_clones
from scgde.lineage.coupling import Coupling, clonal_coupling
from scgde.lineage.fate import Fate, late_composition, posterior_embedding, predict_fate
from scgde.lineage.forecast import Forecaster
from scgde.lineage.information import Information, Projection, clone_information, ksg_information

__all__ = [
    "Coupling",
    "Fate",
    "Forecaster",
    "Information",
    "Projection",
    "clonal_coupling",
    "clone_information",
    "clone_labels",
    "ksg_information",
    "late_composition",
    "posterior_embedding",
    "predict_fate",
    "shared_clones",
]
