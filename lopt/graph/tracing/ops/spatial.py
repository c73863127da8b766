"""Convolutions, pooling and resampling: channels go along, positions stay in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lopt.graph.tracing.axes import Axis, merge, split
from lopt.graph.tracing.ops.contraction import plus
from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import Speech, fixed_dims
from lopt.graph.tracing.values import Dim, Value


@rule("convolution", "_convolution", "convolution_overrideable", "cudnn_convolution")
def convolution(
    s: Speech, x: Value, weight: Value, bias: Value | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int, *_: Any,
) -> tuple[Dim, ...]:  # fmt: skip
    """x (N, C_in, *positions), weight (C_out, C_in / groups, *taps); transposed: (C_in, C_out / groups, *taps).

    With g groups the channels are products (g, channels per group), and so is the weight's first axis.
    """
    first, second = (1, 0) if transposed else (0, 1)
    source, target = weight.dims[second], weight.dims[first]
    if groups > 1:  # also of a constant weight, such as a blur's
        source, target = (Dim(d.size, d.axis or Axis(d.size), d.origin) for d in (source, target))
    if groups > 1 and transposed:
        group = _halves(s, source, groups)[0]
        out = _product(group, target, groups)
        s.tie(x.dims[1], source)
    elif groups > 1:
        group = _halves(s, target, groups)[0]
        s.tie(x.dims[1], _product(group, source, groups))
        out = target
    else:
        s.tie(x.dims[1], source)
        out = target
    depthwise = groups > 1 and groups == x.dims[1].size
    if depthwise and source.size == 1:
        s.fix(source, why="tap")
    if not x.pure:
        s.kind(weight, "depthwise" if depthwise else "weight")
        for i, dim in enumerate(weight.dims):
            s.role(dim, "out" if i == first else "in" if i == second else "tap")
    s.mark = None
    positions = _positions(s, x.dims[2:], weight.dims[2:], stride, padding)
    dims = (x.dims[0], Dim(out.size, out.axis, weight.dims[first].origin), *positions)
    if bias is not None:
        dims = (dims[0], s.beside(dims[1], bias.dims[0]), *positions)
        if not x.pure:
            plus(s, bias, (dims[1],), [x])
    return dims


def _halves(s: Speech, dim: Dim, groups: int) -> tuple[Dim, Dim]:
    assert dim.axis is not None
    outer, inner = split(dim.axis, [groups, dim.size // groups])
    return Dim(groups, outer), Dim(dim.size // groups, inner)


def _product(group: Dim, inner: Dim, groups: int) -> Dim:
    assert group.axis is not None
    axes = [group.axis, inner.axis or Axis(inner.size)]
    return Dim(groups * inner.size, merge(axes))


def _positions(
    s: Speech, dims: Sequence[Dim], taps: Sequence[Dim], stride: Sequence[int], padding: Sequence[int]
) -> list[Dim]:
    """Positions move under a kernel; a 1x1 kernel leaves each by itself."""
    results = []
    for dim, tap, size in zip(dims, taps, s.shapes[0][2:], strict=True):
        s.fix(tap, why="tap")
        if tap.size == 1 and size == dim.size and set(stride) == {1} and set(padding) == {0}:
            results.append(Dim(dim.size, dim.axis))
        else:
            s.fix(dim)
            results.append(s.fixed(size))
    return results


POOLING = (
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool2d",
    "max_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "max_unpool2d",
    "fractional_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "mkldnn_max_pool2d",
)  # fmt: skip


@rule(*POOLING)
def resample(s: Speech, x: Value, *args: Any, **kwargs: Any) -> list[Any]:
    """Positions (whatever changes size, and all between) are mixed; leading dimensions go along."""
    spatial = int(next(c for c in s.call.name if c.isdigit()))
    lead = x.rank - spatial
    s.fix(*x.dims[lead:])
    return [(*x.dims[:lead], *[s.fixed(n) for n in shape[lead:]]) for shape in s.shapes]


@rule(
    "grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "_grid_sampler_2d_cpu_fallback", "cudnn_grid_sampler",
)  # fmt: skip
def grid_sample(s: Speech, x: Value, grid: Value, *args: Any) -> tuple[Dim, ...]:
    """Values of a feature grid (N, C, *positions) between its positions."""
    s.fix(*x.dims[2:], *grid.dims)
    if x.pure:
        s.kind(x, "embedding")
        for i, d in enumerate(x.dims):
            s.role(d, "out" if i == 1 else "tap")
    return (s.tie(x.dims[0], grid.dims[0]), x.dims[1], *grid.dims[1:-1])


@rule("affine_grid_generator")
def affine_grid(s: Speech, theta: Value, *args: Any) -> tuple[Dim, ...]:
    """Sampling positions from an affine map."""
    s.fix(*theta.dims)
    return fixed_dims(s.shapes[0])


@rule("im2col")
def im2col(s: Speech, x: Value, kernel: Sequence[int], *args: Any) -> tuple[Dim, ...]:
    """(N, C, H, W) -> (N, C x taps, positions)."""
    s.fix(*x.dims[2:])
    channel, rows, places = x.dims[1], s.shapes[0][1], s.shapes[0][2]
    axis = merge([channel.axis or Axis(channel.size), Axis(rows // channel.size, "tap")])
    return (x.dims[0], Dim(rows, axis), s.fixed(places))


@rule("col2im")
def col2im(s: Speech, x: Value, *args: Any) -> tuple[Dim, ...]:
    """The inverse of `im2col`, with overlaps summed."""
    rows, channels = x.dims[1], s.shapes[0][1]
    channel, taps = split(rows.axis or Axis(rows.size), [channels, rows.size // channels])
    s.fix(Dim(rows.size // channels, taps), why="tap")
    s.fix(x.dims[2])
    return (x.dims[0], Dim(channels, channel), *[s.fixed(n) for n in s.shapes[0][2:]])


@rule("pixel_shuffle")
def pixel_shuffle(s: Speech, x: Value, factor: int) -> tuple[Dim, ...]:
    """(N, C x r x r, H, W) -> (N, C, H x r, W x r)."""
    rows = x.dims[-3]
    channels = rows.size // factor**2
    channel, taps = split(rows.axis or Axis(rows.size), [channels, factor**2])
    s.fix(Dim(factor**2, taps), why="tap")
    s.fix(*x.dims[-2:])
    return (*x.dims[:-3], Dim(channels, channel), *fixed_dims(s.shapes[0][-2:]))


@rule("pixel_unshuffle")
def pixel_unshuffle(s: Speech, x: Value, factor: int) -> tuple[Dim, ...]:
    """(N, C, H x r, W x r) -> (N, C x r x r, H, W)."""
    s.fix(*x.dims[-2:])
    channel = x.dims[-3]
    axis = merge([channel.axis or Axis(channel.size), Axis(factor**2, "tap")])
    return (*x.dims[:-3], Dim(axis.size, axis), *fixed_dims(s.shapes[0][-2:]))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(s: Speech, x: Value, groups: int) -> tuple[Dim, ...]:
    """Channels (groups, per group) -> (per group, groups)."""
    group, inner = _halves(s, x.dims[1], groups)
    return (x.dims[0], _product(inner, group, inner.size), *x.dims[2:])


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fft(s: Speech, x: Value, dims: Sequence[int], *args: Any) -> tuple[Dim, ...]:
    """A Fourier transform along some dimensions."""
    gone = {d % x.rank for d in dims}
    s.fix(*[x.dims[i] for i in gone])
    return tuple(s.fixed(n) if i in gone else x.dims[i] for i, n in enumerate(s.shapes[0]))
