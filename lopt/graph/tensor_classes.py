"""Step lengths by what a tensor is: the best rate of a dense matrix is not that of a convolution kernel."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import AxisSpec, Block, ParameterSpec

TABLES = frozenset({"embedding", "position"})
"""Kinds of tensors that are tables of vectors."""

NO_MATRICES = TABLES | {"depthwise"}
"""Kinds of tensors of two axes or more that are vectors, or filters each of its own, rather than matrices."""

VECTORS = frozenset({"bias", "scale", "shift"})
"""Kinds of tensors with one entry for each neuron, whatever axes of size one they have besides: (1, C, 1, 1)."""

CLASSES = ("kernel", "matrix", "output", "table", "vector")
"""Kernels of several taps, and dense matrices, that feed hidden neurons; the output layer; embeddings and depthwise
kernels; the rest."""

HIDDEN = ("kernel", "matrix")
"""The classes that feed hidden neurons."""

LEAST = 0.1
"""Of the rate, that is left to a tensor of small weights: those that begin at zero must be able to leave it."""


class Matrices(NamedTuple):
    """How a tensor is read as matrices: those of its members, one after another in memory."""

    members: int
    rows: int
    columns: int


def stacked_axes(graph: ParameterGraph, spec: ParameterSpec) -> int:
    """How many leading axes count members (of an ensemble, experts) of which each has a matrix or vector of its own.

    They stand before the axes of neurons that a weight feeds and reads; a bias shares them with a weight.
    """
    leading = 0
    while leading < len(spec.roles) and (
        spec.roles[leading] == "tap" or _counts_members(graph, spec, leading)
    ):
        leading += 1
    if not {"out", "in"} & set(spec.roles[leading:]):
        leading = 0
    if leading == 0 and len(spec.shape) > 1 and spec.kind == "position":
        return int(set(_groups(spec.axes[0])) <= _member_groups(graph))
    return leading


def _counts_members(graph: ParameterGraph, spec: ParameterSpec, at: int) -> bool:
    """Whether a matrix follows for each entry of an axis that counts members elsewhere.

    Where all experts read the same data, their first weight shows (E, out, in) just as (heads, head size, in): only the
    next one, which reads each expert's own data, tells them apart.
    """
    return {"out", "in"} <= set(spec.roles[at + 1 :]) and set(_groups(spec.axes[at])) <= _member_groups(graph)


@made_once
def _member_groups(graph: ParameterGraph) -> set[int]:
    """The groups that count members of stacked weights."""
    weights = [s for s in graph.parameters.values() if {"out", "in"} <= set(s.roles) and s.roles[0] == "tap"]
    return {group for spec in weights for group in _groups(spec.axes[0])}


def _groups(axis: AxisSpec) -> list[int]:
    return [group for segment in axis for group in segment]


def matrices_of(graph: ParameterGraph, name: str) -> Matrices:
    """A tensor of two axes or more read as (first axis, the rest), for each member where several are stacked."""
    spec = graph.parameters[name]
    at = stacked_axes(graph, spec)
    return Matrices(prod(spec.shape[:at]), spec.shape[at], prod(spec.shape[at + 1 :]))


def is_hidden_matrix(graph: ParameterGraph, name: str) -> bool:
    """Whether a parameter maps neurons to hidden neurons: matrices or convolution kernels, not the output layer."""
    return class_of(graph, name) in HIDDEN


def class_of(graph: ParameterGraph, name: str) -> str:
    """One of `CLASSES`. Without a traced graph no tensor is known to be the output layer."""
    spec = graph.parameters[name]
    if _is_vector(graph, spec):
        return "vector"
    if spec.kind in NO_MATRICES:
        return "table"
    at = stacked_axes(graph, spec)  # members of an ensemble may all be outputs; their hidden neurons are none
    out = {
        group
        for axis, role in zip(spec.axes[at:], spec.roles[at:], strict=True)
        if role == "out"
        for group in _groups(axis)
    }
    if any(graph.groups[group].kind == "output" for group in out):
        return "output"
    return "kernel" if prod(spec.shape[at + 2 :]) > 1 else "matrix"  # a 1x1 convolution is a dense layer


def _is_vector(graph: ParameterGraph, spec: ParameterSpec) -> bool:
    if len(spec.shape) - stacked_axes(graph, spec) < 2 or spec.kind in VECTORS:
        return True
    if spec.kind == "position" and stacked_axes(graph, spec):
        return True
    # (1, 1, D) is a token or a gain, and (1, C, 1, 1) a gain; a weight that reads one neuron has kind "weight".
    reads = {"in", "out"} <= set(spec.roles) and spec.kind not in (*TABLES, "other")
    return len(spec.shape) > 2 and sum(size > 1 for size in spec.shape) <= 1 and not reads


def long_axis(part: ParameterSpec | Block) -> int | None:
    """Of a gain or bias the one axis longer than one, in whatever shape it is stored; None for all else."""
    long = [axis for axis, size in enumerate(part.shape) if size > 1]
    return long[0] if part.kind in VECTORS and len(long) == 1 else None


@made_once
def classes(graph: ParameterGraph) -> list[str]:
    """The class of each parameter."""
    return [class_of(graph, name) for name in graph.parameters]


@made_once
def hidden_matrices(graph: ParameterGraph) -> list[Matrices | None]:
    """How each parameter that feeds hidden neurons is read as matrices; None for all others."""
    return [
        matrices_of(graph, name) if of_class in HIDDEN else None
        for of_class, name in zip(classes(graph), graph.parameters, strict=True)
    ]


def scales_of(
    graph: ParameterGraph, scales: Mapping[str, float], widest: float, widest_output: float = 0.0
) -> list[float]:
    """The factor for each parameter: that of its class, 1 for one not named, and that of its width.

    An orthogonalised step of a given rms has a largest singular value in proportion to sqrt(max(rows, columns)). Above
    `widest` it is kept from growing further, by sqrt(widest / max(rows, columns)), as steps that change what neurons
    see by a given amount must be (Yang, Simon & Bernstein 2023, arXiv 2310.17813). Steps of an output layer, which are
    not orthogonalised, add up over its n inputs: above `widest_output` they shrink by widest_output / n (Yang et al.
    2022, arXiv 2203.03466, table 8). 0: no such limit.
    """
    factors = []
    for of_class, hidden, fan_in in zip(classes(graph), hidden_matrices(graph), fans_in(graph), strict=True):
        factor = scales.get(of_class, 1.0)
        if hidden:
            factor *= _limited(widest, max(hidden.rows, hidden.columns)) ** 0.5
        elif of_class == "output":
            factor *= _limited(widest_output, fan_in)
        factors.append(factor)
    return factors


def _limited(widest: float, width: int) -> float:
    return min(1.0, widest / width) if widest and width else 1.0


def relative_rates(graph: ParameterGraph, param_rms: Tensor) -> Tensor:
    """(B,) factors in proportion to the size of the weights, from `LEAST` up to 1 at that of `usual_rms`.

    What a step changes in a network depends on its size beside that of the weights: a SIREN, whose hidden weights are
    more than ten times smaller than other networks', takes steps a tenth as long there. Vectors keep their rate.

    Shapes: param_rms (B,) -> (B,).
    """
    usual, least = usual_and_least(graph).to(param_rms)
    return torch.maximum(param_rms / usual, least).clamp(max=1)


@made_once
def usual_and_least(graph: ParameterGraph) -> Tensor:
    """(2, B) the usual size and the smallest rate, which is 1 for vectors; on the CPU, as a graph has no device."""
    usual = usual_rms(graph)
    rows = [rms or 1.0 for rms in usual], [LEAST if rms else 1.0 for rms in usual]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


@made_once
def usual_rms(graph: ParameterGraph) -> list[float]:
    """1 / sqrt(3 fan-in), as PyTorch draws weights; a table of vectors has a fan-in of 1; vectors have none: 0."""
    return [(3 * fan_in) ** -0.5 if fan_in else 0.0 for fan_in in fans_in(graph)]


@made_once
def fans_in(graph: ParameterGraph) -> list[int]:
    """How many inputs each parameter sums, as PyTorch counts them when it draws weights; 1 for a table, 0 for a vector.

    A transposed convolution counts its outputs and taps: that is what its weights are drawn by.
    """
    return [_fan_in(graph, spec) for spec in graph.parameters.values()]


def _fan_in(graph: ParameterGraph, spec: ParameterSpec) -> int:
    if _is_vector(graph, spec):
        return 0
    if spec.kind in TABLES:
        return 1
    at = stacked_axes(graph, spec)
    if spec.roles[at:] == ("in", "out"):  # x @ W, as in Hugging Face's GPT-2
        return max(spec.shape[at], 1)
    return max(prod(spec.shape[at + 1 :]), 1)
