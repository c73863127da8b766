"""Hand-written parameter graphs in one line per parameter, compared with traced ones.

Axes are written as sums (concatenation) of products: "h", "c*p", "g*q+g*k+g*v". Equal letters are the same group
and different letters are different groups; a dot is any group that must stay in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lopt.graph import ParameterGraph, TensorSpec

Expected = Mapping[str, Sequence[str]]


def assert_axes(graph: ParameterGraph, expected: Expected) -> None:
    """Every parameter (and buffer) of `expected` has these axes, and `expected` names every parameter."""
    assert set(graph.parameters) <= set(expected), "the expectation names every parameter"
    found = {name: written(graph, _spec(graph, name)) for name in expected}
    assert _canonical(found) == _canonical({name: list(axes) for name, axes in expected.items()})


def written(graph: ParameterGraph, spec: TensorSpec) -> list[str]:
    """The axes of a tensor in the notation above, with group numbers for letters."""
    return ["+".join("*".join(_letter(graph, g) for g in segment) for segment in axis) for axis in spec.axes]


def _letter(graph: ParameterGraph, group: int) -> str:
    return f"g{group}" if graph.groups[group].permutable else "."


def _spec(graph: ParameterGraph, name: str) -> TensorSpec:
    return graph.parameters.get(name) or graph.buffers[name]


def _canonical(axes: dict[str, list[str]]) -> dict[str, list[str]]:
    """Letters renamed in the order of their first use."""
    names: dict[str, str] = {}
    result = {}
    for name in sorted(axes):
        result[name] = [
            "+".join("*".join(_renamed(letter, names) for letter in s.split("*")) for s in axis.split("+"))
            for axis in axes[name]
        ]
    return result


def _renamed(letter: str, names: dict[str, str]) -> str:
    return "." if letter == "." else names.setdefault(letter, f"n{len(names)}")
