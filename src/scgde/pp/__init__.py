"""Preparation of cells for models: files of any size, sorted by population, and counts of matched depth."""

from ._depth import match_depth
from ._write import write_populations

__all__ = ["match_depth", "write_populations"]
