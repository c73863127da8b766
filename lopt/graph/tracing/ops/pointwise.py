"""Pointwise operations: equal positions meet, so equal dimensions are tied, after broadcasting."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils._pytree import tree_leaves

from lopt.graph.tracing.axes import leaves
from lopt.graph.tracing.ops.shape import segmented
from lopt.graph.tracing.ops.table import SEGMENT_RULES, rule
from lopt.graph.tracing.speech import Speech
from lopt.graph.tracing.values import NOWHERE, Dim, Mark, Value

ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "tanh": "tanh", "sigmoid": "sigmoid", "silu": "silu", "elu": "elu",
    "leaky_relu": "leaky_relu", "softplus": "softplus", "sin": "sin", "cos": "cos", "hardswish": "hardswish",
    "hardtanh": "relu6", "mish": "mish", "hardsigmoid": "hardsigmoid", "celu": "celu", "selu": "selu",
    "log_sigmoid_forward": "log_sigmoid", "threshold": "threshold", "_prelu_kernel": "prelu", "rrelu": "rrelu",
    "rrelu_with_noise": "rrelu", "softshrink": "softshrink", "hardshrink": "hardshrink",
}  # fmt: skip
"""Pointwise operations that are the activation function of the neurons they see."""

GATES = {"sigmoid", "hardsigmoid", "silu", "gelu", "relu"}
"""Activations whose output, multiplied to another layer's output, gates it."""

SCALES = {"mul", "div", "_prelu_kernel", "true_divide"}
SHIFTS = {"add", "sub", "rsub"}


def pointwise(s: Speech, *args: Any, op: str = "", **kwargs: Any) -> Any:
    """Any pointwise function of any number of tensors."""
    values = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Value)]
    first = next((v for v in values if v.segments), None)
    if first is None:
        return _pointwise(s, values, op)
    split = _split_like(first, values)
    if split is None:
        return _pointwise(s, [s.whole(v) for v in values], op)
    return segmented([first.with_dims(_pointwise(s, part, op)) for part in split], first.segment_dim)


SEGMENT_RULES.add(pointwise)


def _split_like(first: Value, values: list[Value]) -> list[list[Value]] | None:
    """The operands for each segment of the first, if all of them can be taken apart along that dimension."""

    def place(v: Value) -> tuple[int, list[int]]:
        return v.rank - v.segment_dim, [p.dims[v.segment_dim].size for p in v.segments]

    from_end, sizes = place(first)
    columns: list[list[Value]] = []
    for v in values:
        if v.segments:
            if place(v) != (from_end, sizes):
                return None
            columns.append(list(v.segments))
        elif v.rank < from_end or v.dims[v.rank - from_end].size == 1:
            columns.append([v] * len(sizes))
        else:
            return None
    return [list(row) for row in zip(*columns, strict=True)]


def _pointwise(s: Speech, values: list[Value], op: str) -> tuple[Dim, ...]:
    if op in ACTIVATIONS and not values[0].pure:
        for leaf in itertools.chain.from_iterable(map(leaves, values[0].axes())):
            leaf.activation = leaf.activation or ACTIVATIONS[op]
    rank = max((v.rank for v in values), default=0)  # of numbers alone: torch.div(8, 4, rounding_mode=...)
    dims = []
    for from_end in range(rank, 0, -1):
        aligned = [v.dims[v.rank - from_end] for v in values if v.rank >= from_end]
        # Broadcasting stretches a size of 1 to 0 as well as to any larger one.
        size = max((d.size for d in aligned), default=1) if all(d.size for d in aligned) else 0
        tied = s.tie(*[d for d in aligned if d.size == size])
        view = next((d.view for d in aligned if d.size == size and d.view is not None), None)
        dims.append(Dim(size, tied.axis, tied.origin, view))
    data = [v for v in values if not v.pure]
    if data:
        dims = _mixed(s, values, data, dims, op)
    return tuple(dims)


def _mixed(s: Speech, values: list[Value], data: list[Value], dims: list[Dim], op: str) -> list[Dim]:
    """Name the parameters that meet activations, and keep the origins of the activations only."""
    for value in values:
        if value.pure:
            s.kind(value, _kind(value, op))
            for dim in value.dims:
                s.role(dim, "out")
    if op == "mul" and len(data) == 2:
        _note_gate(s, *data)
    s.mark = _next_mark(s, data, op)
    sources = {frozenset(o.tensor for o in v.origins) for v in data if v.origins}
    if len(sources) != 1:
        return [Dim(d.size, d.axis, NOWHERE, d.view) for d in dims]
    rank = len(dims)
    origins = [
        frozenset().union(*[v.dims[v.rank - rank + i].origin for v in data if v.rank - rank + i >= 0])
        for i in range(rank)
    ]
    return [Dim(d.size, d.axis, o, d.view) for d, o in zip(dims, origins, strict=True)]


def _kind(value: Value, op: str) -> str:
    if op in SCALES:
        return "scale"
    if op in SHIFTS or op == "where":
        return "position" if sum(d.size > 1 for d in value.dims) > 1 else "bias"
    return "other"


def _next_mark(s: Speech, data: list[Value], op: str) -> Mark | None:
    if op in GATES and data[0].origins:
        return Mark("sigmoid" if "sigmoid" in op else "activated", data[0].origins)
    marks = [
        v.mark for v in data if v.mark is not None and v.mark.kind in ("scores", "probabilities", "attended")
    ]
    return marks[0] if marks else None


def _note_gate(s: Speech, a: Value, b: Value) -> None:
    for gate, other in ((a, b), (b, a)):
        if gate.mark is None or gate.mark.kind not in ("activated", "sigmoid"):
            continue
        rival = other.mark is not None and other.mark.kind == "sigmoid"
        if not rival and not gate.mark.queries & other.origins:
            s.refine(gate.mark.queries, "gate")


UNTAGGED = (
    "copy", "native_dropout", "bernoulli", "_prelu_kernel", "alpha_dropout", "feature_dropout", "lift_fresh", "lift",
    "hardswish", "log_sigmoid_forward", "rrelu_with_noise", "polar", "complex", "real", "imag", "isclose",
    "__and__", "__or__", "softplus_backward", "elu_backward", "leaky_relu_backward", "hardswish_backward",
    "hardtanh_backward", "special_i0", "native_dropout_backward", "log_sigmoid_backward",
    "frexp", "floor_divide", "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
)  # fmt: skip
"""Pointwise operations that PyTorch does not mark as such."""


def _enter_untagged(name: str) -> None:
    @rule(name, segments=True)
    def pointwise_rule(s: Speech, *args: Any, **kwargs: Any) -> Any:
        result = pointwise(s, *args, op=name, **kwargs)
        if len(s.shapes) == 1:
            return result
        return [result if shape == s.shapes[0] else None for shape in s.shapes]


for _name in UNTAGGED:
    _enter_untagged(_name)


@rule(
    "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "soft_margin_loss", "dist",
)  # fmt: skip
def loss(s: Speech, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """A pointwise loss with its weights, summed or not."""
    dims = _pointwise(s, [v for v in (*args, *kwargs.values()) if isinstance(v, Value)], "loss")
    return dims if len(dims) == len(s.shapes[0]) else ()


@rule("isin")
def is_in(s: Speech, x: Any, among: Any, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Whether each entry is one of a set."""
    return x.dims if isinstance(x, Value) else ()
