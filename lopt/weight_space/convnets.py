"""Small convolutional classifiers (Unterthiner et al. 2020, arXiv 2002.11448), many trained side by side.

    layers 1 to 3: x -> relu or tanh (3 x 3 convolution of x with stride 2),   last: classes from means over positions

Written out with the examples on the last axis: autograd and grouped convolutions take several times as long here.
Shapes: B networks, M examples, H height and width of the images, K channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lopt.config import Count, Settings
from lopt.weight_space.network_set import Tensors
from lopt.weight_space.windows import columns as columns_of
from lopt.weight_space.windows import folded

BETAS, EPSILON = (0.9, 0.999), 1e-8
CONVOLUTIONS = 3


class ConvShape(Settings):
    """What a network's architecture is: images with one channel."""

    kind: Literal["convnet"] = "convnet"
    size: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 16
    """Height and width of the images."""
    channels: Count = 16
    classes: Count = 10
    activation: Literal["relu", "tanh"] = "relu"

    @property
    def names(self) -> list[tuple[str, str]]:
        """Of the weight and the bias of each layer."""
        return [(f"layers.{n}.weight", f"layers.{n}.bias") for n in range(CONVOLUTIONS + 1)]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (1, self.size, self.size)

    def build(self) -> ConvNet:
        """A network of this shape."""
        return ConvNet(self)


class ConvNet(nn.Module):
    """One network: images (M, 1, H, H) -> logits (M, classes)."""

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        sizes = [1, *[shape.channels] * CONVOLUTIONS]
        pairs = zip(sizes, sizes[1:], strict=False)
        layers: list[nn.Module] = [nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairs]
        self.layers = nn.ModuleList([*layers, nn.Linear(shape.channels, shape.classes)])
        self.activation = nn.ReLU() if shape.activation == "relu" else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        y: Tensor = self.layers[-1](x.mean((2, 3)))
        return y


def initial(shape: ConvShape, seeds: Sequence[int], gains: Tensor) -> Tensors:
    """Fresh parameters (B, *shape), each from its own seed: weights of std gain sqrt(2 / inputs), biases zero."""
    sizes = [1, *[shape.channels] * CONVOLUTIONS]
    each = [(o, i, 3, 3) for i, o in zip(sizes, sizes[1:], strict=False)]
    drawn: dict[str, list[Tensor]] = {}
    for seed, gain in zip(seeds, gains.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        for (weight, bias), size in zip(shape.names, [*each, (shape.classes, shape.channels)], strict=True):
            std = gain * math.sqrt(2 / math.prod(size[1:]))
            drawn.setdefault(weight, []).append(std * torch.randn(size, generator=generator))
            drawn.setdefault(bias, []).append(torch.zeros(size[0]))
    return {name: torch.stack(values) for name, values in drawn.items()}


class Adam:
    """Adam of B networks, each with its own rate and decoupled decay (B); those that diverge stay as they are."""

    def __init__(self, params: Tensors, rates: Tensor, decays: Tensor) -> None:
        self.params, self.step = params, 0
        self.moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in params.values()]
        self.rates, self.decays = rates, decays

    def update(self, gradients: Tensors) -> None:
        """Change the parameters in place."""
        self.step += 1
        finite = torch.stack([g.flatten(1).isfinite().all(1) for g in gradients.values()]).all(0)
        rate = self.rates * finite / (1 - BETAS[0] ** self.step)
        correction = math.sqrt(1 - BETAS[1] ** self.step)
        for (name, value), (first, second) in zip(self.params.items(), self.moments, strict=True):
            gradient = gradients[name].nan_to_num(0.0, 0.0, 0.0)
            each = (-1, *[1] * (value.dim() - 1))
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            value.mul_(1 - (self.rates * self.decays * finite).view(each))
            value.sub_(rate.view(each) * first / (second.sqrt().div_(correction).add_(EPSILON)))


def logits(shape: ConvShape, params: Tensors, images: Tensor) -> Tensor:
    """(B, classes, M) for images (H, H, M)."""
    return _forward(shape, params, images)[2]


def accuracy(shape: ConvShape, params: Tensors, images: Tensor, labels: Tensor, batch: int = 250) -> Tensor:
    """(B): the share of images (H, H, M) whose class is told."""
    right = [
        (logits(shape, params, part).argmax(1) == wanted).sum(1)
        for part, wanted in zip(images.split(batch, -1), labels.split(batch), strict=True)
    ]
    return torch.stack(right).sum(0) / len(labels)


def gradient(
    shape: ConvShape, params: Tensors, images: Tensor, labels: Tensor, kept: Sequence[Tensor] = ()
) -> Tensors:
    """Of each network's mean cross-entropy on images (H, H, M) with labels (M).

    kept (B, K, M) for each convolution: what its channels are multiplied by, such as 0 or 1 / (1 - dropout).
    """
    layers, columns, said = _forward(shape, params, images, kept)
    count = len(labels)
    error = torch.softmax(said, 1)
    error[:, labels, torch.arange(count)] -= 1
    error /= count
    pooled = layers[-1].mean((2, 3))
    (weight, bias) = shape.names[-1]
    gradients = {weight: error @ pooled.mT, bias: error.sum(-1)}
    back = (params[weight].mT @ error)[:, :, None, None] / math.prod(layers[-1].shape[2:4])
    for number in reversed(range(CONVOLUTIONS)):
        weight, bias = shape.names[number]
        back = (back * _slope(shape, layers[number], kept[number] if kept else None)).flatten(2)
        gradients[bias] = back.sum(-1)
        if number:
            gradients[weight] = (back @ columns[number].mT).view_as(params[weight])
            back = folded(params[weight].flatten(2).mT @ back, layers[number - 1].shape)
        else:
            gradients[weight] = (back.flatten(0, 1) @ columns[0].mT).view_as(params[weight])
    return {name: gradients[name] for name in params}


def _forward(
    shape: ConvShape, params: Tensors, images: Tensor, kept: Sequence[Tensor] = ()
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What the layers put out (B, K, h, h, M), the columns that they read, and logits."""
    layers: list[Tensor] = []
    columns: list[Tensor] = []
    half, count = shape.size, images.shape[-1]
    for number, (weight, bias) in enumerate(shape.names[:-1]):
        half //= 2
        if number:
            columns.append(columns_of(layers[-1]))
            x = torch.baddbmm(params[bias][..., None], params[weight].flatten(2), columns[-1])
        else:
            columns.append(columns_of(images[None, None])[0])
            x = (params[weight].flatten(2).flatten(0, 1) @ columns[0]).unflatten(0, params[bias].shape)
            x = x.add_(params[bias][..., None])
        x = (x.relu_() if shape.activation == "relu" else x.tanh_()).unflatten(2, (half, half, count))
        layers.append(x.mul_(kept[number][:, :, None, None]) if kept else x)
    weight, bias = shape.names[-1]
    return layers, columns, torch.baddbmm(params[bias][..., None], params[weight], layers[-1].mean((2, 3)))


def _slope(shape: ConvShape, layer: Tensor, kept: Tensor | None) -> Tensor:
    """Of what a layer puts out by what its convolution does; zero where a channel was dropped."""
    if kept is None:
        return layer > 0 if shape.activation == "relu" else 1 - layer.square()
    each = kept[:, :, None, None]
    if shape.activation == "relu":
        return (layer > 0) * each
    return each - layer.square() * torch.where(each > 0, 1 / each, 0)
