"""Hand-made graphs that between them show every shape an axis can have."""

from __future__ import annotations

import pytest

from lopt.graph import AxisGroup, ParameterGraph, ParameterSpec


def _graph(groups: list[tuple[int, str, bool]], parameters: list[ParameterSpec]) -> ParameterGraph:
    members: dict[int, list[tuple[str, int]]] = {}
    for spec in parameters:
        for dim, axis in enumerate(spec.axes):
            for group in {g for segment in axis for g in segment}:
                members.setdefault(group, []).append((spec.name, dim))
    axis_groups = tuple(
        AxisGroup(i, size, kind, permutable, tuple(members.get(i, ())))
        for i, (size, kind, permutable) in enumerate(groups)
    )
    return ParameterGraph({spec.name: spec for spec in parameters}, axis_groups, {}, "traced")


@pytest.fixture
def cnn_graph() -> ParameterGraph:
    """conv 1 -> 3 of 2 x 2 taps with a scale, flatten of 4 positions, linear 12 -> 2, a 0-d temperature."""
    groups = [
        (1, "input", False),
        (3, "hidden", True),
        (2, "tap", False),
        (2, "tap", False),
        (4, "position", False),
        (2, "output", False),
    ]
    image, channel, tap_h, tap_w, position, classes = range(6)
    conv = (((channel,),), ((image,),), ((tap_h,),), ((tap_w,),))
    head = (((classes,),), ((channel, position),))
    parameters = [
        ParameterSpec("conv.weight", (3, 1, 2, 2), conv, "weight", ("out", "in", "tap", "tap")),
        ParameterSpec("conv.bias", (3,), (((channel,),),), "bias", ("out",)),
        ParameterSpec("norm.scale", (3,), (((channel,),),), "scale", ("out",)),
        ParameterSpec("head.weight", (2, 12), head, "weight", ("out", "in"), depth=1.0),
        ParameterSpec("temperature", (), (), "other", ()),
    ]
    return _graph(groups, parameters)


@pytest.fixture
def attention_graph() -> ParameterGraph:
    """Fused query-key-value of 2 heads of 3 on a stream of 4, its output projection, a depthwise filter."""
    sizes = {"stream": 4, "head": 2, "query": 3, "value": 3}
    stream, head, query, value, tap = range(5)
    rows = ((head, query), (head, query), (head, value))
    parameters = [
        ParameterSpec(
            "qkv.weight", (18, 4), (rows, ((stream,),)), "query", ("out", "in"), ("query", "key", "value")
        ),
        ParameterSpec("qkv.bias", (18,), (rows,), "bias", ("out",)),
        ParameterSpec("out.weight", (4, 6), (((stream,),), ((head, value),)), "output", ("out", "in")),
        ParameterSpec(
            "filter", (4, 1, 5), (((stream,),), ((),), ((tap,),)), "depthwise", ("out", "in", "tap")
        ),
    ]
    return _graph([*((size, "hidden", True) for size in sizes.values()), (5, "tap", False)], parameters)


@pytest.fixture(params=["cnn_graph", "attention_graph"])
def graph(request: pytest.FixtureRequest) -> ParameterGraph:
    return request.getfixturevalue(request.param)
