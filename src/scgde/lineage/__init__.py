"""Clones over time: what early cells know about late ones."""

from scgde.lineage.information import Information, Projection, clone_information, ksg_information

__all__ = ["Information", "Projection", "clone_information", "ksg_information"]
