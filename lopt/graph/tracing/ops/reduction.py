"""Reductions and functions along an axis: symmetric ones leave it free, ordered ones fix it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import tree_leaves

from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.shape import split_dim
from lopt.graph.tracing.ops.table import rule, wrap, wrap_all
from lopt.graph.tracing.speech import Speech, fixed_dims, is_ref
from lopt.graph.tracing.tape import Call
from lopt.graph.tracing.values import Dim, Mark, Value


def reduce(s: Speech, x: Value, dims: int | Sequence[int] | None) -> tuple[Dim, ...]:
    """What is left of `x`, with size-1 dimensions in place of the reduced ones where the result keeps them."""
    gone = wrap_all(dims, x.rank)
    if len(s.shapes[0]) == x.rank:
        return tuple(s.fixed(1) if i in gone else d for i, d in enumerate(x.dims))
    return tuple(d for i, d in enumerate(x.dims) if i not in gone)


@rule(
    "sum", "mean", "amax", "amin", "logsumexp", "any", "all", "nansum", "nanmean", "count_nonzero", "aminmax",
    "_is_all_true", "_is_any_true", "prod", "var", "std", "var_mean", "std_mean",
)  # fmt: skip
def symmetric(s: Speech, x: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Any function of the set of entries along `dim`."""
    # The old overloads of moments have a bool, `unbiased`, in the place of `dim`; and a bool is an int.
    dims = reduce(s, x, dim if isinstance(dim, int | list | tuple) and not isinstance(dim, bool) else None)
    return [dims] * len(s.shapes)


@rule("linalg_vector_norm", "norm")
def norm(s: Speech, x: Value, ord: Any = 2, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A norm along `dim`."""
    return symmetric(s, x, dim)


@rule("argmax", "argmin")
def position_of_extreme(s: Speech, x: Value, dim: int | None = None, *args: Any, **kwargs: Any) -> Any:
    """Answers with a place, so that the entries must stay where they are."""
    if dim is None:
        s.fix(*x.dims)
    else:
        _answer(s, x, wrap_all(dim, x.rank), 0)
    return reduce(s, x, dim)


def _answer(s: Speech, x: Value, along: Sequence[int], output: int) -> None:
    """Output number `output` tells places along these dimensions, so that their entries must stay where they are.

    Not so where the places go along: all that is done with them is to read or write there, in what has the same axis.
    """
    _note_choice(s, x, along)
    readers = s.readers(output)
    noted = len(along) == 1 and s.mark is not None and s.mark.chosen is x.dims[along[0]].axis is not None
    if not noted or readers is None or not all(_goes_to_places(s, reader, output) for reader in readers):
        s.fix(*[x.dims[i] for i in along])


def _goes_to_places(s: Speech, reader: Call, output: int) -> bool:
    """Whether a call reads that output as an index along a dimension, and as nothing else."""
    ref = [ref for ref in tree_leaves(s.call.outputs) if is_ref(ref)][output]
    if reader.name not in ("gather", "scatter", "scatter_add", "scatter_reduce") or len(reader.args) < 3:
        return False
    others = (*reader.args[:2], *reader.args[3:], *reader.kwargs.values())
    return reader.args[2] == ref and ref not in tree_leaves(others)


def _note_choice(s: Speech, x: Value, along: Sequence[int]) -> None:
    """The places that are answered with are choices among the entries of the axis; choices in order are choices."""
    if along and not x.pure and (s.mark is None or s.mark.kind in ("activated", "sigmoid")):
        s.mark = Mark("choice", chosen=x.dims[along[0]].axis)


@rule("max", "min", "median", "nanmedian", "mode")
def extreme(s: Speech, x: Value, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The extreme value (symmetric) and its place (not symmetric, if anybody reads it)."""
    if isinstance(dim, Value):
        return pointwise(s, x, dim)
    if len(s.shapes) > 1 and s.is_used(1):
        _answer(s, x, wrap_all(-1 if dim is None else dim, x.rank), 1)
    along = -1 if dim is None and len(s.shapes) > 1 else dim
    return [reduce(s, x, along)] * len(s.shapes)


@rule("kthvalue")
def kth_value(s: Speech, x: Value, k: int, dim: int = -1, *args: Any) -> Any:
    """The k-th smallest value and its place."""
    return extreme(s, x, dim)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
def softmax(s: Speech, x: Value, dim: int, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Symmetric along its axis; turns attention scores into probabilities."""
    if x.mark is not None and x.mark.kind == "scores" and wrap(dim, x.rank) == x.rank - 1:
        s.mark = Mark("probabilities", x.mark.queries, x.mark.keys)
    return x.dims


@rule("cumsum", "cumprod", "logcumsumexp", "sort", "topk", "cummax", "cummin", "flip", "roll")
def ordered(s: Speech, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Depends on the order along the axes it names; the result there is a new axis.

    What is put in order by size does not depend on the order that it had, unless somebody reads that.
    """
    gone = _ordered_dims(s, x, args, kwargs)
    if s.call.name not in ("topk", "sort"):
        s.fix(*[x.dims[i] for i in gone])
    elif s.is_used(1):
        _answer(s, x, gone, 1)
    return [
        tuple(s.fixed(n) if i in gone else d for i, (n, d) in enumerate(zip(shape, x.dims, strict=True)))
        for shape in s.shapes
    ]


def _ordered_dims(s: Speech, x: Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    name = s.call.name
    if name == "topk":
        return wrap_all(args[1] if len(args) > 1 else kwargs.get("dim", -1), x.rank)
    if name == "sort":
        given = [a for a in args if not isinstance(a, bool)]
        return wrap_all(given[0] if given else kwargs.get("dim", -1), x.rank)
    if name == "roll":
        return wrap_all(args[1] if len(args) > 1 else kwargs.get("dims"), x.rank)
    return wrap_all(args[0] if args else kwargs.get("dim", kwargs.get("dims")), x.rank)


@rule("renorm")
def renorm(s: Speech, x: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Shortens each part along a dimension to a norm, which is symmetric in the others."""
    return x.dims


@rule("tril", "triu")
def triangle(s: Speech, x: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Compares the two last indices."""
    return (*x.dims[:-2], *map(s.placed, x.dims[-2:]))


@rule("glu")
def glu(s: Speech, x: Value, dim: int = -1) -> tuple[Dim, ...]:
    """a * sigmoid(b) for the two halves a, b of an axis."""
    at = wrap(dim, x.rank)
    half = x.dims[at].size // 2
    a, b = split_dim(s, x, at, [half, half])
    if not x.pure:
        s.refine(b.dims[at].origin, "gate")
    return tuple(s.tie(p, q) for p, q in zip(a.dims, b.dims, strict=True))


@rule("nll_loss_forward", "nll_loss2d_forward", "nll_loss_nd")
def nll_loss(s: Speech, x: Value, target: Value, *args: Any, **kwargs: Any) -> Any:
    """Picks the entry of the right class."""
    s.fix(x.dims[1 if x.rank > 1 else 0], why="output")
    s.fix(*x.dims, *target.dims)
    return [fixed_dims(shape) for shape in s.shapes]
