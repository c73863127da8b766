"""Normalisations and their scales and shifts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lopt.graph.tracing.axes import Axis, cut, find, fix, split
from lopt.graph.tracing.ops.table import rule, wrap
from lopt.graph.tracing.speech import Speech
from lopt.graph.tracing.values import Dim, Value


def affine(s: Speech, dims: Sequence[Dim], weight: Value | None, bias: Value | None) -> tuple[Dim, ...]:
    """The axes that a norm's scale and shift act on, tied to theirs."""
    for value, kind in ((weight, "scale"), (bias, "shift")):
        if value is not None:
            s.kind(value, kind)
            dims = [s.beside(dim, own) for dim, own in zip(dims, value.dims, strict=True)]
            for own in value.dims:
                s.role(own, "out")
    return tuple(dims)


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "batch_norm", "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update",
)  # fmt: skip
def batch_norm(
    s: Speech, x: Value, weight: Value | None, bias: Value | None, *args: Any, **kwargs: Any
) -> Any:
    """Normalises each channel; the running statistics go with the channels."""
    (channel,) = affine(s, [x.dims[1]], weight, bias)
    for statistic in args[:2]:
        if isinstance(statistic, Value):
            channel = s.beside(channel, statistic.dims[0])
            s.know.state.update(o.tensor for o in statistic.origins)
    return [
        (x.dims[0], channel, *x.dims[2:]),
        *[(channel,) if len(shape) == 1 and shape[0] == channel.size else None for shape in s.shapes[1:]],
    ]


@rule("native_layer_norm", "layer_norm")
def layer_norm(
    s: Speech, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any
) -> Any:
    """Normalises over the last dimensions, symmetrically."""
    before = x.rank - len(shape)
    return [(*x.dims[:before], *affine(s, x.dims[before:], weight, bias)), *[None] * (len(s.shapes) - 1)]


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(s: Speech, x: Value, shape: Sequence[int], weight: Any = None, *_: Any) -> Any:
    """Scales by the root mean square over the last dimensions."""
    return layer_norm(s, x, shape, weight)


@rule("native_group_norm", "group_norm")
def group_norm(
    s: Speech, x: Value, weight: Any, bias: Any, n: Any, c: Any, hw: Any, groups: int, *_: Any
) -> Any:
    """Normalises each group of channels: groups may change places, and channels within their group."""
    (channel,) = affine(s, [x.dims[1]], weight, bias)
    if channel.axis is not None and groups < channel.size:
        _keep_groups(channel.axis, channel.size // groups)
    return [(x.dims[0], channel, *x.dims[2:]), *[None] * (len(s.shapes) - 1)]


def _keep_groups(axis: Axis, size: int) -> None:
    """Split each concatenated part into groups by itself: the parts share no channels.

    Where a group lies across two of them, none can change places with another, but channels inside the group and the
    part can.
    """
    root = find(axis)
    if root.form == "concat" and all(find(child).size % size == 0 for child in root.children):
        for child in root.children:
            _keep_groups(child, size)
    elif root.form == "concat":
        stops = set(itertools.accumulate(find(child).size for child in root.children))
        ends = sorted(stops | set(range(size, root.size, size)))
        if cut(root, [end - start for start, end in itertools.pairwise([0, *ends])]) is None:
            fix(root, "position")
    elif size > 1 and root.size > size:
        split(root, [root.size // size, size])


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(s: Speech, v: Value, g: Value, dim: int = 0) -> Any:
    """w = g v / |v|, with the norm over all dimensions but `dim`."""
    at = wrap(dim, v.rank)
    s.kind(g, "scale")
    dims = [s.tie(d, own) if own.size == d.size else d for d, own in zip(v.dims, g.dims, strict=True)]
    dims[at] = Dim(dims[at].size, dims[at].axis, v.dims[at].origin | g.dims[at].origin)
    return [tuple(dims), *[None] * (len(s.shapes) - 1)]


@rule("local_response_norm")
def local_response_norm(s: Speech, x: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Normalises over neighbouring channels, which must stay neighbours."""
    return (x.dims[0], s.placed(x.dims[1]), *x.dims[2:])
