"""Implicit networks of images (SIREN, Sitzmann et al. 2020, arXiv 2006.09661), thousands fitted side by side.

    layers 1 to L - 1: h -> sin(w0 (W h + b)),   last: h -> W h + b + offset

Shapes: B networks, M points, n_l neurons of layer l, C channels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lopt.config import Count, Positive, Settings, Several
from lopt.errors import ConfigError

Tensors = dict[str, Tensor]

BETAS, EPSILON = (0.9, 0.999), 1e-8
COHORT = 4 * 784 * 32
"""Networks fitted at once, by the numbers in a hidden layer's activations: these stay in a core's own cache."""


class SirenShape(Settings):
    """What a SIREN's architecture is."""

    kind: Literal["siren"] = "siren"
    sizes: Several[Annotated[int, Field(ge=1, le=4096)]] = (2, 32, 32, 1)
    """Inputs, hidden widths, outputs."""
    w0: Positive = 30.0
    """Frequency of every sine."""
    offset: float = 0.0
    """Added to the outputs."""

    @property
    def names(self) -> list[tuple[str, str]]:
        """Of the weight and the bias of each layer."""
        return [(f"layers.{n}.weight", f"layers.{n}.bias") for n in range(len(self.sizes) - 1)]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one point."""
        return self.sizes[:1]

    def build(self) -> Siren:
        """A network of this shape, with PyTorch's own initial weights."""
        return Siren(self)


class Recipe(Settings):
    """How networks are initialised and fitted. All of a data set's have the same number of steps.

    (Were they stopped at a quality, the number would tell something of the image.)
    """

    steps: Count = 300
    lr: Positive = 1e-3
    first: Literal["wide", "hidden"] = "wide"
    """First weights within 1 / n_0, as in the SIREN paper, or sqrt(6 / n_0) / w0, as all others."""
    last: Literal["hidden", "linear"] = "hidden"
    """Last weights within sqrt(6 / n) / w0, or 1 / sqrt(n), PyTorch's default."""
    biases: Literal["linear", "zero"] = "linear"
    """Within 1 / sqrt(n), PyTorch's default, or zero."""
    low: float = -1.0
    """What black is to be; white is 1."""
    offset: float = 0.0


RECIPES = {
    "siren300": Recipe(),
    "siren1000": Recipe(steps=1000),
    "dws": Recipe(steps=1000, lr=5e-4, first="hidden", last="linear", biases="zero", low=0.0, offset=0.5),
}
"""The official SIREN, 300 or 1,000 steps; and that of DWSNets (Navon et al. 2023), without its stop at 40 dB."""


class Siren(nn.Module):
    """One implicit network: points (M, n_0) -> values (M, C)."""

    def __init__(self, shape: SirenShape) -> None:
        super().__init__()
        self.shape = shape
        pairs = zip(shape.sizes, shape.sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairs)

    def forward(self, points: Tensor) -> Tensor:
        x = points
        for layer in self.layers[:-1]:
            x = torch.sin(self.shape.w0 * layer(x))
        y: Tensor = self.layers[-1](x)
        return y + self.shape.offset


def grid(*sizes: int) -> Tensor:
    """Points from -1 to 1 along each axis: (height * width, 2) for a height and a width, row by row, y first."""
    axes = [torch.linspace(-1, 1, size) for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(sizes))


def initial(shape: SirenShape, recipe: Recipe, seeds: Sequence[int]) -> Tensors:
    """Fresh parameters of B networks (B, *shape), each from a seed of its own."""
    bounds: dict[str, tuple[tuple[int, ...], float]] = {}
    last = len(shape.names) - 1
    for number, (weight, bias) in enumerate(shape.names):
        inputs = shape.sizes[number]
        bound = math.sqrt(6 / inputs) / shape.w0
        bound = 1 / inputs if number == 0 and recipe.first == "wide" else bound
        bound = 1 / math.sqrt(inputs) if number == last and recipe.last == "linear" else bound
        bounds[weight] = ((shape.sizes[number + 1], inputs), bound)
        free = recipe.biases == "linear"
        bounds[bias] = ((shape.sizes[number + 1],), 1 / math.sqrt(inputs) if free else 0.0)
    drawn: dict[str, list[Tensor]] = {name: [] for name in bounds}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, (size, bound) in bounds.items():
            drawn[name].append((2 * torch.rand(size, generator=generator) - 1) * bound)
    return {name: torch.stack(values) for name, values in drawn.items()}


def render(shape: SirenShape, params: Tensors, points: Tensor) -> Tensor:
    """Values (B, C, M) of B networks at the points (M, n_0). Differentiable."""
    x = points.T
    for number, (weight, bias) in enumerate(shape.names):
        x = params[weight] @ x + params[bias][..., None]
        x = x + shape.offset if number == len(shape.names) - 1 else torch.sin(shape.w0 * x)
    return x


def fit(
    shape: SirenShape, recipe: Recipe, seeds: Sequence[int], points: Tensor, targets: Tensor
) -> tuple[Tensors, Tensor]:
    """Fit B networks to targets (B, C, M) at the points (M, n_0) by full-batch Adam on the mean squared error.

    Returns their parameters and their PSNR (B) in decibels, of values within `recipe.low` and 1. Each network is
    fitted as if it were alone: nothing in it depends on those beside it but the last bits.
    """
    if not len(seeds) == len(targets):
        raise ConfigError(f"fit: expected as many seeds as targets, found {len(seeds)} and {len(targets)}")
    most = max(COHORT // (len(points) * max(shape.sizes)), 1)
    parts = [
        _fit_cohort(shape, recipe, initial(shape, recipe, seeds[i : i + most]), points, targets[i : i + most])
        for i in range(0, len(seeds), most)
    ]
    params = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    errors = (render(shape, params, points) - targets).square().mean((1, 2))
    return params, 20 * math.log10(1 - recipe.low) - 10 * torch.log10(errors)


def _fit_cohort(
    shape: SirenShape, recipe: Recipe, params: Tensors, points: Tensor, targets: Tensor
) -> Tensors:
    values = list(params.values())
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    for step in range(1, recipe.steps + 1):
        gradients = list(gradient(shape, params, points, targets).values())
        corrections = [1 - beta**step for beta in BETAS]
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        scale = torch._foreach_sqrt(second)
        torch._foreach_div_(scale, math.sqrt(corrections[1]))
        torch._foreach_add_(scale, EPSILON)
        torch._foreach_addcdiv_(values, first, scale, -recipe.lr / corrections[0])
    return params


def gradient(shape: SirenShape, params: Tensors, points: Tensor, targets: Tensor) -> Tensors:
    """Of each network's mean squared error. Written out: autograd takes twice the time on activations this small."""
    inputs, slopes = [points.T.expand(len(targets), -1, -1)], []
    for weight, bias in shape.names[:-1]:
        phase = torch.baddbmm(params[bias][..., None], params[weight], inputs[-1]).mul_(shape.w0)
        inputs.append(phase.sin())
        slopes.append(phase.cos_())
    weight, bias = shape.names[-1]
    error = torch.baddbmm(params[bias][..., None] + shape.offset, params[weight], inputs[-1]).sub_(targets)
    error *= 2 / error[0].numel()
    gradients = {}
    for number in reversed(range(len(shape.names))):
        weight, bias = shape.names[number]
        gradients[weight] = error @ inputs[number].mT
        gradients[bias] = error.sum(-1)
        if number:
            # By w0 on the small matrix, not on the large activations.
            error = ((params[weight] * shape.w0).mT @ error).mul_(slopes[number - 1])
    return {name: gradients[name] for name in params}
