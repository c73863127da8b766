"""From axis variables to a `ParameterGraph`: which atoms are groups, and what each parameter is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lopt.graph.spec import AxisGroup, AxisSpec, GraphSpec, ParameterSpec, TensorSpec
from lopt.graph.tracing.axes import Axis, find, fix, is_fixed, leaves, merge, strongest, unify
from lopt.graph.tracing.interpreter import Interpreter
from lopt.graph.tracing.values import Value
from lopt.graph.untied import default_roles

MAX_REPEATS = 32
"""A concatenation inside a fixed factor is written out at most so many times; beyond that it is fixed."""


@dataclass(frozen=True)
class Atom:
    """One atomic axis of the graph: a free variable, or a run of fixed ones that are kept together."""

    axes: tuple[Axis, ...]
    size: int

    @property
    def fixed(self) -> str | None:
        return strongest(*[a.fixed for a in self.axes])

    @property
    def key(self) -> tuple[int, ...]:
        return (self.size, *[id(find(a)) for a in self.axes])


Product = list[Atom]


def assemble(interpreter: Interpreter, aliases: dict[str, tuple[str, ...]], rung: str) -> GraphSpec:
    """The graph that the interpreter has found. `aliases`: parameter -> further names of the same tensor."""
    settle([axis for value in interpreter.tensors.values() for axis in value.axes()])
    register = _Register()
    know = interpreter.know
    top = max(know.depths.values(), default=1)
    parameters: dict[str, ParameterSpec] = {}
    for name, value in interpreter.tensors.items():
        if interpreter.state_names[name] == "buffer":
            continue
        parts = know.part_kinds(name)
        axes, ranges = _axes(value, register, parts)
        blocks = _block_kinds(ranges, know.kinds.get(name, "other"), parts)
        kind = blocks[0] if blocks and len(set(blocks)) == 1 else know.kinds.get(name, "other")
        parameters[name] = ParameterSpec(
            name=name,
            shape=value.shape,
            axes=axes,
            kind=kind,
            roles=_roles(value, know.roles.get(name, {}), kind),
            block_kinds=blocks if len(set(blocks)) > 1 else (),
            depth=(know.depths.get(name, 1) - 1) / max(top - 1, 1),
            aliases=aliases.get(name, ()),
        )
    buffers = {
        name: TensorSpec(name, value.shape, _axes(value, register, {})[0])
        for name, value in interpreter.tensors.items()
        if interpreter.state_names[name] == "buffer" and not all(map(is_fixed, value.axes()))
    }
    return GraphSpec(parameters, register.groups([*parameters.values(), *buffers.values()]), buffers, rung)


# -- bringing every axis into the form "concatenation of products of atoms" ------------------------------------


def settle(axes: Sequence[Axis]) -> None:
    """Rewrite (by ties or fixes, never by loosening) until every axis is a concatenation of products."""
    # One rewrite at a time, and from the start again: it may change the inside of any axis, of those behind as well.
    while any(_settle(axis) for axis in axes):
        pass


def _settle(axis: Axis, outer: Sequence[Axis] = ()) -> bool:
    """One rewrite, if there is one to be done; `outer` are the factors that stand before the axis."""
    root = find(axis)
    if not root.children or is_fixed(root):
        return False
    if root.form == "concat":
        return any(_settle(child, outer) for child in root.children)
    for k, child in enumerate(map(find, root.children)):
        before = [*outer, *root.children[:k]]
        if not before or child.form != "concat" or is_fixed(child):
            continue
        copies = math.prod(a.size for a in before) * len(child.children)
        if copies > MAX_REPEATS or not all(map(is_fixed, before)):
            _same_or_fixed(child)
            return True
    return any(_settle(child, [*outer, *root.children[:k]]) for k, child in enumerate(root.children))


def _same_or_fixed(concat: Axis) -> None:
    """Segments inside a free factor: the same neurons in all of them, if that can be, or none."""
    children = [find(child) for child in concat.children]
    if len({c.size for c in children}) == 1 < children[0].size and not any(map(is_fixed, children)):
        for child in children[1:]:
            unify(children[0], child)
        product = merge([Axis(len(children), "position"), children[0]])
        concat.form, concat.children = "product", product.children
    else:
        for child in children:
            fix(child, "position")


def segments(axis: Axis) -> list[Product]:
    """The axis as a concatenation of products; neighbouring fixed parts are kept together."""
    root = find(axis)
    if root.form == "concat":
        return [s for child in root.children for s in segments(child)]
    if is_fixed(root) or not root.children:
        return [[Atom(tuple(leaves(root)), root.size)]]
    # A fixed factor is one atom, whatever its inside is; a fixed axis by itself keeps its segments.
    options = [
        [[Atom(tuple(leaves(child)), child.size)]] if is_fixed(child) else segments(child)
        for child in root.children
    ]
    repeated = max((k for k, option in enumerate(options) if k and len(option) > 1), default=0)
    if repeated:  # everything outside is fixed, so the concatenation can be written out
        copies = math.prod(root.children[i].size for i in range(repeated))
        options = [options[repeated] * copies, *options[repeated + 1 :]]
    return [_neighbours(list(itertools.chain(*choice))) for choice in itertools.product(*options)]


def run_together(parts: list[Product], borders: set[int]) -> list[Product]:
    """Fixed segments next to each other become one, unless they are the same axis again or differ in kind."""
    result: list[Product] = []
    start = 0
    for part in parts:
        if (
            result
            and start not in borders
            and _is_fixed(part)
            and _is_fixed(result[-1])
            and _new(part, result[-1])
        ):
            last, atom = result[-1][0], part[0]
            result[-1] = [Atom((*last.axes, *atom.axes), last.size + atom.size)]
        else:
            result.append(part)
        start += math.prod(atom.size for atom in part)
    return result


def _new(part: Product, last: Product) -> bool:
    return not {id(find(a)) for a in part[0].axes} & {id(find(a)) for a in last[0].axes}


def _is_fixed(part: Product) -> bool:
    return len(part) == 1 and part[0].fixed is not None


def _neighbours(atoms: Product) -> Product:
    """Fixed factors next to each other become one."""
    result: Product = []
    for atom in atoms:
        if result and atom.fixed and result[-1].fixed:
            result[-1] = Atom((*result[-1].axes, *atom.axes), result[-1].size * atom.size)
        else:
            result.append(atom)
    return result


# -- groups ------------------------------------------------------------------------------------------------------


class _Register:
    """Numbers the groups in the order in which they are met."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, ...], int] = {}
        self._atoms: list[Atom] = []

    def id(self, atom: Atom) -> int:
        if atom.key not in self._ids:
            self._ids[atom.key] = len(self._atoms)
            self._atoms.append(atom)
        return self._ids[atom.key]

    def groups(self, specs: Sequence[TensorSpec]) -> tuple[AxisGroup, ...]:
        """All groups with their members."""
        members: list[list[tuple[str, int]]] = [[] for _ in self._atoms]
        for spec in specs:
            for dim, axis in enumerate(spec.axes):
                for group in dict.fromkeys(g for segment in axis for g in segment):
                    members[group].append((spec.name, dim))
        return tuple(_group(k, atom, tuple(members[k])) for k, atom in enumerate(self._atoms))


