"""Clones over time: labels from barcodes, and what early cells know about late ones."""

from scgde.lineage.barcodes import clone_labels, shared_clones
from scgde.lineage.fate import Fate, posterior_embedding, predict_fate
from scgde.lineage.information import Information, Projection, clone_information, ksg_information

__all__ = [
    "Fate",
    "Information",
    "Projection",
    "clone_information",
    "clone_labels",
    "ksg_information",
    "posterior_embedding",
    "predict_fate",
    "shared_clones",
]
