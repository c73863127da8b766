"""Small perceptrons of any function, in float64, as a set with their graph but without phases or code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lopt.weight_space.network_set import NetworkSet, collect
from lopt.weight_space.sirens import SirenShape

NAMES = SirenShape(sizes=(2, 5, 5, 1))
"""Of their tensors, for `flipped`."""


class Perceptron(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 1)])
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def perceptrons(activation: type[nn.Module] = nn.Tanh) -> NetworkSet:
    torch.manual_seed(0)
    return in_double([Perceptron(activation) for _ in range(6)], torch.zeros(2, 2))


def in_double(networks: Sequence[nn.Module], example: Tensor) -> NetworkSet:
    found = collect(networks, example=(example,))
    return NetworkSet({n: v.double() for n, v in found.params.items()}, {}, found.splits, graph=found.graph)
