"""Joint training: a loss of predictable shifts beside the generator's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from scgde.data.populations import as_label, constant_columns
from scgde.perturbation.design import check_features, describe
from scgde.perturbation.features import loadings_of

if TYPE_CHECKING:
    from scgde.data import CellTable

PURE = 0.999
"""Weight of a set's first population from which on it is a set of that population, and no mixture of several."""


class PredictableShifts(nn.Module):
    r"""A term of the training loss that draws the encoder towards embeddings whose shifts a description of perturbations predicts.

    For sets of one perturbed population with the embedding :math:`z_p`, and the embedding :math:`z_c` of their context's control, the loss is the mean
    of :math:`|z_p - z_c - W f_p|^2` over the spread of embeddings in the batch, with features ``f`` (scaled to unit variance) and a linear map ``W`` that is trained
    with the encoder and thrown away afterwards; :class:`scgde.PerturbationPredictor` fits its own heads. The generative distribution embeddings of perturbation
    screens are trained with such a term (Fishman et al. 2025, arXiv 2505.18150). Populations without features have no part in it.

    Parameters
    ----------
    perturbation_key, control, context_key
        As of :class:`scgde.PerturbationPredictor`.
    features
        One row for each perturbation; by default loadings of genes, for perturbations with the name of one.
    weight
        Weight beside the other terms.

    Raises
    ------
    ValueError
        If the weight is not positive, or features are wrong.

    Examples
    --------
    >>> joint = PredictableShifts("target", control="non-targeting")
    >>> model.train(plan_kwargs={"auxiliary": joint})  # doctest: +SKIP
    """

    described: Tensor
    is_control: Tensor
    context: Tensor
    described_by: Tensor
    last: Tensor

    def __init__(
        self,
        perturbation_key: str,
        control: str,
        *,
        features: pd.DataFrame | None = None,
        context_key: str | None = None,
        weight: float = 0.5,
    ) -> None:
        super().__init__()
        if not weight > 0:
            message = f"weight={weight!r} must be above zero; leave the term out for training in two steps."
            raise ValueError(message)
        self.perturbation_key, self.control, self.context_key = perturbation_key, as_label(control), context_key
        self.features = check_features(features, None)
        self.weight = weight
        self.head: nn.Linear | None = None

    def prepare(self, table: CellTable, rows: np.ndarray, n_embedding: int) -> None:
        """Take the features of populations; called when training starts.

        Parameters
        ----------
        table
            Cells of the model.
        rows
            Cells that train or validate, of which default features are made.
        n_embedding
            Width of the embedding.

        Raises
        ------
        KeyError
            If a column is absent.
        ValueError
            If no population is a control, a column varies within populations, or no perturbation has features.
        """
        obs = constant_columns(table, np.arange(table.n_cells), table.codes, len(table.labels), [])
        for argument in ("perturbation_key", "context_key"):
            key = getattr(self, argument)
            if key is not None and key in table.columns and key not in obs:
                message = f"{argument}={key!r} varies within populations: cross it into population_key."
                raise ValueError(message)
        pairs = describe(obs, self.perturbation_key, self.context_key, None, None, self.control, "obs")
        names = [None if t is None else t.name(None) for t in pairs["treatment"]]
        perturbation, context = np.array(names, dtype=object), pairs["context"].to_numpy()
        features = self.features
        if features is None:
            features = loadings_of(table, rows, sorted({p for p in perturbation if isinstance(p, str)}))
        is_control = perturbation == self.control
        if not is_control.any():
            message = f"control={self.control!r} is no population's perturbation."
            raise ValueError(message)
        if features is None or not np.isin(perturbation[~is_control], features.index).any():
            message = "No perturbation has features: pass features=, or train in two steps."
            raise ValueError(message)
        known = features.reindex(perturbation).to_numpy(dtype=np.float64)
        described = np.isfinite(known).all(1) & ~is_control
        own = known[described]
        spread = own.std(0)
        values = np.zeros_like(known)
        values[described] = (own - own.mean(0)) / np.where(spread > 0, spread, 1.0)
        codes = pd.factorize(context)[0]
        for name, value in (
            ("described", torch.from_numpy(described)),
            ("is_control", torch.from_numpy(is_control.astype(bool))),
            ("context", torch.from_numpy(codes)),
            ("described_by", torch.from_numpy(values.astype(np.float32))),
            # the last embedding that each context's control had, until a batch holds it again
            ("last", torch.full((codes.max() + 1, n_embedding), torch.nan)),
        ):
            self.register_buffer(name, value, persistent=False)
        with torch.random.fork_rng(devices=[]):  # must not move the user's random state
            self.head = nn.Linear(values.shape[1], n_embedding)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        """Weighted loss of a batch; zero where it holds nothing to predict.

        Parameters
        ----------
        z
            Embeddings of sets, ``(K, n_embedding)``.
        sources, weights
            Populations that each set is a mixture of, and their shares, ``(K, q)``.
        """
        assert self.head is not None
        first, pure = sources[:, 0], weights[:, 0] > PURE
        context = self.context[first]
        here = self.last.clone()
        for c in context[pure & self.is_control[first]].unique():
            own = pure & self.is_control[first] & (context == c)
            here[c] = z[own].mean(0)
        self.last.copy_(here.detach())
        chosen = pure & self.described[first] & here[context].isfinite().all(1)
        if not chosen.any():
            return z.new_zeros(())
        predicted = here[context[chosen]] + self.head(self.described_by[first[chosen]])
        spread = z.detach().var(0).sum().clamp_min(1e-8)
        return self.weight * (z[chosen] - predicted).square().sum(1).mean() / spread
