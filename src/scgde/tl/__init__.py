"""Analyses of populations with a trained model. Every function returns a table; none writes to its input."""

from ._genes import rank_genes_between
from ._groups import test_groups
from ._test import test_populations

__all__ = ["rank_genes_between", "test_groups", "test_populations"]
