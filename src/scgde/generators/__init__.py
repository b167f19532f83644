"""Generators: the law of a cell's latent given its population's embedding."""

from scgde.generators.base import Generator
from scgde.generators.diffusion import DiffusionGenerator
from scgde.generators.flow import FlowGenerator
from scgde.generators.gan import GANGenerator
from scgde.generators.mixture import MixtureGenerator
from scgde.generators.skeleton import AffineSkeleton
from scgde.generators.transport import (
    EnergyGenerator,
    MMDGenerator,
    SinkhornGenerator,
    SlicedWassersteinGenerator,
)
from scgde.generators.vae import VAEGenerator

GENERATORS: dict[str, type[Generator]] = {
    "flow": FlowGenerator,
    "diffusion": DiffusionGenerator,
    "vae": VAEGenerator,
    "sliced_wasserstein": SlicedWassersteinGenerator,
    "sinkhorn": SinkhornGenerator,
    "mmd": MMDGenerator,
    "energy": EnergyGenerator,
    "gan": GANGenerator,
    "mixture": MixtureGenerator,
}

__all__ = [
    "GENERATORS",
    "AffineSkeleton",
    "DiffusionGenerator",
    "EnergyGenerator",
    "FlowGenerator",
    "GANGenerator",
    "Generator",
    "MMDGenerator",
    "MixtureGenerator",
    "SinkhornGenerator",
    "SlicedWassersteinGenerator",
    "VAEGenerator",
]
