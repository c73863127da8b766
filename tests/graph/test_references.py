"""The traced graphs tie and permute exactly what the hand-written references say: no axis more, none less."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from lopt.graph import ParameterGraph
from lopt.graph.spec import AxisSpec
from tests.graph.reference_models import REFERENCES, Reference

Atom = tuple[str, int]
"""("fixed", size), or (label of a permutable group, size)."""

CanonicalAxis = tuple[tuple[Atom, ...], ...]


def canonical(axes: Mapping[str, list[list[list[Atom]]]]) -> dict[str, tuple[CanonicalAxis, ...]]:
    """Groups renumbered in order of first appearance; neighbouring fixed atoms, or segments, made one."""
    labels: dict[str, str] = {}

    def rename(atom: Atom) -> Atom:
        label, size = atom
        return atom if label == "fixed" else (labels.setdefault(label, f"group {len(labels)}"), size)

    return {
        name: tuple(
            _merge_segments([[rename(atom) for atom in segment] for segment in axis]) for axis in axes[name]
        )
        for name in sorted(axes)
    }


def _merge_segments(segments: list[list[Atom]]) -> CanonicalAxis:
    merged: list[tuple[Atom, ...]] = []
    for segment in map(_merge_atoms, segments):
        if merged and _is_fixed(segment) and _is_fixed(merged[-1]):
            merged[-1] = (("fixed", _fixed_size(merged[-1]) + _fixed_size(segment)),)
        else:
            merged.append(segment)
    return tuple(merged)


def _merge_atoms(segment: list[Atom]) -> tuple[Atom, ...]:
    """Neighbouring fixed atoms multiplied; atoms of size 1 dropped."""
    merged: list[Atom] = []
    for label, size in segment:
        if size == 1:
            continue
        if label == "fixed" and merged and merged[-1][0] == "fixed":
            merged[-1] = ("fixed", merged[-1][1] * size)
        else:
            merged.append((label, size))
    return tuple(merged)


def _is_fixed(segment: tuple[Atom, ...]) -> bool:
    return all(label == "fixed" for label, _ in segment)


def _fixed_size(segment: tuple[Atom, ...]) -> int:
    return segment[0][1] if segment else 1


def of_reference(reference: Reference) -> dict[str, tuple[CanonicalAxis, ...]]:
    def atom(text: str) -> Atom:
        return ("fixed", int(text)) if text.isdigit() else (text, reference.sizes[text])

    def axis(text: str) -> list[list[Atom]]:
        return [[atom(factor.strip()) for factor in part.split(" x ")] for part in text.split("|")]

    return canonical(
        {
            name: [axis(part) for part in text.split(",")] if text else []
            for name, text in reference.axes.items()
        }
    )


def of_graph(graph: ParameterGraph) -> dict[str, tuple[CanonicalAxis, ...]]:
    def atom(number: int) -> Atom:
        group = graph.groups[number]
        return (f"{number}" if group.permutable else "fixed", group.size)

    def segments(axis: AxisSpec) -> list[list[Atom]]:
        return [[atom(number) for number in segment] for segment in axis]

    specs = {**graph.parameters, **graph.buffers}
    return canonical({name: [segments(axis) for axis in spec.axes] for name, spec in specs.items()})


@pytest.mark.parametrize("name", REFERENCES)
def test_the_traced_graph_equals_the_reference(name: str) -> None:
    reference = REFERENCES[name]
    torch.manual_seed(0)
    model = reference.build()
    graph = ParameterGraph.trace(model, reference.inputs())
    assert graph.rung == "traced"
    assert of_graph(graph) == of_reference(reference)
    for parameter, kind in reference.kinds.items():
        spec = graph.parameters[parameter]
        assert "|".join(spec.block_kinds or (spec.kind,)) == kind, parameter


@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_covers_the_network(name: str) -> None:
    """A reference must itself be right in names and shapes, or it could agree with a wrong graph."""
    reference = REFERENCES[name]
    model = reference.build()
    buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    shapes = {n: tuple(t.shape) for n, t in {**dict(model.named_parameters()), **buffers}.items()}
    found = {n: tuple(map(_axis_size, axes)) for n, axes in of_reference(reference).items()}
    assert found == shapes
    model(*reference.inputs())


def _axis_size(axis: CanonicalAxis) -> int:
    return sum(torch.Size(size for _, size in segment).numel() for segment in axis)


def test_renumbering_is_ignored_and_a_missing_tie_is_not() -> None:
    tied = {"w": [[[("a", 3)]], [[("b", 2)]]], "v": [[[("b", 2)]]]}
    renamed = {"w": [[[("x", 3)]], [[("y", 2)]]], "v": [[[("y", 2)]]]}
    loose = {"w": [[[("x", 3)]], [[("y", 2)]]], "v": [[[("z", 2)]]]}
    held = {"w": [[[("x", 3)]], [[("y", 2)]]], "v": [[[("fixed", 2)]]]}
    assert canonical(tied) == canonical(renamed)
    assert canonical(tied) != canonical(loose)
    assert canonical(tied) != canonical(held)
