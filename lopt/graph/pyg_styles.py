"""Where each scalar of a GraphSpec sits in each `torch_geometric` style: nodes, edges, types; no values.

A style is a function graph -> attributes of `Data`, among them `edge_scalar` (and `node_scalar`): the flat
numbers of the scalars that the edges (and nodes) hold.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lopt.graph.spec import PARAMETER_KINDS, Block, GraphSpec, ParameterSpec, Segment

NODE_KINDS = (
    "unit", "hidden", "input", "output", "tap", "vocabulary", "position", "untied", "bias", "norm", "other",
)  # fmt: skip
"""The constant 1, the kinds of axis groups, and the nodes for a bias or a norm in the "gmn" style."""


MAX_PADDING = 8
"""How many times more entries than scalars the edges of the "neural_graphs" style may hold."""


@dataclass(frozen=True)
class Place:
    """One block, and which of its atomic axes make its target neuron, its source neuron and its taps."""

    spec: ParameterSpec
    block: Block
    target: tuple[int, ...]
    source: tuple[int, ...]
    taps: tuple[int, ...]

    @property
    def is_edge(self) -> bool:
        return len(self.spec.shape) > 1


def neuron(graph: GraphSpec, segment: Segment) -> Segment:
    """The atomic axes of a segment that make one neuron: the permutable ones, or all where none is.

    A linear layer behind a flatten reads (channel, position): its neuron is the channel, position is a tap.
    """
    return tuple(g for g in segment if graph.groups[g].permutable) or segment


def axes_style(graph: GraphSpec) -> dict[str, object]:
    """One node per element of each group; one edge per scalar, further atomic axes in `edge_tap_index`."""
    nodes, places = _Nodes(graph), neuron_places(graph, atoms=1)
    for group in graph.groups:
        nodes.first(("group", group.id), group.size, group.kind)

    def atom(place: Place, positions: tuple[int, ...]) -> Tensor:
        node = nodes.keys[("group", place.block.groups[positions[0]])] if positions else 0
        return node + _count(place.block, positions)

    def tap(k: int) -> Tensor:
        return _column(graph, places, lambda place: atom(place, place.taps[k : k + 1]))

    depth = max((len(place.taps) for place in places), default=0)
    tap_index = torch.stack([tap(k) for k in range(depth)]) if depth else torch.empty(0, graph.numel).long()
    source = _column(graph, places, lambda place: atom(place, place.source))
    target = _column(graph, places, lambda place: atom(place, place.target))
    kind, parameter, edge = _kinds(graph, places), _parameters(graph, places), _edges(graph, places)
    return {
        "num_nodes": nodes.count,
        "node_type": nodes.types(),
        "node_group": torch.cat([torch.tensor([-1]), *[torch.full((g.size,), g.id) for g in graph.groups]]),
        "edge_index": torch.stack([source, target])[:, edge],
        "edge_tap_index": tap_index[:, edge],
        "edge_type": kind[edge],
        "edge_parameter": parameter[edge],
        "edge_scalar": edge.nonzero().squeeze(1),
        "node_index": target[~edge],
        "node_tap_index": tap_index[:, ~edge],
        "node_attr_type": kind[~edge],
        "node_attr_parameter": parameter[~edge],
        "node_scalar": (~edge).nonzero().squeeze(1),
    }


def neural_graphs_style(graph: GraphSpec) -> dict[str, object]:
    """One edge per pair of neurons and block, taps in slots; biases and scales in slots of nodes.

    Where padding would outgrow the scalars (`MAX_PADDING`), pairs with many taps get parallel edges.
    """
    nodes, places = _Nodes(graph), neuron_places(graph)
    source = _column(graph, places, lambda place: nodes.of(place, place.source))
    target = _column(graph, places, lambda place: nodes.of(place, place.target))
    kind, parameter, edge = _kinds(graph, places), _parameters(graph, places), _edges(graph, places)
    row, slot, rows = _pairs(graph, places)
    pairs = torch.empty(4, rows, dtype=torch.long)
    pairs[:, row[edge]] = torch.stack([source, target, kind, parameter])[:, edge]
    node_scalar = _in_slots(target[~edge], _rank(target[~edge]), (~edge).nonzero().squeeze(1), nodes.count)
    return {
        "num_nodes": nodes.count,
        "node_type": nodes.types(),
        "edge_index": pairs[:2],
        "edge_type": pairs[2],
        "edge_parameter": pairs[3],
        "edge_scalar": _in_slots(row[edge], slot[edge], edge.nonzero().squeeze(1), rows),
        "node_scalar": node_scalar,
        "x_type": torch.where(node_scalar >= 0, kind[node_scalar.clamp(min=0)], -1),
    }


def gmn_style(graph: GraphSpec) -> dict[str, object]:
    """One edge per scalar; those of a parameter with fewer than two axes come from a node of its own."""
    nodes, places = _Nodes(graph), neuron_places(graph)

    def source(place: Place) -> Tensor:
        if place.is_edge:
            return nodes.of(place, place.source)
        kind = "norm" if place.block.kind in ("scale", "shift") else "bias"
        return torch.tensor(nodes.first(("parameter", place.spec.name, place.block.kind), 1, kind))

    target = _column(graph, places, lambda place: nodes.of(place, place.target))
    return {
        "edge_index": torch.stack([_column(graph, places, source), target]),
        "edge_type": _kinds(graph, places),
        "edge_parameter": _parameters(graph, places),
        "edge_tap": _column(graph, places, lambda place: _count(place.block, place.taps)),
        "edge_scalar": torch.arange(graph.numel),
        "num_nodes": nodes.count,
        "node_type": nodes.types(),
    }


STYLES: dict[str, Callable[[GraphSpec], dict[str, object]]] = {
    "axes": axes_style,
    "neural_graphs": neural_graphs_style,
    "gmn": gmn_style,
}


class _Nodes:
    """Hands out nodes on first sight of their neuron axis; node 0 is the constant 1."""

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self.keys: dict[tuple[object, ...], int] = {}
        self.count = 1
        self._kinds = [("unit", 1)]

    def first(self, key: tuple[object, ...], size: int, kind: str) -> int:
        """The first of the `size` nodes of `key`."""
        if key not in self.keys:
            self.keys[key] = self.count
            self._kinds.append((kind if kind in NODE_KINDS else "other", size))
            self.count += size
        return self.keys[key]

    def of(self, place: Place, positions: tuple[int, ...]) -> Tensor:
        """The node of each scalar of a block along the atomic axes of one neuron; node 0 for no axis."""
        if not positions:
            return torch.tensor(0)
        groups = tuple(place.block.groups[p] for p in positions)
        first = self.first(
            ("neuron", *groups), _size(place.block, positions), self.graph.groups[groups[0]].kind
        )
        return first + _count(place.block, positions)

    def types(self) -> Tensor:
        """(N,) number of each node's kind in `NODE_KINDS`."""
        return torch.cat([torch.full((size,), NODE_KINDS.index(kind)) for kind, size in self._kinds])


