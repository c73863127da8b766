"""Small layers that act on every scalar, neuron or edge alike, channels first: (channels, anything).

With several networks side by side, (channels, networks, columns), each product of matrices is still a single one.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu_

from lopt.graph import ParameterGraph
from lopt.numerics.segments import segment_expand

M = TypeVar("M", bound=nn.Module)


def product(weight: Tensor, x: Tensor) -> Tensor:
    """W x for every column, of all networks at once: (O, I), (I, ..., n) -> (O, ..., n)."""
    return weight @ x if x.dim() == 2 else (weight @ x.flatten(1)).reshape(len(weight), *x.shape[1:])


class Pointwise(nn.Module):
    """y = W x + b for every column: (inputs, ..., n) -> (outputs, ..., n)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.fan_in = inputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(max(inputs, 1)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = product(self.weight, x)
        # In place, as nobody else has seen y: these tensors are large, and memory is what such a layer waits for.
        return y if self.bias is None else y.add_(self.bias.reshape(-1, *[1] * (y.dim() - 1)))


class PointwiseMlp(nn.Module):
    """y = W2 relu(W1 x + b1) + b2 for every column."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = Pointwise(inputs, hidden), Pointwise(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(relu_(self.inner(x)))


class ScalarNet(nn.Module):
    """raw = W_(L+1) relu(... relu(W_1 f + V e + b)): a network of L hidden layers for every scalar.

    f are its own features, e what it has heard of others: (F, ..., P), (D, ..., P) -> (R, ..., P). The outputs are
    zero at first.
    """

    def __init__(self, features: int, heard: int, width: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.own, self.heard = Pointwise(features, width), Pointwise(heard, width, bias=False)
        self.own.fan_in = self.heard.fan_in = features + heard
        self.inner = nn.ModuleList(Pointwise(width, width) for _ in range(layers - 1))
        self.head = zeroed(Pointwise(width, outputs))

    def read(self, heard: Tensor) -> Tensor:
        """V e: (D, ..., n) -> (width, ..., n), before it is repeated for all scalars that hear the same."""
        return self.heard(heard)

    def forward(self, features: Tensor, read: Tensor) -> Tensor:
        """With V e of every scalar."""
        hidden = relu_(self.own(features) + read)
        for layer in self.inner:
            hidden = relu_(layer(hidden))
        return self.head(hidden)


class WithContext(nn.Module):
    """W f + V c + b with the context c of each scalar's tensor: (F, P), (C, B) -> (D, P)."""

    def __init__(self, features: int, context: int, width: int) -> None:
        super().__init__()
        self.scalar = Pointwise(features, width, bias=False)
        self.context = Pointwise(context, width)
        self.scalar.fan_in = self.context.fan_in = features + context

    def forward(self, graph: ParameterGraph, features: Tensor, context: Tensor) -> Tensor:
        return self.scalar(features).add_(segment_expand(self.context(context), graph.sizes))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every column (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(0, keepdim=True)
        variance = (centred * centred).mean(0, keepdim=True)
        scale, shift = (v.reshape(-1, *[1] * (x.dim() - 1)) for v in (self.scale, self.shift))
        return centred * torch.rsqrt(variance + 1e-5) * scale + shift


def zeroed(module: M) -> M:
    """The module with all of its parameters at zero: what an output head starts as."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Constant(nn.Linear):
    """A bias without inputs, zero at first: torch would warn that there is no weight to draw."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)


def affine_of(inputs: int, outputs: int) -> nn.Linear:
    """`torch.nn.Linear`, which may have no inputs."""
    return nn.Linear(inputs, outputs) if inputs else Constant(inputs, outputs)


def drawn_as_torch(module: nn.Module) -> None:
    """Draw the weights and biases of all linear maps in it as `torch.nn.Linear` does: within 1 / sqrt(inputs).

    Linear maps are what has a `fan_in`, the number of inputs of each output, and torch's own.
    """
    for part in module.modules():
        inputs = part.in_features if isinstance(part, nn.Linear) else getattr(part, "fan_in", None)
        if isinstance(inputs, int) and inputs:
            for parameter in part.parameters(recurse=False):
                nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5)
