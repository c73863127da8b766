"""One rule per ATen operation: what it says about the axes of its arguments and results.

A rule takes the `Speech` s and the operation's own arguments, with a `Value` for each tensor, ties or fixes
axes, and returns the dimensions of the result (or a list with one entry per result). To add one, put it into the
file where it belongs, with the ATen name in its decorator.
"""

# Imported for what importing does: each file enters its rules into the table.
from lopt.graph.tracing.ops import (  # noqa: F401
    attention,
    contraction,
    factory,
    indexing,
    matrices,
    normalization,
    pointwise,
    quantization,
    recurrent,
    reduction,
    shape,
    spatial,
)  # fmt: skip
