"""Step lengths by what a tensor is: the best rate of a dense matrix is not that of a convolution kernel."""

from __future__ import annotations

from collections.abc import Mapping

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.rules.classical.muon import ADAMW_KINDS, is_hidden_matrix

CLASSES = ("kernel", "matrix", "output", "table", "vector")
"""Kernels and dense matrices that feed hidden neurons; the output layer; embeddings and depthwise kernels; the rest."""


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


def scales_of(graph: ParameterGraph, scales: Mapping[str, float]) -> list[float]:
    """The factor for each parameter; 1 for a class that is not named."""
    return [scales.get(name, 1.0) for name in classes(graph)]
