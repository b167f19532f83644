"""What every observation model promises: one row to a latent, and back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp
    from torch import Tensor
    from torch.distributions import Distribution

    from scgde.components import CellComponents


@dataclass(frozen=True)
class Context:
    """What a decoder needs beside the latent, for the same rows.

    Attributes
    ----------
    library
        Library size or size factor, ``(cells, 1)``.
    batch
        Batch codes, ``(cells, 1)``, integers.
    categorical
        Codes of categorical covariates, ``(cells, n_categorical)``, or None.
    continuous
        Continuous covariates, ``(cells, n_continuous)``, or None.
    """

    library: Tensor
    batch: Tensor
    categorical: Tensor | None = None
    continuous: Tensor | None = None


class ObservationModel(nn.Module):
    """How one row of data becomes a low-dimensional latent ``u`` and back; nothing else knows what a row is.

    Attributes
    ----------
    n_latent
        Width of ``u``.
    is_learned
        Whether there is anything to train before the latents of cells are fixed.
    is_count
        Whether rows are integer counts.
    reads_sparse
        Whether rows may be given as CSR tensors without stored zeros.
    size_factor_gain
        Total count for each unit of size factor.
    latent_scale
        Standard deviation of the prior of each axis of ``u``, ``(n_latent,)``: ones until :meth:`fit_scale`.
    """

    n_latent: int
    is_learned: bool
    is_count: bool
    reads_sparse: bool = False
    size_factor_gain: Tensor
    latent_scale: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.register_buffer("latent_scale", torch.ones(n_latent))
        self.register_buffer("size_factor_gain", torch.ones(()))

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent given rows ``(cells, n_vars)``, each ``(cells, n_latent)``."""

    @property
    @abstractmethod
    def n_components(self) -> int:
        """Width of :meth:`components`."""

    @abstractmethod
    def components(self, x: Tensor) -> Tensor:
        """Rows ``(cells, n_vars)`` in a representation that labels of populations had no part in, ``(cells, n_components)``.

        What training learns from labels separates the very cells that it learned from. Tests on these cells need another
        representation.
        """

    @abstractmethod
    def decode(self, u: Tensor, context: Context) -> Distribution:
        """Law of rows given latents ``(cells, n_latent)``: a distribution over ``(cells, n_vars)``."""

    def log_likelihood(self, x: Tensor, u: Tensor, context: Context) -> Tensor:
        """Log-likelihood of rows ``(cells, n_vars)`` given their latents, ``(cells,)``: that of :meth:`decode`."""
        return self.decode(u, context).log_prob(x).sum(dim=1)

    @abstractmethod
    def draw(self, law: Distribution, generator: torch.Generator) -> Tensor:
        """One row from each law, ``(cells, n_vars)``, with an explicit source of randomness."""

    def profile(self, law: Distribution) -> Tensor:
        """Expected rows at library size one, ``(cells, n_vars)``; expected rows where there is no library size."""
        return law.mean

    def library(self, x: Tensor) -> Tensor:
        """Library size of rows, ``(cells, 1)``; ones where rows have none."""
        return torch.ones_like(x[:, :1])

    def log_library(self, u: Tensor) -> Tensor:
        """Expected log library size of cells with latents ``(cells, n_latent)``, ``(cells, 1)``; zeros without one."""
        return torch.zeros_like(u[:, :1])

    def fit_library(self, u: Tensor, library: Tensor) -> None:
        """Learn :meth:`log_library` from draws of latents and library sizes ``(cells, 1)``; a no-op by default."""

    def fit_scale(self, u: Tensor, context: Context) -> None:
        """Scale the axes of ``u`` by what they change in a row, given latents ``(cells, n_latent)``; a no-op by default."""

    def fit_depth(self, counts: sp.csr_matrix) -> None:
        """Learn from counts of cells ``(cells, n_vars)`` how latents depend on depth, and undo it; a no-op by default."""

    def reset_depth(self) -> None:
        """Undo :meth:`fit_depth` before cells are learned from again; a no-op by default."""

    def fit_covariates(self, continuous: Tensor) -> None:
        """Take centre and scale of the continuous covariates of the training cells ``(cells, n)``; a no-op by default."""

    def fit(self, mean: Tensor, variance: Tensor, size_factor_gain: float) -> None:
        """Set statistics of the training rows; a no-op by default.

        Parameters
        ----------
        mean, variance
            Of every column, ``(n_vars,)``.
        size_factor_gain
            Total count for each unit of size factor; one where library sizes are observed.
        """

    def warm_start(self, components: CellComponents, rows: np.ndarray, library: np.ndarray) -> None:
        """Start encoder and decoder of a learned model from principal components of cells; a no-op by default.

        Parameters
        ----------
        components
            Principal components of the training cells.
        rows, library
            Rows ``(cells, n_vars)`` and library sizes ``(cells,)`` of a sample of them.
        """

    def penalty(self) -> Tensor:
        """Minus the log prior of the weights, a scalar to add to the loss of the whole training set; zero by default."""
        return torch.zeros((), device=self.size_factor_gain.device)
