"""Between nodes and edges: broadcasting and reductions, dense along axes or by edge list; both give the same.

Every edge has two ends, its target and its source. Shapes: N nodes, E edges, D channels; (D, networks, N) and
(D, networks, E) if there are several networks side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lopt.graph.made_once import made_once
from lopt.metanets.published.wiring import Wire, Wiring

End = Literal["target", "source"]
Execution = Literal["dense", "edges"]
ENDS: tuple[End, End] = ("target", "source")


class Exchange(ABC):
    """Moves values between the nodes of a wiring and its edges."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.wires = wiring.edges

    def prepare(self) -> None:
        """Derive what is needed ahead of the first step."""
        for end in ENDS:
            degrees(self.wiring, end)

    @abstractmethod
    def spread(self, nodes: Tensor, end: End) -> Tensor:
        """(D, N) -> (D, E): the value of the node at one end of each edge."""

    def sum_of_ends(self, targets: Tensor, sources: Tensor) -> Tensor:
        """(D, N) twice -> (D, E): the first value of its target and the second of its source, of each edge."""
        return self.spread(targets, "target") + self.spread(sources, "source")

    @abstractmethod
    def total(self, edges: Tensor, end: End) -> Tensor:
        """(D, E) -> (D, N): the sum over the edges that have the node at this end; 0 for none."""

    @abstractmethod
    def largest(self, edges: Tensor, end: End) -> Tensor:
        """(D, E) -> (D, N): the maximum over the edges that have the node at this end; -inf for none."""

    def smallest(self, edges: Tensor, end: End) -> Tensor:
        """As `largest`, the minimum; inf for none."""
        return -self.largest(-edges, end)

    def degree(self, end: End, like: Tensor) -> Tensor:
        """(N,) edges that have the node at this end."""
        return degrees(self.wiring, end).to(like)

    def mean(self, edges: Tensor, end: End) -> Tensor:
        """As `total`, divided by the number of edges."""
        return self.total(edges, end) / self.degree(end, edges).clamp(min=1)


class DenseExchange(Exchange):
    """Views each block as (targets, sources, parallel): broadcasts and reductions along axes, no index."""

    def spread(self, nodes: Tensor, end: End) -> Tensor:
        parts = [nodes.new_zeros(*nodes.shape[:-1], 0)]  # a network of biases alone has no edge to join
        for wire in self.wires:
            value = at_end(nodes[..., nodes_at(wire, end)], end)
            parts.append(value.expand(*nodes.shape[:-1], *wire.grid).flatten(-3))
        return torch.cat(parts, -1)

    def sum_of_ends(self, targets: Tensor, sources: Tensor) -> Tensor:
        parts = [targets.new_zeros(*targets.shape[:-1], 0)]
        for wire in self.wires:
            target = at_end(targets[..., nodes_at(wire, "target")], "target")
            source = at_end(sources[..., nodes_at(wire, "source")], "source")
            parts.append((target + source).expand(*targets.shape[:-1], *wire.grid).flatten(-3))
        return torch.cat(parts, -1)

    def total(self, edges: Tensor, end: End) -> Tensor:
        return self._reduced(edges, end, torch.sum, torch.add, 0.0)

    def largest(self, edges: Tensor, end: End) -> Tensor:
        return self._reduced(edges, end, torch.amax, torch.maximum, -math.inf)

    def smallest(self, edges: Tensor, end: End) -> Tensor:
        return self._reduced(edges, end, torch.amin, torch.minimum, math.inf)

    def _reduced(
        self,
        edges: Tensor,
        end: End,
        along: Callable[[Tensor, tuple[int, int]], Tensor],
        join: Callable[[Tensor, Tensor], Tensor],
        empty: float,
    ) -> Tensor:
        axes = (-2, -1) if end == "target" else (-3, -1)
        inbox: dict[int, Tensor] = {}
        for wire, part in zip(self.wires, edges.split([wire.size for wire in self.wires], -1), strict=True):
            value, first = along(part.unflatten(-1, wire.grid), axes), nodes_at(wire, end).start
            inbox[first] = join(inbox[first], value) if first in inbox else value
        nothing = edges.new_full((*edges.shape[:-1], self.wiring.nodes), empty)
        return torch.cat([inbox.get(s.start, nothing[..., s]) for s, _ in self.wiring.node_sets], -1)


class IndexedExchange(Exchange):
    """Gathers and scatters by the edge list, as message-passing libraries do: the readable reference."""

    def prepare(self) -> None:
        super().prepare()
        edge_list(self.wiring)

    def spread(self, nodes: Tensor, end: End) -> Tensor:
        return nodes[..., self._index(end, nodes)]

    def total(self, edges: Tensor, end: End) -> Tensor:
        nothing = edges.new_zeros(*edges.shape[:-1], self.wiring.nodes)
        return nothing.index_add(-1, self._index(end, edges), edges)

    def largest(self, edges: Tensor, end: End) -> Tensor:
        empty = edges.new_full((*edges.shape[:-1], self.wiring.nodes), -math.inf)
        index = self._index(end, edges).expand_as(edges)
        return empty.scatter_reduce(-1, index, edges, "amax")

    def _index(self, end: End, like: Tensor) -> Tensor:
        return edge_list(self.wiring)[ENDS.index(end)].to(like.device)


EXCHANGES: dict[Execution, type[Exchange]] = {"dense": DenseExchange, "edges": IndexedExchange}


def exchange_of(wiring: Wiring, execution: Execution) -> Exchange:
    """The exchange of a wiring, dense or by edge list."""
    return EXCHANGES[execution](wiring)


def at_end(nodes: Tensor, end: End) -> Tensor:
    """(..., n) -> (..., n, 1, 1) for targets, (..., 1, n, 1) for sources: to be repeated along a wire's grid."""
    return nodes[..., :, None, None] if end == "target" else nodes[..., None, :, None]


def nodes_at(wire: Wire, end: End) -> slice:
    """The nodes at one end of a wire."""
    nodes = wire.target if end == "target" else wire.source
    assert nodes is not None, "attributes are no edges"
    return nodes


@made_once
def edge_list(wiring: Wiring) -> Tensor:
    """(2, E): target and source node of every edge."""
    columns = [torch.empty(2, 0, dtype=torch.long)]
    for wire in wiring.edges:
        targets = torch.arange(wire.target.start, wire.target.stop)[:, None, None].expand(wire.grid)
        source = nodes_at(wire, "source")
        sources = torch.arange(source.start, source.stop)[None, :, None].expand(wire.grid)
        columns.append(torch.stack([targets.reshape(-1), sources.reshape(-1)]))
    return torch.cat(columns, -1)


@made_once
def degrees(wiring: Wiring, end: End) -> Tensor:
    """(N,) edges at each node."""
    count = torch.zeros(wiring.nodes)
    for wire in wiring.edges:
        nodes = nodes_at(wire, end)
        count[nodes] += wire.size // (nodes.stop - nodes.start)
    return count
