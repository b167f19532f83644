"""Preparation of cells for models: files of any size, sorted by population."""

from ._write import write_populations

__all__ = ["write_populations"]
