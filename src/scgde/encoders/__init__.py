"""Set encoders: from the cells of a population to one vector."""

from scgde.encoders.attention import AttentionEncoder, InducedAttentionEncoder
from scgde.encoders.base import PooledEncoder, SetEncoder
from scgde.encoders.context import MeanPoolEncoder, MedianPoolEncoder
from scgde.encoders.kernel_mean import KernelMeanEncoder
from scgde.encoders.mean import MeanEncoder
from scgde.encoders.residual import ResidualEncoder
from scgde.encoders.shape import ShapeEncoder
from scgde.encoders.states import StatesEncoder
from scgde.encoders.transport import TransportEncoder

ENCODERS: dict[str, type[SetEncoder]] = {
    "residual": ResidualEncoder,
    "shape": ShapeEncoder,
    "transport": TransportEncoder,
    "states": StatesEncoder,
    "mean": MeanEncoder,
    "kernel_mean": KernelMeanEncoder,
    "mean_pool": MeanPoolEncoder,
    "median_pool": MedianPoolEncoder,
    "attention": AttentionEncoder,
    "induced_attention": InducedAttentionEncoder,
}

__all__ = [
    "ENCODERS",
    "AttentionEncoder",
    "InducedAttentionEncoder",
    "KernelMeanEncoder",
    "MeanEncoder",
    "MeanPoolEncoder",
    "MedianPoolEncoder",
    "PooledEncoder",
    "ResidualEncoder",
    "SetEncoder",
    "ShapeEncoder",
    "StatesEncoder",
    "TransportEncoder",
]
