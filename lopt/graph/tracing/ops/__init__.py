"""One rule per ATen operation: what it says about the axes of its arguments and results.

A rule takes the interpreter `s` and the operation's own arguments, with a `Value` for each tensor, ties or fixes
axes, and returns the dimensions of the result (or a list with one entry per result). To add one, put it into the
file where it belongs, with the ATen name in its decorator.
"""

from lopt.graph.tracing.ops import (
    attention,
    contraction,
    factory,
    indexing,
    normalization,
    recurrent,
    reduction,
    shape,
    spatial,
)
from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.table import RULES, SEGMENT_RULES

__all__ = [
    "RULES",
    "SEGMENT_RULES",
    "attention",
    "contraction",
    "factory",
    "indexing",
    "normalization",
    "pointwise",
    "recurrent",
    "reduction",
    "shape",
    "spatial",
]