def neuron_places(graph: GraphSpec, atoms: int | None = None) -> list[Place]:
    """All blocks; a neuron keeps at most `atoms` of its atomic axes (None: all), the others become taps."""
    blocks, places = iter(graph.blocks), []
    for spec in graph.parameters.values():
        for segments in itertools.product(*spec.axes):
            target, source = (_neuron_positions(graph, spec, segments, role, atoms) for role in ("out", "in"))
            taps = tuple(i for i in range(sum(map(len, segments))) if i not in target + source)
            places.append(Place(spec, next(blocks), target or source, source or target, taps))
    return places


def _neuron_positions(
    graph: GraphSpec, spec: ParameterSpec, segments: tuple[Segment, ...], role: str, atoms: int | None
) -> tuple[int, ...]:
    """Positions, among all atomic axes of the block, of the neuron on the first axis that has this role."""
    start = 0
    for segment, axis_role in zip(segments, spec.roles, strict=True):
        if axis_role == role and segment:
            keep = neuron(graph, segment)[:atoms]
            return tuple(start + i for i, group in enumerate(segment) if group in keep)
        start += len(segment)
    return ()


def _count(block: Block, positions: tuple[int, ...]) -> Tensor:
    """Row-major number of each scalar along some atomic axes of a block; broadcasts to its shape."""
    number = torch.zeros([1] * len(block.shape), dtype=torch.long)
    for position in positions:
        view = [-1 if axis == position else 1 for axis in range(len(block.shape))]
        number = number * block.shape[position] + torch.arange(block.shape[position]).reshape(view)
    return number


