"""ScaleGMN for signs: a reader to which a neuron of an odd function is the same with its sign turned.

Sines and tanh are odd: turned weights into such a neuron, its bias and the weights out of it leave the function as it
is (Kalogeropoulos et al. 2024, arXiv 2406.10685). Where `canonical` makes of all turned networks one, here what is said
of a neuron turns with it. Shapes: B networks, N nodes, E edges, D width, K features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.metanets.layers import Pointwise
from lopt.metanets.published.exchange import ENDS, DenseExchange, Exchange
from lopt.metanets.published.wiring import Wiring, wiring_of
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.readers import Head, UnwoundReader
from lopt.weight_space.sirens import SirenShape

ODD = ("sin", "tanh")


class ScaleGmn(UnwoundReader):
    """With signs s_i of neurons, x_i turns with s_i and e_ij, from neuron j to neuron i, with s_i s_j. Per layer:

        m_i   = [mean of (A x_j) (B e_ij) over j,  mean of (C x_k) (D e_ki) over k]
        x_i'  = norm(x_i + odd([x_i, m_i])),   e_ij' = norm(e_ij + odd([e_ij, (F x_i') (G x_j')]))
        odd(z) = (W z) even(z),   even(z) = V (relu(U z + b) + relu(-U z + b))

    Inputs and outputs stay in place and have no sign: each has an embedding. A head reads the means of even(x) over
    hidden layers and of even(e) over matrices, and the outputs' x. Of SIRENs what `unwound` leaves is read.
    Raises `GraphError` for a network with neurons of no odd function, or with other parameters than weights and biases.
    """

    def __init__(
        self,
        graph: ParameterGraph,
        networks: NetworkSet,
        outputs: int,
        siren: SirenShape | None = None,
        width: int = 16,
        layers: int = 3,
        frequencies: int = 4,
    ) -> None:
        super().__init__(graph, networks, siren)
        self.wiring = wiring_of(graph, 1)
        fixed = _fixed_sets(graph, self.wiring)
        self.hidden = [
            nodes for (nodes, _), stays in zip(self.wiring.node_sets, fixed, strict=True) if not stays
        ]
        self.frequencies = nn.Parameter(torch.randn(frequencies))
        self.encode = nn.ModuleList(Pointwise(1 + frequencies, width, bias=False) for _ in self.wiring.wires)
        self.in_place: Tensor
        self.register_buffer("in_place", torch.ones(self.wiring.nodes))
        for nodes in self.hidden:
            self.in_place[nodes] = 0
        self.places = nn.Parameter(torch.randn(width, self.wiring.nodes))
        self.layers = nn.ModuleList(ScaleGmnLayer(width) for _ in range(layers))
        self.even = nn.ModuleDict({"nodes": Even(width, width), "edges": Even(width, width)})
        self.answering = [
            nodes for (nodes, _), groups in zip(self.wiring.node_sets, self.wiring.node_groups, strict=True)
            if any(graph.groups[group].kind == "output" for group in groups)
        ]  # fmt: skip
        pooled = len(self.hidden) + len(self.wiring.edges) + sum(n.stop - n.start for n in self.answering)
        self.head = Head(pooled * width, 4 * width, outputs)

    def forward(self, params: Tensors) -> Tensor:
        exchange = DenseExchange(self.wiring)
        nodes, edges = self._encoded(self.scalars(params)[None])
        for layer in self.layers:
            nodes, edges = layer(exchange, nodes, edges)
        even, of_wires = self.even["nodes"](nodes), self._of_edges(self.even["edges"](edges))
        pooled = [even[..., hidden].mean(-1) for hidden in self.hidden] + [e.mean(-1) for e in of_wires]
        pooled += [x for own in self.answering for x in nodes[..., own].unbind(-1)]
        found: Tensor = self.head(torch.cat(pooled).T)
        return found

    def _encoded(self, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """(1, B, P) -> (D, B, N), (D, B, E): odd functions of biases and weights, embeddings of what stays in place."""
        angles = 2 * math.pi * self.frequencies[:, None, None] * scalars
        parts = self.wiring.parts(torch.cat([scalars, angles.sin()]))
        said = {w.number: self.encode[w.number](w.fold(parts[w.number])[:, 0]) for w in self.wiring.wires}
        biases = {
            w.target.start: said[w.number].unflatten(-1, w.grid).mean((-2, -1))
            for w in self.wiring.attributes
        }
        edges = torch.cat([said[wire.number] for wire in self.wiring.edges], -1)
        nothing = edges.new_zeros(*edges.shape[:2], self.wiring.nodes)
        nodes = [biases.get(nodes.start, nothing[..., nodes]) for nodes, _ in self.wiring.node_sets]
        return torch.cat(nodes, -1) + (self.places * self.in_place)[:, None], edges

    def _of_edges(self, edges: Tensor) -> tuple[Tensor, ...]:
        return edges.split([wire.size for wire in self.wiring.edges], -1)


class ScaleGmnLayer(nn.Module):
    """One round of messages, see `ScaleGmn`: nodes (D, B, N), edges (D, B, E), in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heard = nn.ModuleDict({end: Pointwise(width, width, bias=False) for end in ENDS})
        self.along = nn.ModuleDict({end: Pointwise(width, width, bias=False) for end in ENDS})
        self.ends = nn.ModuleDict({end: Pointwise(width, width, bias=False) for end in ENDS})
        self.node, self.edge = Odd(3 * width, width), Odd(2 * width, width)

    def forward(self, exchange: Exchange, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        received = [
            exchange.mean(exchange.spread(self.heard[end](nodes), other) * self.along[end](edges), end)
            for end, other in zip(ENDS, reversed(ENDS), strict=True)
        ]
        nodes = normed(nodes + self.node(torch.cat([nodes, *received])))
        target, source = (exchange.spread(self.ends[end](nodes), end) for end in ENDS)
        return nodes, normed(edges + self.edge(torch.cat([edges, target * source])))


class Even(nn.Module):
    """V (relu(U z + b) + relu(-U z + b)): the same for z and -z."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = Pointwise(inputs, outputs, bias=False), Pointwise(outputs, outputs)
        self.shift = nn.Parameter(0.5 * torch.randn(outputs))

    def forward(self, z: Tensor) -> Tensor:
        u, b = self.inner(z), self.shift[:, None, None]
        found: Tensor = self.outer(relu(b + u) + relu(b - u))
        return found


class Odd(nn.Module):
    """(W z) even(z): turns with z."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.even = Pointwise(inputs, outputs, bias=False), Even(inputs, outputs)

    def forward(self, z: Tensor) -> Tensor:
        found: Tensor = self.linear(z) * self.even(z)
        return found


def normed(x: Tensor) -> Tensor:
    """Over the rms of its channels, which leaves signs alone."""
    return x * torch.rsqrt(x.square().mean(0, keepdim=True) + 1e-5)


def _fixed_sets(graph: ParameterGraph, wiring: Wiring) -> list[bool]:
    """Of each set of nodes whether it stays in place."""
    for wire in wiring.attributes:
        if wire.block.kind != "bias":
            raise GraphError(
                f"scale_gmn: expected weights and biases, found {wire.block.parameter!r} of {wire.block.kind}"
            )
    fixed = [not any(graph.groups[group].permutable for group in groups) for groups in wiring.node_groups]
    for groups, stays in zip(wiring.node_groups, fixed, strict=True):
        found = {graph.groups[group].activation for group in groups}
        if not stays and not found <= set(ODD):
            raise GraphError(
                f"scale_gmn: expected hidden neurons of {' or '.join(ODD)}, found {sorted(map(str, found))}"
            )
    return fixed
