"""What several processes that train one model tell each other, in few messages: each is a meeting that all of them wait for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

T = TypeVar("T", bound=tuple[Tensor, ...])


class ProcessesStrategy(DDPStrategy):
    """Lightning's ``ddp`` without torch's wrapper: the training plan averages the gradients itself (:class:`GradientAverage`).

    The wrapper sends all parameters of the model at every step, and searches the graph for those without a gradient; each phase
    here leaves the parameters of the other alone.
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        agree(self.model)


class GradientAverage:
    """Gradients averaged over the processes, of the parameters that have one in any process.

    Which they are is agreed on at the first step and whenever a process has a gradient more.

    Parameters
    ----------
    parameters
        Parameters that are trained, the same in all processes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._chosen = [False] * len(self._parameters)

    @torch.no_grad()
    def __call__(self, weight: float = 1.0) -> None:
        """Replace gradients by their mean over the processes, weighted by each one's ``weight``."""
        has = [parameter.grad is not None for parameter in self._parameters]
        joint = self._sum(weight, more=any(h and not c for h, c in zip(has, self._chosen, strict=True)))
        if joint[-1] > 0:
            wanted = torch.tensor([h or c for h, c in zip(has, self._chosen, strict=True)], device=joint.device)
            self._chosen = of_any(wanted).tolist()
            joint = self._sum(weight, more=False)
        joint /= joint[-2].clone()
        chosen = self._those_chosen()
        for parameter, gradient in zip(chosen, joint[:-2].split([p.numel() for p in chosen]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _those_chosen(self) -> list[nn.Parameter]:
        return [parameter for parameter, known in zip(self._parameters, self._chosen, strict=True) if known]

    def _sum(self, weight: float, *, more: bool) -> Tensor:
        """Sums over the processes of weighted gradients, of the weights, and of how many have more gradients than are agreed on."""
        rows = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self._those_chosen()]
        facts = self._parameters[0].new_tensor([1.0, more / weight])
        joint = torch.cat([*rows, facts]) * weight
        dist.all_reduce(joint)
        return joint


class Gathering:
    """Rows of all processes of tensors that have as many rows each; begun here, and worked on until :meth:`finish` needs them.

    Parameters
    ----------
    *parts
        Rows of this process.
    sizes
        Numbers of rows of all processes.
    """

    def __init__(self, *parts: Tensor, sizes: list[int]) -> None:
        self.parts, self.sizes = parts, sizes
        packed = torch.cat([_as_bytes(part) for part in parts], dim=1)
        padded = packed.new_zeros((max(sizes), packed.shape[1]))
        padded[: len(packed)] = packed
        self._everyone = [torch.empty_like(padded) for _ in sizes]
        self._work = dist.all_gather(self._everyone, padded, async_op=True)

    def finish(self) -> tuple[Tensor, ...]:
        """The rows, ``(sum of sizes, *)`` of each tensor.

        Processes that each have the same loss of them, and whose gradients are averaged afterwards, get the gradients of one process
        that has all rows.
        """
        return _Gather.apply(self, *self.parts)

    def received(self) -> tuple[Tensor, ...]:
        """The rows, without their gradients."""
        self._work.wait()
        joint = torch.cat([rows[:n] for rows, n in zip(self._everyone, self.sizes, strict=True)])
        columns = joint.split([_as_bytes(part).shape[1] for part in self.parts], dim=1)
        return tuple(
            x.clone(memory_format=torch.contiguous_format).view(part.dtype).reshape(len(x), *part.shape[1:])
            for x, part in zip(columns, self.parts, strict=True)
        )


class _Gather(torch.autograd.Function):
    """All processes do the same with the rows, and so each knows the gradients that the others have for its own."""

    @staticmethod
    def forward(ctx: Any, gathering: Gathering, *parts: Tensor) -> tuple[Tensor, ...]:
        out = gathering.received()
        ctx.sizes, ctx.differentiable = gathering.sizes, ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(x for x, known in zip(out, ctx.differentiable, strict=True) if not known))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        start = sum(ctx.sizes[: dist.get_rank()])
        own = slice(start, start + ctx.sizes[dist.get_rank()])
        shaped = (
            x[own] * len(ctx.sizes) if known else None for x, known in zip(gradients, ctx.differentiable, strict=True)
        )
        return None, *shaped


def _as_bytes(x: Tensor) -> Tensor:
    """Rows of a tensor as bytes, ``(n, bytes)``."""
    x = x.detach()
    return (x.flatten(1) if x.ndim > 1 else x[:, None]).contiguous().view(torch.uint8)


class Counts:
    """Numbers of things that each process has; asked for here, and waited for when they are needed."""

    def __init__(self, *counts: Tensor | int, device: torch.device) -> None:
        own = torch.stack([torch.as_tensor(n, dtype=torch.int64, device=device) for n in counts])
        self._gathering = Gathering(own[None], sizes=[1] * dist.get_world_size())

    def of_all(self, thing: int) -> Tensor:
        """Numbers of one thing, ``(processes,)``."""
        (counts,) = self._gathering.received()
        return counts[:, thing]

    def share(self, thing: int) -> Tensor:
        """Weight of the mean over this process's things, so that the average over processes is the mean over all things."""
        counts = self.of_all(thing)
        return counts[dist.get_rank()] * len(counts) / counts.sum().clamp_min(1)


def share_out(n: int) -> tuple[slice, list[int]]:
    """Which of ``n`` rows that all processes have fall to this one, and how many to each: ``sizes`` of :class:`Gathering`."""
    each, left = divmod(n, dist.get_world_size())
    sizes = [each + (rank < left) for rank in range(dist.get_world_size())]
    start = sum(sizes[: dist.get_rank()])
    return slice(start, start + sizes[dist.get_rank()]), sizes


def of_any(x: Tensor) -> Tensor:
    """Whether any process has true, elementwise."""
    some = x.to(torch.uint8)
    dist.all_reduce(some, op=dist.ReduceOp.MAX)
    return some.to(torch.bool)


def alone() -> bool:
    """Whether this process trains by itself."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


@torch.no_grad()
def agree(module: nn.Module) -> None:
    """Give all processes the parameters and buffers of the first: machines may round differently."""
    for value in module.state_dict().values():
        dist.broadcast(value, 0)