def _column(graph: GraphSpec, places: list[Place], number: Callable[[Place], Tensor]) -> Tensor:
    """One number for each scalar of each block -> (P,), in the order of `graph.flatten`."""
    wholes = {name: torch.empty(spec.shape, dtype=torch.long) for name, spec in graph.parameters.items()}
    for place in places:
        part = wholes[place.spec.name][place.block.slices]
        part.copy_(number(place).expand(place.block.shape).reshape(part.shape))
    return graph.flatten(wholes)


def _kinds(graph: GraphSpec, places: list[Place]) -> Tensor:
    return _column(graph, places, lambda place: torch.tensor(PARAMETER_KINDS.index(place.block.kind)))


def _parameters(graph: GraphSpec, places: list[Place]) -> Tensor:
    numbers = {name: torch.tensor(number) for number, name in enumerate(graph.parameters)}
    return _column(graph, places, lambda place: numbers[place.spec.name])


def _edges(graph: GraphSpec, places: list[Place]) -> Tensor:
    return _column(graph, places, lambda place: torch.tensor(int(place.is_edge))).bool()


def _pairs(graph: GraphSpec, places: list[Place]) -> tuple[Tensor, Tensor, int]:
    """The edge (P,) and the slot (P,) of each scalar when the taps of a pair are folded, and the number of edges."""
    ends = [tuple(dict.fromkeys(place.target + place.source)) for place in places]
    pairs = [_size(place.block, end) * place.is_edge for place, end in zip(places, ends, strict=True)]
    taps = [_size(place.block, place.taps) for place in places]
    width = _fold_width(pairs, taps)
    first = list(itertools.accumulate([0, *(p * -(-t // width) for p, t in zip(pairs, taps, strict=True))]))
    number = {id(place): k for k, place in enumerate(places)}  # slices have no hash before Python 3.12

    def row(place: Place) -> Tensor:
        k = number[id(place)]
        chunk = _count(place.block, place.taps) // width
        return first[k] + _count(place.block, ends[k]) * -(-taps[k] // width) + chunk

    slot = _column(graph, places, lambda place: _count(place.block, place.taps) % width)
    return _column(graph, places, row), slot, first[-1]


def _fold_width(pairs: list[int], taps: list[int]) -> int:
    """The most taps to fold into one edge so that no more than `MAX_PADDING` times the scalars are stored.

    A few kernels with many taps beside large dense layers would otherwise pad every edge to their width.
    """
    scalars = sum(p * t for p, t in zip(pairs, taps, strict=True))

    def stored(width: int) -> int:
        return width * sum(p * -(-t // width) for p, t in zip(pairs, taps, strict=True))

    widths = sorted({t for p, t in zip(pairs, taps, strict=True) if p}, reverse=True)
    return next((width for width in widths if stored(width) <= MAX_PADDING * scalars), 1)


def _size(block: Block, positions: tuple[int, ...]) -> int:
    return math.prod(block.shape[p] for p in positions)


def _rank(key: Tensor) -> Tensor:
    """How many earlier entries have the same key."""
    order = key.argsort(stable=True)  # in any other order, "earlier" would differ from run to run
    _, counts = key.unique(return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(key).index_copy(0, order, torch.arange(len(key)) - first)


def _in_slots(row: Tensor, slot: Tensor, scalar: Tensor, rows: int) -> Tensor:
    """Scalars laid out in (rows, slots), -1 where there is none."""
    slots = int(slot.max()) + 1 if len(slot) else 1
    return torch.full((rows, slots), -1).index_put((row, slot), scalar)
