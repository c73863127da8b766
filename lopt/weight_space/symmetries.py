"""What leaves a SIREN's function, or the meaning of its image, as it is.

A hidden neuron puts out sin(phase) with phase = w0 (W h + b). Negating W, b and the weights behind it changes nothing,
nor does shifting b by pi / w0 and negating the weights behind. Shapes: B networks, n neurons of a layer.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lopt.config import NonNegative, Settings
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.sirens import SirenShape, Tensors


def canonical(shape: SirenShape, params: Tensors) -> Tensors:
    """The same B functions, with w0 b of every hidden neuron within [0, pi / 2]. Exact up to rounding."""
    params = unwound(shape, params)
    return _turned(shape, params, {bias: _signs(params[bias]) for _, bias in shape.names[:-1]})


def _signs(x: Tensor) -> Tensor:
    """That of zero is 1."""
    return torch.ones_like(x).masked_fill(x < 0, -1.0)


def unwound(shape: SirenShape, params: Tensors) -> Tensors:
    """The same B functions, with w0 b of every hidden neuron within [-pi / 2, pi / 2]. Exact up to rounding.

    It turns with the neurons: of a network with negated ones it makes the same with these negated.
    """
    params = dict(params)
    for layer, (_, bias) in enumerate(shape.names[:-1]):
        behind = shape.names[layer + 1][0]
        phase = shape.w0 * params[bias]
        turns = torch.round(phase / math.pi)
        params[bias] = (phase - math.pi * turns) / shape.w0
        params[behind] = params[behind] * (1 - 2 * torch.remainder(turns, 2))[..., None, :]
    return params


def flipped(shape: SirenShape, params: Tensors, generator: torch.Generator | None = None) -> Tensors:
    """The same B functions, with the signs of half of the hidden neurons negated."""
    coins = {b: torch.randint(2, params[b].shape, generator=generator) for _, b in shape.names[:-1]}
    return _turned(shape, params, {bias: (2 * coin - 1).to(params[bias]) for bias, coin in coins.items()})


def _turned(shape: SirenShape, params: Tensors, signs: Tensors) -> Tensors:
    """With the signs (B, n) of each hidden layer's bias."""
    params = dict(params)
    for layer, (weight, bias) in enumerate(shape.names[:-1]):
        behind, sign = shape.names[layer + 1][0], signs[bias]
        params[weight], params[bias] = params[weight] * sign[..., None], params[bias] * sign
        params[behind] = params[behind] * sign[..., None, :]
    return params


class Views(Settings):
    """Random views of the images that SIRENs are of: their inputs turned, stretched, sheared, shifted, mirrored."""

    degrees: NonNegative = 12.0
    stretch: Annotated[float, Field(ge=0, lt=1)] = 0.12
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.12
    shift: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The largest of each; of the image, which reaches from -1 to 1."""
    mirror: bool = False
    """Half of them also left to right, as things seen may be and characters may not."""

    @torchs_defaults()
    def __call__(
        self, shape: SirenShape, params: Tensors, generator: torch.Generator | None = None
    ) -> Tensors:
        """B networks of x -> f(A x + t), with A and t drawn for each. (x has the height first, as `grid` does.)"""
        weight, bias = (params[name] for name in shape.names[0])
        count = len(weight)

        def draw(*size: int) -> Tensor:
            return (2 * torch.rand(count, *size, generator=generator) - 1).to(weight)

        angle = math.radians(self.degrees) * draw()
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(-1, 2, 2)
        change = torch.diag_embed(self.stretch * draw(2)) + torch.eye(2).to(weight)
        change[:, 0, 1] = self.shear * draw()
        if self.mirror:
            change[..., 1] *= 1 - 2 * torch.randint(2, (count, 1), generator=generator).to(weight)
        moved = bias + (weight @ (self.shift * draw(2))[..., None])[..., 0]
        return {**params, shape.names[0][0]: weight @ turn @ change, shape.names[0][1]: moved}
