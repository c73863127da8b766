"""Which parameter of an optimizer is which parameter of a graph.

A `ParameterGraph` holds no tensors, so parameters are matched by their names or, where the user gave none, by
their shapes in order. From then on a name belongs to the tensor, wherever the tensor is moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from lopt.errors import ConfigError, GraphError
from lopt.graph import ParameterGraph, ParameterSpec

Shape = tuple[int, ...]
Entry = tuple[str | None, Tensor]
"""A parameter as an optimizer knows it: its name, if the user gave one, and the tensor."""
Group = Mapping[str, Any]
"""A parameter group of `torch.optim`."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What DataParallel, torch.compile, FSDP and activation checkpointing insert into names."""

REMEDY = (
    "pass model.named_parameters() instead of model.parameters(), for the model that the graph was made from, or, where"
    " a wrapper takes no names (ZeroRedundancyOptimizer), graph=lopt.trace_on_first_forward(model)"
)


class Binding:
    """The names that a graph has for the parameters of an optimizer, through all that is done to its groups.

    Groups may be removed, put back and assigned anew in any order, and tensors may be replaced: a name follows its
    tensor. A tensor that comes in later takes the name that the user gave it, else that of a tensor of its shape which
    it replaces, else the only place that is free in the graph; what the graph does not know is tied to nothing.

    Args:
        given: the user's graph; None: nothing is tied.
        groups: the groups to begin with.
        first: those of the parameters that have to be in the graph; `GraphError` if they do not fit.
        owners: the tensors that the graph was made of, by their names in it, as far as they are known. If these are
            all of the first ones, nothing else is asked.
    """

    def __init__(
        self,
        given: ParameterGraph | None,
        groups: Sequence[Group],
        first: Sequence[Tensor],
        owners: Mapping[str, Tensor],
    ) -> None:
        self._given = given
        # Strong references, and renewed at every change: weak ones would forbid `torch.utils.swap_tensors`, with which
        # Module.to moves DTensors. Only what has left the groups is remembered weakly, with its state.
        self.params: list[Tensor] = []
        self.names: list[str | None] = []
        """Of the parameters, group after group; None for lazy ones, which have no shape yet."""
        self._shapes: list[Shape | None] = []
        self._lengths: list[int] = []
        self._left: Any = WeakTensorKeyDictionary()
        known: dict[int, str | None] = {}
        if given is not None:
            has_to_fit = set(map(id, first))
            strict = [[e for e in entries(g) if id(e[1]) in has_to_fit and not is_lazy(e[1])] for g in groups]
            ids = [id(p) for group in strict for _, p in group]
            known.update({id(p): name for name, p in owners.items()})
            if not known.keys() >= set(ids):
                known = dict(zip(ids, match(strict, given), strict=True))
        self._take(groups, known)

    def holds(self, params: Sequence[Tensor]) -> bool:
        """Whether the names are those of these parameters, in this order and with their present shapes."""
        return len(params) == len(self.params) and all(
            new is old and (is_lazy(new) if shape is None else new.shape == shape)
            for new, old, shape in zip(params, self.params, self._shapes, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no way to know which of the tensors that have left come along.
        return {**vars(self), "_left": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _left=WeakTensorKeyDictionary())

    def named(self) -> list[tuple[str, Tensor]]:
        """The parameters that have a name."""
        return [(name, p) for name, p in zip(self.names, self.params, strict=True) if name is not None]

    def follow(self, groups: Sequence[Group], state: MutableMapping[Any, dict[str, Any]]) -> bool:
        """Name what the groups hold now; returns whether anything has changed.

        The state of what they hold no more is put aside, for as long as the tensor lives and may come back.
        """
        params = [p for group in groups for p in group["params"]]
        if self.holds(params):
            return False
        known = {id(p): name for p, name in zip(self.params, self.names, strict=True)}
        present = set(map(id, params))
        for p in [*self.params, *(key for key in state if isinstance(key, Tensor))]:
            if id(p) not in present and p not in self._left:
                self._left[p] = known.pop(id(p), None), state.pop(p, None)
        held = set(known.values())
        for p in params:
            if p in self._left:
                name, kept = self._left.pop(p)
                known[id(p)] = None if name in held else name
                if kept and p not in state:
                    state[p] = kept
        self._take(groups, known)
        return True

    def _take(self, groups: Sequence[Group], known: Mapping[int, str | None]) -> None:
        self.params, lengths = [p for g in groups for p in g["params"]], [len(g["params"]) for g in groups]
        predecessors = self.names if lengths == self._lengths else [None] * len(self.params)
        self._shapes, self._lengths = [_shape(p) for p in self.params], lengths
        self.names = self._named(groups, known, predecessors)
        named = zip(self.names, self.params, strict=True)
        untied = [(name, p) for name, p in named if name is not None and name not in self._specs]
        if self._given is None:
            self.graph = ParameterGraph.untied(untied)
        else:
            self.graph = extended(self._given, untied) if untied else self._given

    @property
    def _specs(self) -> dict[str, ParameterSpec]:
        return {} if self._given is None else self._given.parameters

    def _named(
        self, groups: Sequence[Group], known: Mapping[int, str | None], predecessors: Sequence[str | None]
    ) -> list[str | None]:
        """A name for every parameter that has a shape: those known by identity keep theirs."""
        names = [self._kept(known.get(id(p)), p) for p in self.params]
        taken, start = set(names), 0
        for number, group in enumerate(groups):
            new = {
                start + position: entry
                for position, entry in enumerate(entries(group))
                if names[start + position] is None and not is_lazy(entry[1])
            }
            for index, name in self._places(new, predecessors, taken).items():
                names[index] = name
                taken.add(name)
            for index, (given, _) in new.items():
                if names[index] is None:
                    name = f"{number}.{index - start}" if given is None else given
                    while name in taken or name in self._specs:
                        name = f"{number}.{name}"
                    names[index] = name
                    taken.add(name)
            start += len(group["params"])
        return names

    def _kept(self, name: str | None, p: Tensor) -> str | None:
        """The name, unless the tensor has outgrown the place that it stands for."""
        if name is None or is_lazy(p) or (name in self._specs and self._specs[name].shape != p.shape):
            return None
        return name

    def _places(
        self, new: Mapping[int, Entry], predecessors: Sequence[str | None], taken: set[str | None]
    ) -> dict[int, str]:
        """The free places in the given graph for some newcomers of one group, as far as there are any."""
        if self._given is None:
            return {}
        places: dict[int, str] = {}
        free = {name: spec for name, spec in self._specs.items() if name not in taken}
        aliases = _by_alias(free.values())
        for index, (given, p) in new.items():
            spec = free.get(predecessors[index] or "") if given is None else _known(given, aliases)
            if spec is not None and spec.shape == p.shape and spec.name not in places.values():
                places[index] = spec.name
        rest = {index: entry for index, entry in new.items() if index not in places and entry[0] is None}
        # Tensors that have left and still live may come back to their places.
        away = {name for name, _ in self._left.values()}
        graph = self._given.subset(free.keys() - set(places.values()) - away)
        with suppress(GraphError):
            places.update(zip(rest, _match_shapes(list(rest.values()), graph), strict=True))
        return places


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


def labels_of(group: Group, others: Sequence[Group]) -> list[str]:
    """What the parameters of a group still to be added are called in messages: by the user, else by their position.

    Raises `ConfigError` for one that is given twice.
    """
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    names: dict[int, str] = {}
    elsewhere = {id(p) for other in others for p in other["params"]}
    for position, given in enumerate(params):
        name, p = given if isinstance(given, tuple) else (f"{len(others)}.{position}", given)
        if isinstance(p, Tensor) and (id(p) in names or id(p) in elsewhere):
            place = f"also as {names[id(p)]!r}" if id(p) in names else "in more than one parameter group"
            raise ConfigError(
                f"params: expected each parameter once, found {name!r} (shape {_shape(p)}) {place};"
                " leave out all but one of them"
            )
        names[id(p)] = str(name)
    return list(names.values())


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


def entries(group: Group) -> list[Entry]:
    """The parameters of a group with the names that the user gave, if they are still as many as the parameters."""
    params, names = group["params"], group.get("param_names", [])
    return list(zip(names if len(names) == len(params) else [None] * len(params), params, strict=True))


def _shape(p: Tensor) -> Shape | None:
    return None if is_lazy(p) else tuple(p.shape)


def _match_names(entries: Sequence[Entry], graph: ParameterGraph) -> list[str]:
    known = _by_alias(graph.parameters.values())
    return [_find(str(name), tensor, known).name for name, tensor in entries]


def _by_alias(specs: Iterable[ParameterSpec]) -> dict[str, ParameterSpec]:
    """Specs by all their names: as they are, else without what wrappers inserted when the graph was made."""
    named = {alias: spec for spec in specs for alias in (spec.name, *spec.aliases)}
    return {unwrapped(alias): spec for alias, spec in named.items()} | named


def _known(name: str, known: Mapping[str, ParameterSpec]) -> ParameterSpec | None:
    return known.get(name) or known.get(unwrapped(name))


def unwrapped(name: str) -> str:
    """The name without what wrappers inserted."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _find(name: str, tensor: Tensor, known: dict[str, ParameterSpec]) -> ParameterSpec:
    spec = _known(name, known)
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


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
