"""Small networks shared by encoders and generators."""

from torch import nn


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
