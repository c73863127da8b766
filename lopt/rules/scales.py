"""Step lengths by what a tensor is: the best rate of a dense matrix is not that of a convolution kernel."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.rules.classical.muon import ADAMW_KINDS, is_hidden_matrix

CLASSES = ("kernel", "matrix", "output", "table", "vector")
"""Kernels and dense matrices that feed hidden neurons; the output layer; embeddings and depthwise kernels; the rest."""

HIDDEN = ("kernel", "matrix")
"""The classes that feed hidden neurons."""


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
