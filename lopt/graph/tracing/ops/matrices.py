"""Functions of square matrices, such as the mixing of channels in a normalising flow."""

from __future__ import annotations

from typing import Any

from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import NoRuleError, Speech
from lopt.graph.tracing.values import Value


@rule("linalg_inv_ex")
def inverse(s: Speech, x: Value, **_: Any) -> list[Any]:
    """(P x Q)^-1 = Q^-1 x^-1 P^-1: the columns of the one are the rows of the other."""
    *batch, rows, columns = x.dims
    return [(*batch, columns, rows), *[None] * (len(s.shapes) - 1)]


@rule("_linalg_det", "_linalg_slogdet")
def determinant(s: Speech, x: Value) -> list[Any]:
    """Its sign stays where rows and columns change places alike, its size wherever either of them do."""
    if any(map(s.is_used, range(len(s.shapes) - 2, len(s.shapes)))):  # the triangles that it was made of
        raise NoRuleError
    if s.is_used(0):
        s.tie(*x.dims[-2:])
    return [x.dims[:-2] if len(shape) == x.rank - 2 else None for shape in s.shapes]
