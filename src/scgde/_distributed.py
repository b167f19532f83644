"""What several processes that train one model tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Gather(torch.autograd.Function):
    """Rows of all processes, in their order. The gradient of each row is the sum of what the processes have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
        ctx.sizes = [int(n) for n in sizes]
        padded = x.new_zeros((max(ctx.sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in ctx.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = sum(ctx.sizes[: dist.get_rank()])
        return gradient[start : start + ctx.sizes[dist.get_rank()]]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, ``(sum of their numbers, *)``.

    Processes that each have the whole loss of the gathered rows, and whose gradients are averaged afterwards, get the gradients
    of one process that has all rows.
    """
    if x.dtype == torch.bool:
        return gather(x.to(torch.uint8)).to(torch.bool)
    return _Gather.apply(x)


def own_part(x: Tensor) -> Tensor:
    """The part that falls to this process of rows that all processes have; :func:`gather` puts the parts together again."""
    return x.tensor_split(dist.get_world_size())[dist.get_rank()]


def of_any(x: Tensor) -> Tensor:
    """Whether any process has true, elementwise."""
    some = x.to(torch.uint8)
    dist.all_reduce(some, op=dist.ReduceOp.MAX)
    return some.to(torch.bool)


def share(n: Tensor | int, device: torch.device) -> Tensor:
    """Weight of the mean over this process's ``n`` things, so that the average over processes is the mean over all things."""
    own = torch.as_tensor(n, dtype=torch.float64, device=device)
    total = own.clone()
    dist.all_reduce(total)
    return (own * dist.get_world_size() / total.clamp_min(1)).float()


@torch.no_grad()
def agree(module: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first: machines may round differently."""
    for value in module.state_dict().values():
        dist.broadcast(value, 0)