def _group(number: int, atom: Atom, members: tuple[tuple[str, int], ...]) -> AxisGroup:
    activation = next((a.activation for a in atom.axes if a.activation), None)
    permutable = atom.fixed is None and atom.size > 1
    return AxisGroup(
        number, atom.size, atom.fixed or "hidden", permutable, members, activation if permutable else None
    )


Ranges = list[list[tuple[int, int]]]
"""For each axis, where its segments start and stop."""


Kinds = dict[tuple[int, int, int], str]
"""(axis, start, stop) -> kind of that part of a parameter."""


def _axes(value: Value, register: _Register, kinds: Kinds) -> tuple[tuple[AxisSpec, ...], Ranges]:
    axes, ranges = [], []
    for number, dim in enumerate(value.dims):
        assert dim.axis is not None
        borders = {place for axis, *ends in kinds for place in ends if axis == number}
        parts = run_together(segments(dim.axis), borders)
        stops = list(itertools.accumulate(math.prod(atom.size for atom in part) for part in parts))
        axes.append(tuple(tuple(register.id(atom) for atom in part) for part in parts))
        ranges.append(list(zip([0, *stops], stops, strict=False)))
    return tuple(axes), ranges


# -- what parameters are -----------------------------------------------------------------------------------------


def _block_kinds(ranges: Ranges, kind: str, known: Kinds) -> tuple[str, ...]:
    """The kind of each block, row-major over the segments of the axes."""
    if not known:
        return ()
    choices = [[(axis, *r) for r in own] for axis, own in enumerate(ranges)]
    return tuple(_kind_of(block, kind, known) for block in itertools.product(*choices))


def _kind_of(block: Sequence[tuple[int, int, int]], kind: str, known: Kinds) -> str:
    for axis, start, stop in block:
        for (a, begin, end), other in known.items():
            if a == axis and begin <= start and stop <= end:
                return other
    return kind


def _roles(value: Value, votes: dict[int, str], kind: str) -> tuple[str, ...]:
    """The direction of each axis: as it was used, else the one that is missing, else by convention."""
    roles: list[str | None] = [votes.get(i) for i in range(len(value.dims))]
    if kind == "position":
        roles = _position_roles(value)
    for i, usual in enumerate(default_roles(len(roles))):
        if roles[i] is None:
            missing = [r for r in ("out", "in") if r not in roles]
            if not missing:  # it counts matrices, each of which was used by itself
                roles[i] = "tap"
            else:
                roles[i] = missing[0] if any(roles) and value.dims[i].size > 1 else usual
    return tuple(r or "tap" for r in roles)


def _position_roles(value: Value) -> list[str | None]:
    free = [i for i, d in enumerate(value.dims) if d.axis is not None and not is_fixed(d.axis)]
    out = free or [len(value.dims) - 1]
    return ["out" if i in out else "tap" for i in range(len(value.dims))]
