"""Fake quantisation, as in quantisation-aware training: values are rounded, maybe with a scale for each channel."""

from __future__ import annotations

from typing import Any

from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import Speech
from lopt.graph.tracing.values import Value


@rule("fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask")
def per_channel(s: Speech, x: Value, scale: Any, zero_point: Any, axis: int, *_: Any) -> Any:
    """Rounds each channel by its own scale."""
    return _rounded(s, x, axis, scale, zero_point)


@rule("_fused_moving_avg_obs_fq_helper", "fused_moving_avg_obs_fake_quant")
def observed(s: Speech, x: Value, on: Any, quantises: Any, *args: Any, **_: Any) -> Any:
    """Rounds by a scale that follows the running range of the values, of all or of each channel."""
    low, high, scale, zero_point, _rate, _least, _greatest, axis = args[:8]
    return _rounded(s, x, axis, low, high, scale, zero_point)


def _rounded(s: Speech, x: Value, axis: int, *statistics: Any) -> Any:
    channel = x.dims[axis]
    for each in statistics:
        if isinstance(each, Value) and [dim.size for dim in each.dims] == [channel.size]:
            channel = s.beside(channel, each.dims[0])
            s.know.state.update(origin.tensor for origin in each.origins)
    dims = tuple(channel if i == axis % x.rank else dim for i, dim in enumerate(x.dims))
    if len(s.shapes) == 1:
        return dims
    return [dims, *(dims if shape == s.shapes[0] else None for shape in s.shapes[1:])]
