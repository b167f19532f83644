"""Set encoders: from the cells of a population to one vector."""

from scgde.encoders.base import PooledEncoder, SetEncoder
from scgde.encoders.kernel_mean import KernelMeanEncoder
from scgde.encoders.mean import MeanEncoder
from scgde.encoders.residual import ResidualEncoder

ENCODERS: dict[str, type[SetEncoder]] = {
    "residual": ResidualEncoder,
    "mean": MeanEncoder,
    "kernel_mean": KernelMeanEncoder,
}

__all__ = ["ENCODERS", "KernelMeanEncoder", "MeanEncoder", "PooledEncoder", "ResidualEncoder", "SetEncoder"]
