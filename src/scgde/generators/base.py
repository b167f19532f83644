"""What every generator promises."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from scgde.ot import sqrtm_psd

if TYPE_CHECKING:
    from torch import Tensor


class Generator(nn.Module):
    """The law of a cell's latent given its population's embedding.

    Generators work in the *co-moving frame* of a population: cells are centred and whitened by the moments that the
    :class:`~scgde.generators.skeleton.AffineSkeleton` reads off the embedding, so that a standard normal is already a
    fair answer and only the shape of the population is left to learn.

    Parameters
    ----------
    n_latent
        Width of a cell's latent.
    n_condition
        Width of the whitened population embedding that conditions the generator.
    n_hidden
        Width of hidden layers.
    """

    can_invert = False
    """Whether :meth:`invert` exists, so that cells can be transported between populations."""

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.n_condition = n_condition

    @abstractmethod
    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Training loss of each cell.

        Parameters
        ----------
        y
            Cells in the frame of their population, ``(cells, n_latent)``.
        condition
            Whitened embedding of each cell's population, ``(cells, n_condition)``.
        segment
            Code of each cell's population, ``(cells,)``.
        generator
            Source of randomness.

        Returns
        -------
        ``(cells,)``.
        """

    @property
    def n_noise(self) -> int:
        """Width of the standard normal noise that a cell is made of."""
        return self.n_latent

    @abstractmethod
    def push(self, noise: Tensor, condition: Tensor) -> Tensor:
        """The cells, in their population's frame, that noise ``(cells, n_noise)`` becomes: ``(cells, n_latent)``."""

    def sample(self, condition: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one cell, in its population's frame, for each row of ``condition``: ``(cells, n_latent)``."""
        shape = (condition.shape[0], self.n_noise)
        noise = torch.randn(shape, generator=generator, dtype=condition.dtype, device=condition.device)
        return self.push(noise, condition)

    def moments(self, condition: Tensor, n: int = 512) -> tuple[Tensor, Tensor]:
        """Means ``(K, n_latent)`` and covariances ``(K, n_latent, n_latent)`` of generated cells, ``condition`` ``(K, n_condition)``.

        From ``n`` fixed points that fill the normal law evenly: nothing is drawn, and the error is far below that of draws.
        """
        noise = normal_points(n, self.n_noise).to(condition)
        means, covs = [], []
        for block in condition.split(64):
            y = self.push(noise.repeat(len(block), 1), block.repeat_interleave(n, 0)).unflatten(0, (len(block), n))
            means.append(y.mean(1))
            centred = y - means[-1][:, None]
            covs.append(centred.mT @ centred / n)
        return torch.cat(means), torch.cat(covs)

    def learning_rate_factor(self, name: str) -> float:
        """Learning rate of a parameter, by its name, in units of the generators' learning rate."""
        return 1.0

    def invert(self, y: Tensor, condition: Tensor) -> Tensor:
        """Base noise that :meth:`sample` would turn into ``y``; only where ``can_invert``."""
        message = f"{type(self).__name__} cannot be run backwards; use generator='flow' to transport cells."
        raise TypeError(message)

    def log_prob(
        self, y: Tensor, condition: Tensor, *, n_samples: int = 64, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log density at ``y``, in the frame of each cell's population.

        Parameters
        ----------
        y
            Cells in the frame of their population, ``(cells, n_latent)``.
        condition
            Whitened embedding of each cell's population, ``(cells, n_condition)``.
        n_samples
            Draws for each cell, where the density has to be estimated; ignored elsewhere.
        generator
            Source of randomness of the draws.

        Returns
        -------
        ``(cells,)``.

        Raises
        ------
        TypeError
            If the generator has no density.
        """
        message = (
            f"{type(self).__name__} has no density; use generator='flow' or 'mixture' (exact) or 'vae' (a lower bound)."
        )
        raise TypeError(message)


@lru_cache(maxsize=8)
def normal_points(n: int, d: int) -> Tensor:
    """``n`` points ``(n, d)`` of a scrambled Sobol sequence in normal quantiles, of mean zero and covariance one."""
    uniform = torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(n, dtype=torch.float64)
    points = torch.special.ndtri(uniform.clamp(0.5 / n**2, 1 - 0.5 / n**2))
    points = points - points.mean(0)
    return points @ torch.linalg.inv(sqrtm_psd(points.T @ points / n))
