"""Which parameter of an optimizer is which parameter of a graph.

A `ParameterGraph` holds no tensors, so parameters are matched by their names or, where the user gave none, by
their shapes in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lopt.errors import GraphError
from lopt.graph import ParameterGraph, ParameterSpec

Shape = tuple[int, ...]
Entry = tuple[str | None, Tensor]
"""A parameter as an optimizer knows it: its name, if the user gave one, and the tensor."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What DataParallel, torch.compile, FSDP and activation checkpointing insert into names."""

REMEDY = (
    "pass model.named_parameters() instead of model.parameters(), for the model that the graph was made from"
)


@dataclass(frozen=True)
class Naming:
    """A graph and the name that it has for every parameter of an optimizer, in the order of the groups."""

    graph: ParameterGraph
    names: list[str]

    @classmethod
    def of(cls, groups: Sequence[Sequence[Entry]], graph: ParameterGraph | None) -> Naming:
        """Find every parameter in the graph; without one, the names of a graph that ties nothing."""
        if graph is not None:
            return cls(graph, match(groups, graph))
        names = untied_names(groups)
        tensors = [tensor for group in groups for _, tensor in group]
        return cls(ParameterGraph.untied(zip(names, tensors, strict=True)), names)

    def add(self, group: Sequence[Entry], number: int) -> Naming:
        """With one more group, which may be a part of the graph not used yet, else is tied to nothing."""
        free = self.graph.subset(self.graph.parameters.keys() - set(self.names))
        try:
            return Naming(self.graph, self.names + match([group], free))
        except GraphError:
            added = untied_names([group], number)
            while not self.graph.parameters.keys().isdisjoint(added):
                added = [f"{number}.{name}" for name in added]
            tensors = [tensor for _, tensor in group]
            return Naming(extended(self.graph, zip(added, tensors, strict=True)), self.names + added)


def match(groups: Sequence[Sequence[Entry]], graph: ParameterGraph) -> list[str]:
    """The graph's name for every parameter, group by group.

    Named parameters are found by name or alias, whatever wrappers added to it. Unnamed ones must be the graph's,
    or a part of them, in the graph's order; several groups may each have an order of their own.
    Raises `GraphError` where they do not fit or more than one way is possible.
    """
    entries = [entry for group in groups for entry in group]
    if all(name is not None for name, _ in entries):
        names = _match_names(entries, graph)
    else:
        _check_shapes(entries, graph)
        try:
            names = _match_shapes(entries, graph)
        except GraphError:
            names = [name for group in groups for name in _match_shapes(group, graph)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise GraphError(
            f"expected each parameter of the graph once, found {twice[0]!r} for several; {REMEDY}"
        )
    return names


def untied_names(groups: Sequence[Sequence[Entry]], first_group: int = 0) -> list[str]:
    """Names for parameters without a graph: the user's where they are distinct, with the group's number where that
    makes them so, else group and position."""
    given = [name for group in groups for name, _ in group]
    if None not in given and _distinct(given):
        return [str(name) for name in given]
    entries = [
        (number, position, name)
        for number, group in enumerate(groups, first_group)
        for position, (name, _) in enumerate(group)
    ]
    named = [f"{number}.{position if name is None else name}" for number, position, name in entries]
    return named if _distinct(named) else [f"{number}.{position}" for number, position, _ in entries]


def _distinct(names: Sequence[str | None]) -> bool:
    return len(set(names)) == len(names)


def extended(graph: ParameterGraph, named: Iterable[tuple[str, Tensor]]) -> ParameterGraph:
    """The graph with further parameters, tied to nothing."""
    extra, offset = ParameterGraph.untied(named), len(graph.groups)
    shifted = {
        name: replace(
            spec, axes=tuple(tuple(tuple(g + offset for g in s) for s in axis) for axis in spec.axes)
        )
        for name, spec in extra.parameters.items()
    }
    groups = graph.groups + tuple(replace(group, id=group.id + offset) for group in extra.groups)
    return replace(graph, parameters={**graph.parameters, **shifted}, groups=groups)


def _match_names(entries: Sequence[Entry], graph: ParameterGraph) -> list[str]:
    known = {alias: spec for spec in graph.parameters.values() for alias in (spec.name, *spec.aliases)}
    return [_find(str(name), tensor, known).name for name, tensor in entries]


def _find(name: str, tensor: Tensor, known: dict[str, ParameterSpec]) -> ParameterSpec:
    spec = known.get(name) or known.get(".".join(part for part in name.split(".") if part not in WRAPPERS))
    if spec is None:
        raise GraphError(
            f"parameter {name!r} is not in the graph, which holds {_some(known)}; trace the module whose"
            " named_parameters() are passed, or add the parameter later with add_param_group"
        )
    if spec.shape != tuple(tensor.shape):
        raise GraphError(
            f"parameter {name!r}: expected shape {spec.shape} from the graph, found {tuple(tensor.shape)};"
            " trace the model again after changing it"
        )
    return spec


def _check_shapes(entries: Sequence[Entry], graph: ParameterGraph) -> None:
    available = Counter(spec.shape for spec in graph.parameters.values())
    for shape, count in Counter(tuple(tensor.shape) for _, tensor in entries).items():
        if count > available[shape]:
            raise GraphError(
                f"expected {available[shape]} parameters of shape {shape} as in the graph, found {count}; {REMEDY}"
            )


def _match_shapes(entries: Sequence[Entry], graph: ParameterGraph) -> list[str]:
    """The only way in which the shapes are a subsequence of the graph's: the leftmost is also the rightmost."""
    wanted = [tuple(tensor.shape) for _, tensor in entries]
    specs = list(graph.parameters.values())
    shapes = [spec.shape for spec in specs]
    left = _leftmost(wanted, shapes)
    if left is None:
        raise GraphError(f"expected the parameters in the graph's order, found another; {REMEDY}")
    right = _leftmost(wanted[::-1], shapes[::-1])
    assert right is not None
    if left != [len(shapes) - 1 - index for index in reversed(right)]:
        raise GraphError(
            f"expected one way to match {len(wanted)} unnamed parameters to the graph's {len(shapes)} by shape,"
            f" found several; {REMEDY}"
        )
    return [specs[index].name for index in left]


def _leftmost(wanted: Sequence[Shape], shapes: Sequence[Shape]) -> list[int] | None:
    found, start = [], 0
    for shape in wanted:
        index = next((i for i in range(start, len(shapes)) if shapes[i] == shape), None)
        if index is None:
            return None
        found.append(index)
        start = index + 1
    return found


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
