"""NG-GNN: the message-passing network of Neural Graphs (Kofinas et al. 2024, arXiv 2403.12143, section 3.2).

PNA (Corso et al. 2020, arXiv 2004.05718) on the graph of neurons, with messages that edges modulate (FiLM, Perez
et al. 2018) and edges that are updated. Shapes: P scalars, B tensors, N nodes, E edges, A attributes, D width,
F features, C context values, R raw outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.graph.pyg_styles import NODE_KINDS
from lopt.metanets.base import Layers, LayersOrZero, Metanet, Size, SizeOrZero
from lopt.metanets.layers import ChannelNorm, Pointwise, PointwiseMlp, ScalarNet
from lopt.metanets.published.exchange import ENDS, End, Exchange, Execution, exchange_of
from lopt.metanets.published.positions import position_codes
from lopt.metanets.published.wiring import (
    Wire,
    WireEncoder,
    WireHead,
    Wiring,
    check_probes,
    copied,
    probes_of_nodes,
    wiring_of,
)

MEAN_LOG_DEGREE = math.log(1 + 32)
"""PNA's delta, the mean of log(degree + 1) over the training graphs: here that of layers 32 wide."""

SPREAD_FLOOR = 1e-5
"""Added to variances under the root, as in PNA's reference."""


class NeuralGraph(Metanet):
    """What the metanets of Neural Graphs share: neurons and edges encoded, rounds of messages, heads."""

    side_by_side = True
    execution: Execution
    nodes: NodeEncoder
    encode: WireEncoder
    layers: nn.ModuleList
    heads: NeuralGraphHeads | ScalarHeads

    def prepare(self, graph: ParameterGraph) -> None:
        exchange_of(wiring_of(graph), self.execution).prepare()
        self.nodes.prepare(wiring_of(graph))

    def forward(
        self,
        graph: ParameterGraph,
        features: Tensor,
        context: Tensor,
        memory: Tensor | None = None,
        probes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As in `Metanet`, with probes (M, N) from `lopt.weight_space.probes` for one made with probes=M.

        Several networks side by side are features (F, networks, P), context (C, networks, B) and probes
        (M, networks, N) -> (R, networks, P): the same as `torch.vmap` gives, with matrix products that need no copies.
        """
        wiring = wiring_of(graph)
        exchange = exchange_of(wiring, self.execution)
        parts = wiring.parts(features)
        nodes, attributes = self.nodes(wiring, parts, context, probes)
        edges = self.encode(wiring.edges, parts, context)
        for layer in self.layers:
            nodes, edges = layer(exchange, nodes, edges)
        if isinstance(self.heads, ScalarHeads):
            return self.heads(wiring, nodes, edges, features), None
        return self.heads(wiring, nodes, edges, attributes), None


class NgGnn(NeuralGraph):
    """Per layer, for edges e_ij from neuron j to neuron i, neurons h, and each of the two directions:

        m_ij = scale(e_ij) * (W_t h_i + W_s h_j) + shift(e_ij)
        a_i  = [mean, min, max, std of the m_ij at i] x [1, log(degree + 1) / delta]
        h_i' = h_i + relu(norm(U [h_i, a_i forwards, a_i backwards]))
        e_ij' = e_ij + W_2 relu(W_1e e_ij + W_1t h_i' + W_1s h_j')

    Edges hold up to nine kernel taps, neurons their biases and scales. Neurons are told apart by role (input,
    hidden, output...), never by number, so that any width will do. An edge sends its message both ways, each with
    weights of its own; the papers' classifiers of implicit networks send forwards alone.

    execution: "dense" along axes, or "edges" by gather and scatter, which is slower and gives the same.
    probes: M, how many probe features it reads of every neuron (section 3 of the paper; `lopt.weight_space.probes`).
    positions: whether neurons are told where they are: inputs and outputs one by one, hidden ones by layer.
    scalar_layers: hidden layers of a network for each scalar (`ScalarHeads`), as the paper's optimizers have it; 0: raw
        outputs are linear in their edge's hidden channels, so that nine taps have no more between them than those hold.
    edge_norms: whether edges become norm(e_ij'), as they do in `NgT`. Without, only neurons answer within bounds to
        inputs that were never met; in optimizers see `Nfn` for what comes of it.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: Size = 16,
        layers: Layers = 2,
        execution: Execution = "dense",
        probes: SizeOrZero = 0,
        positions: bool = False,
        scalar_layers: LayersOrZero = 0,
        edge_norms: bool = False,
    ) -> None:
        super().__init__()
        self.execution = execution
        self.nodes = NodeEncoder(features, context, width, probes, positions)
        self.encode = WireEncoder(features, context, width)
        self.layers = nn.ModuleList(NgGnnLayer(width, edge_norms) for _ in range(layers))
        self.heads = heads_of(features, width, width, outputs, scalar_layers)


class NodeEncoder(nn.Module):
    """h = role + mean of the neuron's encoded attributes + W p: features (F, P) -> nodes (D, N), attributes (D, A).

    p are the neuron's M probe features, for a metanet that reads any. With `positions`, a code of its place is added.
    """

    def __init__(
        self, features: int, context: int, width: int, probes: int = 0, positions: bool = False
    ) -> None:
        super().__init__()
        self.count, self.width, self.positions = probes, width, positions
        self.attributes = WireEncoder(features, context, width)
        self.roles = nn.Parameter(torch.randn(len(NODE_KINDS), width) / math.sqrt(width))
        self.probes = Pointwise(probes, width, bias=False) if probes else None

    def prepare(self, wiring: Wiring) -> None:
        """Derive what is needed ahead of the first step."""
        if self.positions:
            position_codes(wiring, self.width)

    def forward(
        self, wiring: Wiring, parts: Sequence[Tensor], context: Tensor, probes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        check_probes(wiring, self.count, probes)
        attributes = self.attributes(wiring.attributes, parts, context)
        at_nodes: dict[int, list[Tensor]] = {}
        for wire, value in _of_each(wiring.attributes, attributes):
            at_nodes.setdefault(wire.target.start, []).append(value.unflatten(-1, wire.grid).mean((-2, -1)))
        columns = [attributes[..., :0]]
        for nodes, kind in wiring.node_sets:
            role = self.roles[kind].reshape(-1, *[1] * (attributes.dim() - 1))
            role = role.expand(*attributes.shape[:-1], nodes.stop - nodes.start)
            known = at_nodes.get(nodes.start)
            columns.append(role if known is None else role + torch.stack(known).mean(0))
        encoded = torch.cat(columns, -1)
        if self.probes is not None and probes is not None:
            encoded = encoded + self.probes(probes_of_nodes(wiring, probes.to(encoded)))
        if self.positions:
            codes = position_codes(wiring, self.width).to(encoded)
            encoded = encoded + codes.reshape(len(codes), *[1] * (encoded.dim() - 2), -1)
        return encoded, attributes


def heads_of(
    features: int, node_width: int, edge_width: int, outputs: int, scalar_layers: int
) -> NeuralGraphHeads | ScalarHeads:
    """`ScalarHeads` with so many layers, or without any `NeuralGraphHeads`."""
    if scalar_layers:
        return ScalarHeads(features, node_width, edge_width, outputs, scalar_layers)
    return NeuralGraphHeads(node_width, edge_width, outputs)


class NeuralGraphHeads(nn.Module):
    """raw = W_2 relu(W_1 e) for edges and V_2 relu(V_1 h + V_a a) for attributes a of neurons h: -> (R, P)."""

    def __init__(self, node_width: int, edge_width: int, outputs: int) -> None:
        super().__init__()
        self.edge, self.edge_out = Pointwise(edge_width, edge_width), WireHead(edge_width, outputs)
        self.node, self.node_out = Pointwise(node_width, node_width), WireHead(node_width, outputs)
        self.attribute = Pointwise(node_width, node_width, bias=False)

    def forward(self, wiring: Wiring, nodes: Tensor, edges: Tensor, attributes: Tensor) -> Tensor:
        raw = self.edge_out(wiring.edges, relu(self.edge(edges)))
        at_nodes = self.node(nodes)
        known = [attributes[..., :0]]
        for wire, value in _of_each(wiring.attributes, self.attribute(attributes)):
            node = at_nodes[..., wire.target][..., :, None, None]
            known.append((value.unflatten(-1, wire.grid) + node).flatten(-3))
        raw.update(self.node_out(wiring.attributes, relu(torch.cat(known, -1))))
        return wiring.join(raw)


class ScalarHeads(nn.Module):
    """A network for each scalar that reads its own features beside what its edge, or the neuron it is of, has become.

    e' = W_2 relu(W_1 e) for edges and V_2 relu(V_1 h) for attributes of neurons h, the same for all taps; see
    `ScalarNet`. As Neural Graphs' optimizers have it, but that there a bias reads another neuron.
    """

    def __init__(
        self, features: int, node_width: int, edge_width: int, outputs: int, scalar_layers: int
    ) -> None:
        super().__init__()
        self.edge = PointwiseMlp(edge_width, edge_width, edge_width)
        self.node = PointwiseMlp(node_width, node_width, edge_width)
        self.scalars = ScalarNet(features, edge_width, edge_width, scalar_layers, outputs)

    def forward(self, wiring: Wiring, nodes: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        """(D, N), (D, E), (F, P) -> (R, P)."""
        read = copied(wiring.edges, self.scalars.read(self.edge(edges)))
        at_nodes = self.scalars.read(self.node(nodes))
        for wire in wiring.attributes:
            own = at_nodes[..., wire.target][..., :, None, None]
            read |= copied([wire], own.expand(*at_nodes.shape[:-1], *wire.grid).flatten(-3))
        return self.scalars(features, wiring.join(read))


class NgGnnLayer(nn.Module):
    """One round of messages, see `NgGnn`."""

    def __init__(self, width: int, edge_norm: bool = False) -> None:
        super().__init__()
        self.messages = nn.ModuleDict({end: FilmMessage(width) for end in ENDS})
        self.update = Pointwise(width * (1 + 2 * len(AGGREGATES) * 2), width)
        self.norm = ChannelNorm(width)
        self.edge = Pointwise(width, width)
        self.ends = nn.ModuleDict({end: Pointwise(width, width, bias=False) for end in ENDS})
        self.edge_out = Pointwise(width, width)
        self.edge_norm = ChannelNorm(width) if edge_norm else nn.Identity()

    def forward(self, exchange: Exchange, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        received = [aggregate(exchange, self.messages[end](exchange, nodes, edges, end), end) for end in ENDS]
        nodes = nodes + relu(self.norm(self.update(torch.cat([nodes, *received]))))
        hidden = self.edge(edges) + exchange.sum_of_ends(*(self.ends[end](nodes) for end in ENDS))
        return nodes, self.edge_norm(edges + self.edge_out(relu(hidden)))


class FilmMessage(nn.Module):
    """scale(e_ij) * (W_t h_i + W_s h_j) + shift(e_ij), to the node at the given end of each edge: (D, E)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulate = PointwiseMlp(width, width, 2 * width)
        self.ends = nn.ModuleDict({end: Pointwise(width, width, bias=False) for end in ENDS})

    def forward(self, exchange: Exchange, nodes: Tensor, edges: Tensor, end: End) -> Tensor:
        scale, shift = self.modulate(edges).chunk(2)
        content = exchange.sum_of_ends(*(self.ends[side](nodes) for side in ENDS))
        return scale * content + shift


AGGREGATES = ("mean", "min", "max", "std")


def aggregate(exchange: Exchange, messages: Tensor, end: End) -> Tensor:
    """PNA: (D, E) -> (8 D, N), four statistics and the same amplified by the logarithm of the degree."""
    degree = exchange.degree(end, messages)
    mean = exchange.mean(messages, end)
    variance = exchange.mean(messages * messages, end) - mean * mean
    extremes = [exchange.smallest(messages, end), exchange.largest(messages, end)]
    low, high = (torch.where(degree > 0, value, torch.zeros_like(value)) for value in extremes)
    # Rounding takes the variance of equal messages below zero; at zero the root has no derivative, hence the floor.
    statistics = torch.cat([mean, low, high, torch.sqrt(relu(variance) + SPREAD_FLOOR)])
    return torch.cat([statistics, statistics * (torch.log1p(degree) / MEAN_LOG_DEGREE)])


def _of_each(wires: list[Wire], values: Tensor) -> list[tuple[Wire, Tensor]]:
    """The columns (D, size) of each wire."""
    return list(zip(wires, values.split([wire.size for wire in wires], -1), strict=True)) if wires else []
