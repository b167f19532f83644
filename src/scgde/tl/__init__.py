"""Analyses of populations with a trained model. Every function returns a table; none writes to its input."""

from ._expression import pseudobulk, rank_genes_groups
from ._genes import rank_genes_between
from ._groups import test_groups
from ._test import test_populations

__all__ = ["pseudobulk", "rank_genes_between", "rank_genes_groups", "test_groups", "test_populations"]
