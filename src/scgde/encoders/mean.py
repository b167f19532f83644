"""Mean pooling: the plainest encoder, isometric in the means."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scgde.encoders.base import PooledEncoder
from scgde.moments import moment_size


class MeanEncoder(PooledEncoder):
    """``z`` is a linear map of the mean cell latent; it starts as an isometry and sees first moments only."""

    is_linear = True

    def __init__(self, n_latent: int, n_embedding: int, n_hidden: int = 128) -> None:
        super().__init__(n_latent, n_embedding)
        self.linear = nn.Linear(n_latent, n_embedding, bias=False)
        with torch.no_grad():
            # rows or columns are orthonormal, whichever are fewer
            self.linear.weight.copy_(torch.eye(n_embedding, n_latent))

    def features(self, u: Tensor) -> Tensor:
        return u

    def head(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)

    def inverse(self) -> Tensor:
        rows = moment_size(self.n_latent) - self.n_latent
        return torch.cat([self.linear.weight.detach().T, self.linear.weight.new_zeros(rows, self.n_embedding)])
