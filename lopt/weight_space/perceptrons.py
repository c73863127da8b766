"""Relu perceptrons that classify, many trained side by side on the same batches, some of their weights kept at zero.

Shapes: B networks, M examples, n_l neurons of layer l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lopt.config import Count, Positive, Settings, Several
from lopt.weight_space.network_set import Tensors

BETAS, EPSILON = (0.9, 0.999), 1e-8
WARM_UP = 0.1


class PerceptronShape(Settings):
    """What a perceptron's architecture is."""

    kind: Literal["perceptron"] = "perceptron"
    sizes: Several[Annotated[int, Field(ge=1, le=65_536)]] = (196, 128, 64, 10)
    """Inputs, hidden widths, classes."""

    @property
    def weights(self) -> list[str]:
        """Names of the matrices, the first layer's first."""
        return [f"layers.{n}.weight" for n in range(len(self.sizes) - 1)]

    @property
    def biases(self) -> list[str]:
        """Names."""
        return [f"layers.{n}.bias" for n in range(len(self.sizes) - 1)]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.sizes[:1]

    def build(self) -> Perceptron:
        """A network of this shape."""
        return Perceptron(self)


class Perceptron(nn.Module):
    """One perceptron: (M, n_0) -> logits (M, classes)."""

    def __init__(self, shape: PerceptronShape) -> None:
        super().__init__()
        pairs = zip(shape.sizes, shape.sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


class Schooling(Settings):
    """How perceptrons are trained: Adam, its rate up over a tenth of the steps and then down to zero."""

    epochs: Count = 8
    batch: Count = 128
    lr: Positive = 3e-3


class Examples:
    """Images as vectors, standardised by those of a training set, and their classes."""

    def __init__(self, images: Tensor, labels: Tensor, mean: float, std: float) -> None:
        self.inputs = (images.float().flatten(1) - mean) / std
        self.labels = labels.long()

    def __len__(self) -> int:
        return len(self.labels)


def initial(shape: PerceptronShape, seeds: Sequence[int]) -> Tensors:
    """Fresh parameters of B networks (B, *shape) within 1 / sqrt(inputs), PyTorch's default, each from its own seed."""
    drawn: dict[str, list[Tensor]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for inputs, outputs, weight, bias in zip(
            shape.sizes, shape.sizes[1:], shape.weights, shape.biases, strict=False
        ):
            for name, size in ((weight, (outputs, inputs)), (bias, (outputs,))):
                value = (2 * torch.rand(size, generator=generator) - 1) / math.sqrt(inputs)
                drawn.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in drawn.items()}


def logits(shape: PerceptronShape, params: Tensors, inputs: Tensor) -> Tensor:
    """(B, classes, M) of B networks for inputs (M, n_0)."""
    return _activations(shape, params, inputs)[-1]


def accuracy(shape: PerceptronShape, params: Tensors, examples: Examples) -> Tensor:
    """(B): in percent."""
    right = logits(shape, params, examples.inputs).argmax(1) == examples.labels
    return 100 * right.double().mean(1)


def train(
    shape: PerceptronShape, params: Tensors, examples: Examples, how: Schooling, masks: Tensors | None = None
) -> Tensors:
    """Parameters of B networks after training. masks: which weights (B, *shape) there are, the others stay at zero.

    All see the same batches in the same order, and none depends on those beside it, but in the last bits.
    """
    kept = {name: mask.to(params[name].dtype) for name, mask in (masks or {}).items()}
    params = {name: value * kept[name] if name in kept else value.clone() for name, value in params.items()}
    values = list(params.values())
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    generator, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.long)
    steps = max(how.epochs * len(examples) // how.batch, 1)
    for step in range(1, steps + 1):
        if len(order) < how.batch:
            order = torch.cat([order, torch.randperm(len(examples), generator=generator)])
        index, order = order[: how.batch], order[how.batch :]
        found = gradient(shape, params, examples.inputs[index], examples.labels[index])
        gradients = [found[name] * kept[name] if name in kept else found[name] for name in params]
        rate = how.lr * min(1.0, step / (WARM_UP * steps)) * (1 - step / (steps + 1))
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, math.sqrt(1 - BETAS[1] ** step))
        torch._foreach_add_(scale, EPSILON)
        torch._foreach_addcdiv_(values, first, scale, -rate / (1 - BETAS[0] ** step))
    return params


def gradient(shape: PerceptronShape, params: Tensors, inputs: Tensor, labels: Tensor) -> Tensors:
    """Of each network's mean cross-entropy. Written out: the first layers of all networks are one matrix product."""
    count = len(labels)
    layers = _activations(shape, params, inputs)
    error = torch.softmax(layers[-1], 1)
    error[:, labels, torch.arange(count)] -= 1
    error /= count
    gradients = {}
    for number in reversed(range(len(shape.weights))):
        weight = params[shape.weights[number]]
        gradients[shape.biases[number]] = error.sum(-1)
        if number:
            gradients[shape.weights[number]] = error @ layers[number].mT
            error = (weight.mT @ error).mul_(layers[number] > 0)
        else:
            gradients[shape.weights[0]] = (error.flatten(0, 1) @ inputs).view_as(weight)
    return gradients


def _activations(shape: PerceptronShape, params: Tensors, inputs: Tensor) -> list[Tensor]:
    """(M, n_0), which all share, then (B, n_l, M) of every layer; behind the relu, but for the last."""
    weight = params[shape.weights[0]]
    x = (weight.flatten(0, 1) @ inputs.T).unflatten(0, weight.shape[:2])
    layers = [inputs, x + params[shape.biases[0]][..., None]]
    for weight_name, bias in zip(shape.weights[1:], shape.biases[1:], strict=True):
        layers[-1] = layers[-1].relu_()
        layers.append(torch.baddbmm(params[bias][..., None], params[weight_name], layers[-1]))
    return layers
