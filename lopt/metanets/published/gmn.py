"""GMN: graph metanetworks (Lim et al. 2024, arXiv 2312.04501, section 3).

A message-passing network with edge and global updates (Battaglia et al. 2018) on the parameter graph: every scalar
is an edge, kernel taps are parallel edges, and biases and scales are edges from nodes of their own.
Shapes: P scalars (as many edges), B tensors, N nodes, D width, F features, C context values, R raw outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.graph.pyg_styles import NODE_KINDS
from lopt.metanets.base import Layers, Metanet, Size
from lopt.metanets.layers import ChannelNorm, Pointwise, PointwiseMlp
from lopt.metanets.published.exchange import ENDS, Exchange, Execution, exchange_of
from lopt.metanets.published.wiring import WireEncoder, WireHead, wiring_of


class Gmn(Metanet):
    """Per layer, for edges e_ij from node j to node i, nodes v and the network's own vector u:

        m_ij  = relu(W_e e_ij + W_t v_i + W_s v_j + W_u u)
        v_i'  = v_i + MLP_v([v_i, mean of m_ij at i, mean of m_ki at i, u])
        e_ij' = e_ij + MLP_e([e_ij, v_i', v_j', u])
        u'    = u + MLP_u([u, mean of e', mean of v'])

    with e and v normalised before each layer. Messages run both ways. Edges are typed by the kind of their
    parameter, nodes by their role.

    execution: "dense" along axes, or "edges" by gather and scatter, which is slower and gives the same.
    """

    side_by_side = True

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: Size = 16,
        layers: Layers = 2,
        execution: Execution = "dense",
    ) -> None:
        super().__init__()
        self.execution = execution
        self.encode = WireEncoder(features, context, width, slots=1)
        self.roles = nn.Parameter(torch.randn(len(NODE_KINDS), width) / math.sqrt(width))
        self.layers = nn.ModuleList(GmnLayer(width) for _ in range(layers))
        self.head = WireHead(width, outputs, slots=1)

    def prepare(self, graph: ParameterGraph) -> None:
        exchange_of(wiring_of(graph, 1, False), self.execution).prepare()

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        wiring = wiring_of(graph, 1, False)
        exchange = exchange_of(wiring, self.execution)
        edges = self.encode(wiring.edges, wiring.parts(features), context)
        sets = [self.roles[kind][:, None].expand(-1, s.stop - s.start) for s, kind in wiring.node_sets]
        nodes = torch.cat(sets, -1)
        batch = edges.shape[1:-1]
        nodes = nodes.reshape(-1, *[1] * len(batch), wiring.nodes).expand(-1, *batch, -1)
        whole = edges.mean(-1, keepdim=True)
        for layer in self.layers:
            nodes, edges, whole = layer(exchange, nodes, edges, whole)
        return wiring.join(self.head(wiring.edges, relu(edges))), None


class GmnLayer(nn.Module):
    """One round of messages, see `Gmn`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: ChannelNorm(width) for name in ("nodes", "edges")})
        self.message = EdgeFunction(width)
        self.node = PointwiseMlp(4 * width, width, width)
        self.edge, self.edge_out = EdgeFunction(width), Pointwise(width, width)
        self.whole = PointwiseMlp(3 * width, width, width)

    def forward(
        self, exchange: Exchange, nodes: Tensor, edges: Tensor, whole: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        v, e = self.norms["nodes"](nodes), self.norms["edges"](edges)
        messages = self.message(exchange, v, e, whole)
        received = [exchange.mean(messages, end) for end in ENDS]
        nodes = nodes + self.node(torch.cat([v, *received, whole.expand_as(v)]))
        edges = edges + self.edge_out(self.edge(exchange, nodes, e, whole))
        means = [edges.mean(-1, keepdim=True), nodes.mean(-1, keepdim=True)]
        return nodes, edges, whole + self.whole(torch.cat([whole, *means]))


class EdgeFunction(nn.Module):
    """relu(W_e e_ij + W_t v_i + W_s v_j + W_u u): nodes (D, N), edges (D, E), whole (D, 1) -> (D, E)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge, self.whole = Pointwise(width, width), Pointwise(width, width, bias=False)
        self.ends = nn.ModuleDict({end: Pointwise(width, width, bias=False) for end in ENDS})

    def forward(self, exchange: Exchange, nodes: Tensor, edges: Tensor, whole: Tensor) -> Tensor:
        hidden = self.edge(edges) + self.whole(whole)
        return relu(hidden + exchange.sum_of_ends(*(self.ends[end](nodes) for end in ENDS)))
