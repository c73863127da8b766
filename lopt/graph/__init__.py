"""Task network -> ParameterGraph: data class, tracer, op rules, verification, PyG export."""

from lopt.graph.parameter_graph import ParameterGraph
from lopt.graph.spec import AxisGroup, Block, ParameterSpec, TensorSpec

__all__ = ["AxisGroup", "Block", "ParameterGraph", "ParameterSpec", "TensorSpec"]
