"""Generators: the law of a cell's latent given its population's embedding."""

from scgde.generators.base import Generator
from scgde.generators.flow import FlowGenerator
from scgde.generators.skeleton import AffineSkeleton
from scgde.generators.vae import VAEGenerator

GENERATORS: dict[str, type[Generator]] = {"flow": FlowGenerator, "vae": VAEGenerator}

__all__ = ["GENERATORS", "AffineSkeleton", "FlowGenerator", "Generator", "VAEGenerator"]
