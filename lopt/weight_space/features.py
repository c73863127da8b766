"""What a reader is told of every scalar of a network: its value in several guises, and where it stands.

Optimizers are not to know which of the inputs or taps a weight belongs to; a reader is, or else an image and its
transpose are one network to it.
Shapes: P scalars, B tensors, F features, C context values, K frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lopt.config import NonNegative, Settings
from lopt.features import per_tensor
from lopt.features.per_scalar import squash
from lopt.graph import Block, ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import ParameterSpec
from lopt.numerics.segments import segment_expand
from lopt.weight_space.network_set import rows_of

VALUES = 3
CONTEXT = 1 + per_tensor.STATIC
BANDS = (1.0, 1 / 16)
"""Radians from one fixed neuron to the next, in each pair of sines and cosines."""
SEATS = ("out", "in", "tap", "second tap")
ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "sin")


class FeatureOptions(Settings):
    """What is told beside a scalar's value relative to its tensor's rms, the logarithm of that, and the plain value."""

    frequencies: Annotated[int, Field(ge=0, le=256)] = 0
    """Fourier features: sines and cosines of the relative value at so many learned frequencies."""
    places: bool = False
    """Codes of the neurons that stay in place: which input, output and kernel tap a scalar belongs to."""
    activations: bool = False
    """What the neuron that a scalar feeds passes through."""
    w0: NonNegative = 0.0
    """Of a SIREN, for phases: cos and sin of w0 b for biases b, and times those of its source for each weight."""

    @property
    def count(self) -> int:
        """F."""
        places = 2 * len(BANDS) * len(SEATS) if self.places else 0
        activations = len(ACTIVATIONS) if self.activations else 0
        return VALUES + 2 * self.frequencies + places + activations + (2 if self.w0 else 0)


class WeightFeatures(nn.Module):
    """Parameters of one network -> features (F, P) and context (C, B).

    scales: the rms of every tensor over a training set, in the place of each network's own.
    """

    def __init__(self, options: FeatureOptions, scales: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.options, self.names = options, tuple(scales or ())
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(list((scales or {}).values())))
        count = options.frequencies
        self.frequencies = nn.Parameter(torch.randn(count)) if count else None

    def forward(self, graph: ParameterGraph, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        flat = graph.flatten(params)
        rms = rms_of_tensors(graph, params)
        scale = self.scales.to(flat) if self.names == tuple(graph.parameters) else rms
        relative = flat / (segment_expand(scale[None], graph.sizes)[0] + 1e-6)
        rows = [squash(relative), 0.5 * torch.log(relative * relative + 1e-4), squash(flat)]
        features = [torch.stack(rows)]
        if self.frequencies is not None:
            angles = 2 * math.pi * self.frequencies[:, None] * relative
            features += [torch.sin(angles), torch.cos(angles)]
        if self.options.w0:
            features.append(phases(graph, params, squash(relative), self.options.w0))
        if self.options.places:
            features.append(places(graph).to(flat))
        if self.options.activations:
            features.append(activations(graph).to(flat))
        return torch.cat(features), tensor_context(graph, params)


def rms_of_tensors(graph: ParameterGraph, params: Mapping[str, Tensor]) -> Tensor:
    """(B): of the scalars of each tensor."""
    return torch.stack([torch.sqrt(params[name].square().mean() + 1e-12) for name in graph.parameters])


def tensor_context(graph: ParameterGraph, params: Mapping[str, Tensor]) -> Tensor:
    """(C, B): of each tensor the logarithm of its rms, sizes and depth."""
    rms = rms_of_tensors(graph, params)
    return torch.cat([torch.log(rms + 1e-4)[None] / 4, per_tensor.static_features(graph, rms)])


def phases(graph: ParameterGraph, params: Mapping[str, Tensor], flat: Tensor, w0: float) -> Tensor:
    """(2, P): cos and sin of w0 b for biases of sines, times the weight for weights that read from such a neuron.

    Both are the same for a bias shifted by 2 pi / w0, and those of weights also for one shifted by pi / w0 with the
    weights behind negated, which is the same function. Of the first weights, which read no sine, cos is 1.
    """
    biases = {
        spec.axes[0][0][0]: w0 * params[spec.name]
        for spec in graph.parameters.values()
        if spec.kind == "bias" and graph.groups[spec.axes[0][0][0]].activation == "sin"
    }
    parts = []
    for spec, value in zip(graph.parameters.values(), flat.split(graph.sizes), strict=True):
        group = spec.axes[-1][0][0]
        if spec.kind == "bias":
            phase = biases.get(group, torch.zeros_like(value))
            parts.append(torch.stack([phase.cos(), phase.sin()]))
        else:
            phase = biases.get(group, value.new_zeros(spec.shape[-1]))
            both = torch.stack([phase.cos(), phase.sin()])
            parts.append((both[:, None] * value.reshape(1, -1, spec.shape[-1])).flatten(1))
    return torch.cat(parts, -1)


@made_once
def places(graph: ParameterGraph) -> Tensor:
    """(4 x seats, P): for each axis of fixed neurons sin and cos of the index in each band, else zeros."""
    return _by_block(graph, 2 * len(BANDS) * len(SEATS), lambda block: _places_in(graph, block))


@made_once
def activations(graph: ParameterGraph) -> Tensor:
    """(one for each of `ACTIVATIONS`, P): whether the neurons that a scalar feeds pass through it."""

    def of(block: Block) -> Tensor:
        fed = [g for g, role in zip(block.groups, block.roles, strict=True) if role == "out"]
        names = {graph.groups[group].activation for group in fed}
        hot = torch.tensor([float(name in names) for name in ACTIVATIONS])
        return hot.reshape(-1, *[1] * len(block.shape)).expand(-1, *block.shape)

    return _by_block(graph, len(ACTIVATIONS), of)


def fed_activations(graph: ParameterGraph, spec: ParameterSpec) -> set[str | None]:
    """Of the neurons that a parameter feeds."""
    axes = [axis for axis, role in zip(spec.axes, spec.roles, strict=True) if role == "out"]
    return {graph.groups[group].activation for axis in axes for segment in axis for group in segment}


def _places_in(graph: ParameterGraph, block: Block) -> Tensor:
    codes = torch.zeros(len(SEATS), 2 * len(BANDS), *block.shape)
    taps = 0
    for axis, (role, group) in enumerate(zip(block.roles, block.groups, strict=True)):
        seat = SEATS.index(role) + (min(taps, 1) if role == "tap" else 0)
        taps += role == "tap"
        if not graph.groups[group].permutable:
            angles = torch.tensor(BANDS)[:, None] * (1 + torch.arange(block.shape[axis]))
            code = torch.cat([angles.sin(), angles.cos()])
            codes[seat] += code.reshape(len(code), *(-1 if k == axis else 1 for k in range(len(block.shape))))
    return codes.flatten(0, 1)


def _by_block(graph: ParameterGraph, rows: int, of: Callable[[Block], Tensor]) -> Tensor:
    """(rows, P) out of (rows, *shape) for each block."""
    whole = {spec.name: torch.zeros(rows, *spec.shape) for spec in graph.parameters.values()}
    for block in graph.blocks:
        part = whole[block.parameter][(slice(None), *block.slices)]
        part.copy_(of(block).reshape(part.shape))
    return torch.cat([rows_of(value) for value in whole.values()], -1)
