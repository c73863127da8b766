"""What the networks of a set have in common: their parameter graph, and where lopt has their code, a model to run."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.weight_space.convnets import ConvShape
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.parknets import ParkShape
from lopt.weight_space.perceptrons import PerceptronShape
from lopt.weight_space.sirens import SirenShape


class Shape(Hashable, Protocol):
    """What a header says of an architecture."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example."""
        ...

    def build(self) -> nn.Module:
        """A network."""
        ...


SHAPES = {"siren": SirenShape, "perceptron": PerceptronShape, "convnet": ConvShape, "parknet": ParkShape}
"""Those that lopt makes, by the "kind" in a header."""


class Architecture(NamedTuple):
    """Of all networks of a set."""

    graph: ParameterGraph
    model: nn.Module | None = None
    """To run with anyone's parameters; none for networks of your own, which are data alone."""
    inputs: tuple[int, ...] = ()
    """Shape of one example for the model."""

    @property
    def runnable(self) -> nn.Module:
        """The model, for readers that ask what it computes. Raises `ConfigError` if there is none."""
        if self.model is None:
            raise ConfigError("reader: expected networks that lopt has the code of, found a graph alone")
        return self.model

    def examples(self, count: int) -> Tensor:
        """(count, *inputs): points evenly from -1 to 1, or smooth images, as noise is nothing that networks know."""
        if len(self.inputs) == 1:
            return 2 * torch.rand(count, *self.inputs) - 1
        coarse = torch.randn(count, self.inputs[0], 4, 4)
        return nn.functional.interpolate(coarse, self.inputs[1:], mode="bicubic")

    @property
    def reads(self) -> int:
        """Outputs of a network."""
        return sum(group.size for group in self.graph.groups if group.kind == "output")


def architecture_of(networks: NetworkSet) -> Architecture:
    """Of a set that lopt made, or that `collect` was given example inputs for. Raises `ConfigError` for others."""
    if networks.graph is not None:
        return Architecture(networks.graph)
    found = networks.header.get("architecture", {})
    if found.get("kind") not in SHAPES:
        raise ConfigError("networks: expected a set with a graph, found none: give `collect` example inputs")
    return architecture(SHAPES[found["kind"]](**found))


@cache
def architecture(shape: Shape) -> Architecture:
    """Of networks of a shape, traced once. The model is everybody's: run it with parameters of your own."""
    with torch.random.fork_rng(
        devices=[]
    ):  # else who asks first would go on with other numbers than the next
        model = shape.build()
        graph = ParameterGraph.trace(model, (torch.zeros(2, *shape.inputs),))
    return Architecture(graph, model, shape.inputs)
