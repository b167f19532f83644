"""The change of the gene that a perturbation is aimed at, which no latent of a few axes holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from scgde.data import CellTable
    from scgde.perturbation.design import Design, Treatment

PSEUDOCOUNT = 0.5

MIN_PERTURBATIONS = 3
"""Perturbations of genes of the data that a mean effect on targets is made of at least."""


class TargetEffects:
    r"""Log ratios of target genes, perturbed over control, of perturbations that have the name of a gene.

    A knock-down or an activation changes its own gene first, by about the same factor for all genes, and nothing about an unseen
    perturbation is as sure. The effect of perturbation p is :math:`N(m, \tau^2)`, both by the method of moments (DerSimonian and Laird
    1986, Control Clin Trials 7, 177-188); that of an unseen one is ``m``, that of one that was seen its posterior mean.

    Treatments with doses have no part in this.

    Parameters
    ----------
    ratios, variances
        Log ratio and its sampling variance by perturbation and context.
    columns
        Column of each perturbation's gene.
    """

    def __init__(
        self, ratios: dict[tuple[str, str], float], variances: dict[tuple[str, str], float], columns: dict[str, int]
    ) -> None:
        self.columns, self.ratios, self.variances = columns, ratios, variances
        names = sorted({p for p, _ in ratios})
        self.own = {p: self._joined([c for q, c in ratios if q == p], p) for p in names}
        values, errors = (np.array([self.own[p][k] for p in names]) for k in (0, 1))
        self.between = float("inf")
        self.mean = 0.0
        self.is_known = len(names) >= MIN_PERTURBATIONS
        if self.is_known:
            self.between = float(
                max((np.square(values - values.mean()).sum() / (len(values) - 1)) - errors.mean(), 0.0)
            )
            weight = 1 / (errors + self.between + 1e-9)
            self.mean = float((weight * values).sum() / weight.sum())

    def _joined(self, contexts: list[str], perturbation: str) -> tuple[float, float]:
        """Mean over contexts by precision, and its variance."""
        precision = np.array([1 / self.variances[perturbation, c] for c in contexts])
        values = np.array([self.ratios[perturbation, c] for c in contexts])
        return float((precision * values).sum() / precision.sum()), float(1 / precision.sum())

    @classmethod
    def fit(cls, design: Design, totals: np.ndarray, library: np.ndarray, columns: dict[str, int]) -> TargetEffects:
        """From total counts of genes ``(n, n_vars)`` and of all genes ``(n,)`` in the cells of each row of a design."""
        ratios, variances = {}, {}
        for i in np.flatnonzero(~design.is_control):
            parts = design.treatments[i].parts
            if len(parts) > 1 or parts[0] not in columns or design.treatments[i].dose is not None:
                continue
            gene, control = columns[parts[0]], design.control_row(design.contexts[i])
            a, b = totals[i, gene] + PSEUDOCOUNT, totals[control, gene] + PSEUDOCOUNT
            key = parts[0], design.contexts[i]
            ratios[key] = float(np.log(a / max(library[i], 1.0)) - np.log(b / max(library[control], 1.0)))
            variances[key] = float(1 / a + 1 / b)
        return cls(ratios, variances, columns)

    def log_ratios(self, treatment: Treatment, context: str | None) -> dict[int, float]:
        """Log ratio of the target gene of each part, by column; parts of which nothing is known, and doses, have none."""
        result: dict[int, float] = {}
        for part in treatment.parts if treatment.dose is None else ():
            if part not in self.columns:
                continue
            own = None
            if (part, context) in self.ratios:
                own = self.ratios[part, str(context)], self.variances[part, str(context)]
            elif part in self.own:
                own = self.own[part]
            if own is not None and self.is_known:
                share = self.between / (self.between + own[1])
                result[self.columns[part]] = share * own[0] + (1 - share) * self.mean
            elif own is not None:
                result[self.columns[part]] = own[0]
            elif self.is_known:
                result[self.columns[part]] = self.mean
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        keys = list(self.ratios)
        return {
            "perturbations": [p for p, _ in keys],
            "contexts": [c for _, c in keys],
            "ratios": np.array([self.ratios[k] for k in keys]),
            "variances": np.array([self.variances[k] for k in keys]),
            "genes": list(self.columns),
            "columns": np.array(list(self.columns.values()), dtype=np.int64),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TargetEffects:
        """Inverse of :meth:`to_dict`."""
        keys = list(zip(content["perturbations"], content["contexts"], strict=True))
        ratios, variances = (
            dict(zip(keys, np.asarray(content[name]).tolist(), strict=True)) for name in ("ratios", "variances")
        )
        columns = dict(zip(content["genes"], np.asarray(content["columns"]).tolist(), strict=True))
        return cls(ratios, variances, columns)


def summed_counts(table: CellTable, rows: np.ndarray, codes: np.ndarray, n: int) -> np.ndarray:
    """Total counts of the cells ``rows`` by their ``codes``, ``(n, n_vars)``."""
    totals = np.zeros((n, table.matrix.shape[1]))
    for block in np.array_split(np.arange(len(codes)), max(len(codes) // 5000, 1)):
        indicator = sp.csr_matrix((np.ones(len(block)), (codes[block], np.arange(len(block)))), (n, len(block)))
        totals += indicator @ table.rows(rows[block])
    return totals
