"""The parameter graph as neurons and edges, for metanets whose papers are written that way.

A block is one bipartite graph from the neurons of its in axis to those of its out axis. Its other axes (kernel
taps, positions behind a flatten) are *folded*: up to `slots` taps are features of one edge, as in Neural Graphs
(Kofinas et al. 2024); more become parallel edges, and with slots = 1 each tap is an edge of its own, as in GMN
(Lim et al. 2024). Taps that may be permuted are never folded. A bias, a scale or a depthwise filter has one
neuron axis only: it is an *attribute* of its neurons, or, as in GMN, an edge from a node of its own.

A neuron is an element of a product of axis groups (head x head size); all blocks with the same product share it.

Shapes: P scalars, B parameters (tensors), N nodes, E edges, A attributes, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lopt.errors import GraphError
from lopt.graph import Block, ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.pyg_styles import NODE_KINDS, Place, neuron_places
from lopt.graph.spec import PARAMETER_KINDS, Segment
from lopt.metanets.layers import affine_of, product
from lopt.metanets.plan import Plan, plan_of

SLOTS = 9
"""Taps that one edge holds by default: a 3 x 3 kernel."""


@dataclass(frozen=True, eq=False)
class Wire:
    """One block as targets x sources x parallel edges (or attributes, with one source), each of `slots` taps."""

    block: Block
    number: int
    """Place of the block among those of the graph."""
    owner: int
    """Index of the parameter."""
    kind: int
    """Index of the block's kind in `PARAMETER_KINDS`."""
    order: tuple[int, ...]
    """The block's atomic axes as target, source, permutable taps, fixed taps."""
    taps: int
    """Fixed taps, all together."""
    slots: int
    """Fixed taps in one edge; the last edge of a pair of neurons may be padded."""
    grid: tuple[int, int, int]
    """Targets, sources, parallel edges."""
    target: slice
    """The nodes of the out axis."""
    source: slice | None
    """The nodes of the in axis; None for an attribute."""

    @property
    def size(self) -> int:
        """Edges or attributes."""
        return math.prod(self.grid)

    def fold(self, scalars: Tensor) -> Tensor:
        """(F, ..., scalars of the block) -> (F, slots, ..., size)."""
        lead, count = scalars.shape[:-1], scalars.dim() - 1
        x = scalars.reshape(*lead, *self.block.shape)
        x = x.permute(*range(count), *(count + axis for axis in self.order)).reshape(*lead, -1, self.taps)
        chunks = -(-self.taps // self.slots)
        x = pad(x, (0, chunks * self.slots - self.taps)) if chunks * self.slots > self.taps else x
        return x.reshape(*lead, -1, chunks, self.slots).movedim(-1, 1).flatten(-2)

    def unfold(self, folded: Tensor) -> Tensor:
        """(R, slots, ..., size) -> (R, ..., scalars of the block); the inverse of `fold`."""
        x = folded.movedim(1, -1)
        lead, count = x.shape[:-2], x.dim() - 2
        chunks = -(-self.taps // self.slots)
        x = x.reshape(*lead, -1, chunks * self.slots)[..., : self.taps]  # no padding of the last edge
        x = x.reshape(*lead, *(self.block.shape[axis] for axis in self.order))
        back = [count + self.order.index(axis) for axis in range(len(self.order))]
        return x.permute(*range(count), *back).reshape(*lead, -1)


@dataclass(frozen=True, eq=False)
class Wiring:
    """All wires of a graph, in the order of its blocks, and its nodes."""

    plan: Plan
    wires: tuple[Wire, ...]
    node_sets: tuple[tuple[slice, int], ...]
    """Nodes and their kind in `NODE_KINDS`, one set after another."""
    node_groups: tuple[Segment, ...]
    """The axis groups whose product each set of nodes is; none for a node of its own."""

    @property
    def edges(self) -> list[Wire]:
        return [wire for wire in self.wires if wire.source is not None]

    @property
    def attributes(self) -> list[Wire]:
        return [wire for wire in self.wires if wire.source is None]

    @property
    def nodes(self) -> int:
        return self.node_sets[-1][0].stop if self.node_sets else 0

    def parts(self, flat: Tensor) -> Sequence[Tensor]:
        """(F, ..., P) in the order of `graph.flatten` -> (F, ..., scalars of its block) of each wire."""
        scalars = flat if self.plan.order is None else flat[..., self.plan.order.to(flat.device)]
        return scalars.split(self.plan.sizes, -1)

    def join(self, parts: Mapping[int, Tensor]) -> Tensor:
        """The inverse of `parts`, from the wires' numbers and values in any order."""
        scalars = torch.cat([parts[wire.number] for wire in self.wires], -1)
        return scalars if self.plan.inverse is None else scalars[..., self.plan.inverse.to(scalars.device)]


@made_once
def wiring_of(graph: ParameterGraph, slots: int = SLOTS, attributes: bool = True) -> Wiring:
    """The wiring of a graph, made once. Without `attributes`, one-axis parameters are edges from nodes of their own."""
    nodes = _NodeSets(graph)
    owners = {name: index for index, name in enumerate(graph.parameters)}
    places = [place for place in neuron_places(graph) if math.prod(place.block.shape)]
    wires = [
        _wire(graph, place, nodes, slots, attributes, number, owners[place.spec.name])
        for number, place in enumerate(places)
    ]
    return Wiring(plan_of(graph), tuple(wires), tuple(nodes.sets.values()), nodes.groups())


def _wire(
    graph: ParameterGraph,
    place: Place,
    nodes: _NodeSets,
    slots: int,
    attributes: bool,
    number: int,
    owner: int,
) -> Wire:
    block = place.block
    two_sided = place.target != place.source
    loose = [axis for axis in place.taps if graph.groups[block.groups[axis]].permutable]
    fixed = [axis for axis in place.taps if axis not in loose]
    ends = (*place.target, *place.source) if two_sided else place.target
    taps = math.prod(block.shape[axis] for axis in fixed)
    folded = min(taps, slots)
    parallel = math.prod(block.shape[axis] for axis in loose) * -(-taps // folded)
    source = nodes.of(block, place.source) if two_sided else None
    if not two_sided and not attributes:
        source = nodes.own(place.spec.name, block.kind)
    sources = math.prod(block.shape[axis] for axis in place.source) if two_sided else 1
    return Wire(
        block=block,
        number=number,
        owner=owner,
        kind=PARAMETER_KINDS.index(block.kind),
        order=(*ends, *loose, *fixed),
        taps=taps,
        slots=folded,
        grid=(math.prod(block.shape[axis] for axis in place.target), sources, parallel),
        target=nodes.of(block, place.target),
        source=source,
    )


class _NodeSets:
    """Hands out nodes on first sight of their neurons."""

    def __init__(self, graph: ParameterGraph) -> None:
        self.graph = graph
        self.sets: dict[tuple[object, ...], tuple[slice, int]] = {}
        self.count = 0

    def of(self, block: Block, axes: tuple[int, ...]) -> slice:
        """The neurons along some axes of a block; one node for all that has none."""
        groups = tuple(block.groups[axis] for axis in axes)
        kind = self.graph.groups[groups[0]].kind if groups else "unit"
        return self._get(groups, math.prod(block.shape[axis] for axis in axes), kind)

    def own(self, parameter: str, kind: str) -> slice:
        """The node of a one-axis parameter."""
        return self._get((parameter, kind), 1, "norm" if kind in ("scale", "shift") else "bias")

    def groups(self) -> tuple[Segment, ...]:
        """The axis groups of every set, of which a parameter's own node has none."""
        return tuple(tuple(g for g in key if isinstance(g, int)) for key in self.sets)

    def _get(self, key: tuple[object, ...], size: int, kind: str) -> slice:
        if key not in self.sets:
            number = NODE_KINDS.index(kind if kind in NODE_KINDS else "other")
            self.sets[key] = (slice(self.count, self.count + size), number)
            self.count += size
        return self.sets[key][0]


def copied(wires: Iterable[Wire], values: Tensor) -> dict[int, Tensor]:
    """(D, ..., edges) -> (D, ..., scalars of the block) by number: all scalars of an edge have what it has."""
    wires = list(wires)
    parts = values.split([wire.size for wire in wires], -1) if wires else ()
    return {
        wire.number: wire.unfold(part[:, None].expand(-1, wire.slots, *part.shape[1:]))
        for wire, part in zip(wires, parts, strict=True)
    }


class WireEncoder(nn.Module):
    """Folded features, and what is known of the tensor, to hidden channels.

    (F, ..., P), (C, ..., B) -> (D, ..., edges):
    x = sum over slots s of W_s f_s + W_c c + kind, the same for all wires.
    """

    def __init__(self, features: int, context: int, width: int, slots: int = SLOTS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, features, slots) / math.sqrt(features))
        self.context = affine_of(context, width)
        self.fan_in = features * slots
        self.kinds = nn.Parameter(0.1 * torch.randn(len(PARAMETER_KINDS), width))

    def forward(self, wires: Iterable[Wire], parts: Sequence[Tensor], context: Tensor) -> Tensor:
        known = self.context(context.movedim(0, -1))
        columns = [known.new_zeros(known.shape[-1], *known.shape[:-2], 0)]
        for wire in wires:
            folded = wire.fold(parts[wire.number])
            weight = self.weight[:, :, : wire.slots].reshape(self.weight.shape[0], -1)
            constant = (known[..., wire.owner, :] + self.kinds[wire.kind]).movedim(-1, 0)
            columns.append(product(weight, folded.flatten(0, 1)) + constant[..., None])
        return torch.cat(columns, -1)


class WireHead(nn.Module):
    """Hidden channels of edges to raw outputs of their scalars, zero at first.

    (D, ..., edges) -> (R, ..., block) by number.
    """

    def __init__(self, width: int, outputs: int, slots: int = SLOTS) -> None:
        super().__init__()
        self.fan_in = width
        self.weight = nn.Parameter(torch.zeros(outputs, slots, width))
        self.bias = nn.Parameter(torch.zeros(outputs, slots))

    def forward(self, wires: list[Wire], hidden: Tensor) -> dict[int, Tensor]:
        outputs, _, width = self.weight.shape
        raw = {}
        for wire, x in zip(wires, hidden.split([wire.size for wire in wires], -1), strict=True):
            weight = self.weight[:, : wire.slots].reshape(-1, width)
            bias = self.bias[:, : wire.slots].reshape(-1, *[1] * (x.dim() - 1))
            raw[wire.number] = wire.unfold((product(weight, x) + bias).unflatten(0, (outputs, wire.slots)))
        return raw


def probes_of_nodes(wiring: Wiring, probes: Tensor) -> Tensor:
    """(M, ..., N) -> (M, ..., nodes of the wiring): a neuron of several groups (head x head size) has their sum."""
    columns = [probes.new_zeros(*probes.shape[:-1], 0)]
    for groups in wiring.node_groups:
        value = probes.new_zeros(*probes.shape[:-1], 1)
        for group in groups:
            own = probes[..., wiring.plan.neurons_of(group)]
            value = (value[..., :, None] + own[..., None, :]).flatten(-2)
        columns.append(value)
    return torch.cat(columns, -1)


def check_probes(wiring: Wiring, wanted: int, probes: Tensor | None) -> None:
    """Raise a `GraphError` unless a metanet that reads `wanted` probe features was given them."""
    found = None if probes is None else (probes.shape[0], probes.shape[-1])
    expected = (wanted, wiring.plan.neurons) if wanted else None
    if found != expected:
        raise GraphError(
            f"metanet: with probes={wanted} expected probe features of shape {expected}, found {found}: "
            "lopt.weight_space.probes.probe makes them from as many inputs"
        )
