"""Small networks shared by encoders and generators."""

import torch
from torch import Tensor, nn


def mlp(n_in: int, n_hidden: int, n_out: int, *, n_layers: int = 2, zero: bool = False) -> nn.Sequential:
    """Multilayer perceptron with SiLU activations; ``zero`` starts its output at zero.

    Parameters
    ----------
    n_in, n_hidden, n_out
        Widths.
    n_layers
        Number of hidden layers.
    zero
        Whether the last layer starts at zero, so that what the network corrects starts uncorrected.
    """
    layers: list[nn.Module] = []
    for _ in range(n_layers):
        layers += [nn.Linear(n_in, n_hidden), nn.SiLU()]
        n_in = n_hidden
    last = nn.Linear(n_in, n_out)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def with_trace(net: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Output of a network of :func:`mlp` with two hidden layers, and the trace of its Jacobian.

    With weights :math:`W_1, W_2, W_3` and derivatives :math:`d_1, d_2` of the activations the trace is
    :math:`d_2^\top (W_2 \circ (W_1 W_3)^\top) d_1`. The matrix in the middle is the same for all rows, so that the exact
    trace costs about as much as the output, where one derivative for each axis costs that many outputs.

    Parameters
    ----------
    net
        Network with outputs of width ``d``.
    x
        Inputs ``(n, n_in)``; the trace is over the first ``d`` of their columns.

    Returns
    -------
    Output ``(n, d)`` and trace ``(n,)``.
    """
    first, _, second, _, last = net
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear) and isinstance(last, nn.Linear)
    before = first(x)
    gate = torch.sigmoid(before)
    slope = gate * (1 + before * (1 - gate))
    before_last = second(before * gate)
    gate = torch.sigmoid(before_last)
    slope_last = gate * (1 + before_last * (1 - gate))
    middle = second.weight * (first.weight[:, : last.out_features] @ last.weight).T
    return last(before_last * gate), ((slope_last @ middle) * slope).sum(1)
