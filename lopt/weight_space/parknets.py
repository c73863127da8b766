"""Convolutional classifiers of many architectures, several of each trained side by side (after Kofinas et al. 2024).

    x <- f(convolution of x)  or, where sums are residual,  x + f(convolution of x),   classes from means over positions

with one pointwise f for a network, strides of 2 in the first two layers and 1 behind them. Written out with the
examples on the last axis, as grouped convolutions take several times as long here.
Shapes: B networks, M examples, H height and width of the images, C their colours, K channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from typing_extensions import Self

from lopt.config import Count, Settings, Several, wrong
from lopt.weight_space.network_set import Tensors
from lopt.weight_space.windows import Windows

Activation = Literal["relu", "leaky_relu", "gelu", "tanh", "sigmoid"]
ACTIVATIONS: dict[Activation, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (torch.relu, math.sqrt(2)),
    "leaky_relu": (F.leaky_relu, math.sqrt(2)),
    "gelu": (F.gelu, math.sqrt(2)),
    "tanh": (torch.tanh, 5 / 3),
    "sigmoid": (torch.sigmoid, 4.0),
}
"""Functions, and by what initial weights make up for their slopes."""
STRIDED = 2
"""Layers with a stride of 2, the first."""


class ParkShape(Settings):
    """What a network's architecture is."""

    kind: Literal["parknet"] = "parknet"
    size: Annotated[int, Field(ge=8, le=256, multiple_of=4)] = 16
    """Height and width of the images."""
    colours: Literal[1, 3] = 1
    channels: Annotated[Several[Count], Field(min_length=1, max_length=16)]
    """Of each convolution."""
    kernels: Several[Literal[3, 5]]
    residual: bool = False
    """Whether layers that keep size and channels are added to what they read."""
    activation: Activation = "relu"
    classes: Count = 10

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.channels) != len(self.kernels):
            raise wrong(f"one for each of {len(self.channels)} convolutions", self.kernels, "kernels")
        return self

    @property
    def names(self) -> list[tuple[str, str]]:
        """Of the weight and the bias of each layer."""
        return [(f"layers.{n}.weight", f"layers.{n}.bias") for n in range(len(self.channels) + 1)]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.colours, self.size, self.size)

    @property
    def weights(self) -> list[tuple[int, ...]]:
        """Shape of the weight of each layer."""
        sizes = [self.colours, *self.channels]
        kernels = [(o, i, k, k) for i, o, k in zip(sizes, sizes[1:], self.kernels, strict=False)]
        return [*kernels, (self.classes, sizes[-1])]

    def stride(self, layer: int) -> int:
        """Of a convolution."""
        return 2 if layer < STRIDED else 1

    def adds(self, layer: int) -> bool:
        """Whether a convolution is added to what it reads."""
        return self.residual and layer >= STRIDED and self.channels[layer] == self.channels[layer - 1]

    def build(self) -> ParkNet:
        """A network of this shape."""
        return ParkNet(self)


class ParkNet(nn.Module):
    """One network: images (M, C, H, H) -> logits (M, classes)."""

    def __init__(self, shape: ParkShape) -> None:
        super().__init__()
        self.shape = shape
        *convolutions, last = shape.weights
        layers: list[nn.Module] = [
            nn.Conv2d(i, o, k, stride=shape.stride(n), padding=k // 2)
            for n, (o, i, k, _) in enumerate(convolutions)
        ]
        self.layers = nn.ModuleList([*layers, nn.Linear(last[1], last[0])])

    def forward(self, x: Tensor) -> Tensor:
        function = ACTIVATIONS[self.shape.activation][0]
        for n, layer in enumerate(self.layers[:-1]):
            found = function(layer(x))
            x = x + found if self.shape.adds(n) else found
        y: Tensor = self.layers[-1](x.mean((2, 3)))
        return y


def initial(shape: ParkShape, seeds: Sequence[int], gains: Tensor) -> Tensors:
    """Fresh parameters (B, *shape), each from its own seed; biases zero.

    Weights have the deviation gain * g / sqrt(inputs), g that of the activation.
    """
    made: dict[str, list[Tensor]] = {}
    for seed, gain in zip(seeds, gains.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        for (weight, bias), size in zip(shape.names, shape.weights, strict=True):
            std = gain * ACTIVATIONS[shape.activation][1] / math.sqrt(math.prod(size[1:]))
            made.setdefault(weight, []).append(std * torch.randn(size, generator=generator))
            made.setdefault(bias, []).append(torch.zeros(size[0]))
    return {name: torch.stack(values) for name, values in made.items()}


def logits(shape: ParkShape, params: Tensors, images: Tensor) -> Tensor:
    """(B, classes, M) for images (B, C, H, H, M)."""
    function, x, half = ACTIVATIONS[shape.activation][0], images, shape.size
    for n, (weight, bias) in enumerate(shape.names[:-1]):
        half //= shape.stride(n)
        read = Windows.apply(x, shape.kernels[n], shape.stride(n))
        said = torch.baddbmm(params[bias][..., None], params[weight].flatten(2), read)
        found = function(said).unflatten(2, (half, half, images.shape[-1]))
        x = x + found if shape.adds(n) else found
    weight, bias = shape.names[-1]
    return torch.baddbmm(params[bias][..., None], params[weight], x.mean((2, 3)))


def gradient(shape: ParkShape, params: Tensors, images: Tensor, labels: Tensor) -> Tensors:
    """Of each network's mean cross-entropy on its own images (B, C, H, H, M) with labels (B, M)."""
    free = {name: value.detach().requires_grad_() for name, value in params.items()}
    # The sum over networks of their means: none sees another's gradient.
    loss = F.cross_entropy(logits(shape, free, images), labels, reduction="sum") / labels.shape[-1]
    return dict(zip(free, torch.autograd.grad(loss, list(free.values())), strict=True))


@torch.no_grad()
def accuracy(shape: ParkShape, params: Tensors, images: Tensor, labels: Tensor, batch: int = 1000) -> Tensor:
    """(B): the share of images (M, C, H, H) whose class is told."""
    model, found = shape.build(), []
    for n in range(
        len(params[shape.names[0][0]])
    ):  # large batches of one are faster than what is written out
        one = {name: value[n] for name, value in params.items()}
        parts = zip(images.split(batch), labels.split(batch), strict=True)
        found.append(sum((functional_call(model, one, (x,)).argmax(1) == y).sum() for x, y in parts))
    return torch.stack([torch.as_tensor(right) for right in found]) / len(labels)
