"""Conditional Wasserstein GAN with gradient penalty."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from scgde._networks import mlp
from scgde.generators.transport import DirectGenerator


class GANGenerator(DirectGenerator):
    """Generated cells against a critic of bounded slope (Gulrajani et al. 2017, arXiv 1704.00028).

    Generator and critic learn in the same step: the critic sees generated cells without their graph, and the generator a
    critic whose weights are held fixed, so that one backward pass gives each its own gradient. The critic does not train the
    population's embedding, which would be bent to its needs.

    Parameters
    ----------
    n_latent, n_condition, n_hidden
        See :class:`~scgde.generators.Generator`.
    penalty
        Weight of the squared deviation of the critic's slope from one.
    """

    def __init__(self, n_latent: int, n_condition: int, n_hidden: int = 128, penalty: float = 2.0) -> None:
        super().__init__(n_latent, n_condition, n_hidden)
        self.critic = mlp(n_latent + n_condition, n_hidden, 1)
        self.penalty = penalty

    def loss(self, y: Tensor, condition: Tensor, segment: Tensor, generator: torch.Generator | None = None) -> Tensor:
        generated = self.sample(condition, generator)
        context, fake = condition.detach(), generated.detach()
        fixed = {name: p.detach() for name, p in self.critic.named_parameters()}
        judged = functional_call(self.critic, fixed, (torch.cat([generated, context], dim=1),))[:, 0]
        gap = self._judge(fake, context) - self._judge(y.detach(), context)
        return gap + self.penalty * self._slope_penalty(fake, y.detach(), context, generator) - judged

    def learning_rate_factor(self, name: str) -> float:
        # at equal rates the two chase each other in circles
        return 1.0 if name.startswith("critic.") else 0.2 * super().learning_rate_factor(name)

    def _judge(self, y: Tensor, context: Tensor) -> Tensor:
        return self.critic(torch.cat([y, context], dim=1))[:, 0]

    def _slope_penalty(self, fake: Tensor, real: Tensor, context: Tensor, generator: torch.Generator | None) -> Tensor:
        share = torch.rand((len(real), 1), generator=generator, dtype=real.dtype, device=real.device)
        with torch.enable_grad():  # validation has no graph, and the slope needs one
            between = (share * real + (1 - share) * fake).requires_grad_(True)
            training = torch.is_grad_enabled() and self.training
            slope = torch.autograd.grad(self._judge(between, context).sum(), between, create_graph=training)[0]
        return ((slope.square().sum(1) + 1e-12).sqrt() - 1).square()
