"""Step lengths by what a tensor is: the best rate of a dense matrix is not that of a convolution kernel."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import ParameterSpec

ADAMW_KINDS = frozenset({"embedding", "position", "depthwise"})
"""Tensors of two axes that are tables of vectors, or filters each of its own, rather than matrices."""

CLASSES = ("kernel", "matrix", "output", "table", "vector")
"""Kernels and dense matrices that feed hidden neurons; the output layer; embeddings and depthwise kernels; the rest."""

TABLES = ADAMW_KINDS - {"depthwise"}
"""Kinds of tensors that are tables of vectors."""

HIDDEN = ("kernel", "matrix")
"""The classes that feed hidden neurons."""

LEAST = 0.1
"""Of the rate, that is left to a tensor of small weights: those that begin at zero must be able to leave it."""


def is_hidden_matrix(graph: ParameterGraph, name: str) -> bool:
    """Whether a parameter maps neurons to hidden neurons: a matrix or convolution kernel, not the output layer."""
    spec = graph.parameters[name]
    if len(spec.shape) < 2 or spec.kind in ADAMW_KINDS:
        return False
    out = {
        group
        for axis, role in zip(spec.axes, spec.roles, strict=True)
        if role == "out"
        for s in axis
        for group in s
    }
    return not any(graph.groups[group].kind == "output" for group in out)


def class_of(graph: ParameterGraph, name: str) -> str:
    """One of `CLASSES`. Without a traced graph no tensor is known to be the output layer."""
    spec = graph.parameters[name]
    if len(spec.shape) < 2:
        return "vector"
    if spec.kind in ADAMW_KINDS:
        return "table"
    if not is_hidden_matrix(graph, name):
        return "output"
    return "kernel" if len(spec.shape) > 2 else "matrix"


@made_once
def classes(graph: ParameterGraph) -> list[str]:
    """The class of each parameter."""
    return [class_of(graph, name) for name in graph.parameters]


def scales_of(graph: ParameterGraph, scales: Mapping[str, float], widest: float) -> list[float]:
    """The factor for each parameter: that of its class, 1 for one not named, and for hidden ones that of their width.

    An orthogonalised step of a given rms has a largest singular value in proportion to sqrt(max(rows, columns)). Above
    `widest` it is kept from growing further, by sqrt(widest / max(rows, columns)), as steps that change what neurons
    see by a given amount must be (Yang, Simon & Bernstein 2023, arXiv 2310.17813); 0: no such limit.
    """
    return [
        scales.get(found, 1.0) * (_width_factor(spec.shape, widest) if found in HIDDEN else 1.0)
        for found, spec in zip(classes(graph), graph.parameters.values(), strict=True)
    ]


def _width_factor(shape: tuple[int, ...], widest: float) -> float:
    long = max(shape[0], prod(shape[1:]))
    return min(1.0, (widest / long) ** 0.5) if widest and long else 1.0


def relative_rates(graph: ParameterGraph, param_rms: Tensor) -> Tensor:
    """(B,) factors in proportion to the size of the weights, from `LEAST` up to 1 at that of `usual_rms`.

    What a step changes in a network depends on its size beside that of the weights: a SIREN, whose hidden weights are
    more than ten times smaller than other networks', takes steps a tenth as long there. Vectors keep their rate.

    Shapes: param_rms (B,) -> (B,).
    """
    usual = usual_rms(graph)
    relative = param_rms / param_rms.new_tensor([found or 1.0 for found in usual])
    least = param_rms.new_tensor([LEAST if found else 1.0 for found in usual])
    return torch.maximum(relative, least).clamp(max=1)


@made_once
def usual_rms(graph: ParameterGraph) -> list[float]:
    """1 / sqrt(3 fan-in), as PyTorch draws weights; a table of vectors has a fan-in of 1; vectors have none: 0."""
    return [_usual(spec) for spec in graph.parameters.values()]


def _usual(spec: ParameterSpec) -> float:
    if len(spec.shape) < 2:
        return 0.0
    if spec.kind in TABLES:
        fan_in = 1
    elif spec.roles == ("in", "out"):  # x @ W, as in Hugging Face's GPT-2
        fan_in = spec.shape[0]
    else:
        fan_in = prod(spec.shape[1:])
    return (3 * max(fan_in, 1)) ** -0.5
