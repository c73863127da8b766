"""NG-T: the transformer of Neural Graphs (Kofinas et al. 2024, arXiv 2403.12143, section 3.2).

A relational transformer (Diao & Loynd 2023, arXiv 2210.05062) whose values multiply node by edge.
Shapes: P scalars, B tensors, N nodes, E edges, A attributes, D_n and D_e widths of nodes and edges, H heads of
width K, F features, C context values, R raw outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lopt.errors import ConfigError
from lopt.metanets.base import Layers, LayersOrZero, Size, SizeOrZero
from lopt.metanets.layers import ChannelNorm, Pointwise
from lopt.metanets.published.exchange import ENDS, End, Exchange, Execution
from lopt.metanets.published.ng_gnn import NeuralGraph, NodeEncoder, heads_of
from lopt.metanets.published.wiring import WireEncoder

OTHER: dict[End, End] = {"target": "source", "source": "target"}


class NgT(NeuralGraph):
    """Per layer, for neuron i, its neighbours j, and the edge e_ij between them, for each head:

        q_ij = W_q h_i + U_q e_ij,   k_ij = W_k h_j + U_k e_ij,   v_ij = (W_v h_j) * (U_m e_ij) + U_v e_ij
        h_i' = norm(h_i + W_o sum_j softmax_j(q_ij . k_ij / sqrt(K)) v_ij),   h_i'' = norm(h_i' + MLP(h_i'))
        e_ij' = norm(e_ij + MLP([e_ij, h_i'', h_j''])),                       e_ij'' = norm(e_ij' + MLP(e_ij'))

    A neuron attends to the neurons that it feeds and that it reads, by one softmax over both, the two directions
    having edge weights U of their own. The paper's tasks are small enough for attention between all pairs of
    neurons; along the network's own edges the cost is linear in its parameters.

    execution: "dense" along axes, or "edges" by gather and scatter, which is slower and gives the same.
    probes: M, how many probe features it reads of every neuron (section 3 of the paper; `lopt.weight_space.probes`).
    positions, scalar_layers: as in `NgGnn`; the scalars' network is as wide as edges are.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        node_width: Size = 32,
        edge_width: Size = 16,
        attention_width: Size = 32,
        heads: Size = 4,
        layers: Layers = 2,
        execution: Execution = "dense",
        probes: SizeOrZero = 0,
        positions: bool = False,
        scalar_layers: LayersOrZero = 0,
    ) -> None:
        super().__init__()
        if attention_width % heads:
            expected = f"a multiple of heads ({heads})"
            raise ConfigError(f"metanet: attention_width must be {expected}, found {attention_width}")
        self.execution = execution
        self.nodes = NodeEncoder(features, context, node_width, probes, positions)
        self.encode = WireEncoder(features, context, edge_width)
        self.layers = nn.ModuleList(
            NgTLayer(node_width, edge_width, attention_width, heads) for _ in range(layers)
        )
        self.heads = heads_of(features, node_width, edge_width, outputs, scalar_layers)


class NgTLayer(nn.Module):
    """Attention, then the edge update, see `NgT`. Hidden layers are twice as wide as what they update."""

    def __init__(self, nodes: int, edges: int, attention: int, heads: int) -> None:
        super().__init__()
        self.attention = EdgeAttention(nodes, edges, attention, heads)
        self.node_norms = nn.ModuleList(ChannelNorm(nodes) for _ in range(2))
        self.node_in, self.node_out = Pointwise(nodes, 2 * nodes), Pointwise(2 * nodes, nodes)
        self.edge_norms = nn.ModuleList(ChannelNorm(edges) for _ in range(2))
        self.ends = nn.ModuleDict({end: Pointwise(nodes, 2 * edges, bias=False) for end in ENDS})
        self.edge_in = nn.ModuleList(Pointwise(edges, 2 * edges) for _ in range(2))
        self.edge_out = nn.ModuleList(Pointwise(2 * edges, edges) for _ in range(2))

    def forward(self, exchange: Exchange, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        nodes = self.node_norms[0](nodes + self.attention(exchange, nodes, edges))
        nodes = self.node_norms[1](nodes + self.node_out(gelu(self.node_in(nodes))))
        hidden = self.edge_in[0](edges) + exchange.sum_of_ends(*(self.ends[end](nodes) for end in ENDS))
        edges = self.edge_norms[0](edges + self.edge_out[0](gelu(hidden)))
        return nodes, self.edge_norms[1](edges + self.edge_out[1](gelu(self.edge_in[1](edges))))


class EdgeAttention(nn.Module):
    """Attention of every neuron to its neighbours: nodes (D_n, N), edges (D_e, E) -> (D_n, N), see `NgT`."""

    def __init__(self, nodes: int, edges: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.of_nodes = Pointwise(nodes, 3 * width, bias=False)
        self.of_edges = nn.ModuleDict({end: Pointwise(edges, 4 * width, bias=False) for end in ENDS})
        self.out = Pointwise(width, nodes)

    def forward(self, exchange: Exchange, nodes: Tensor, edges: Tensor) -> Tensor:
        query, key, value = self.of_nodes(nodes).chunk(3)
        scores, values = {}, {}
        for end in ENDS:
            q, k, v, modulation = self.of_edges[end](edges).chunk(4)
            q = q + exchange.spread(query, end)
            k = k + exchange.spread(key, OTHER[end])
            scores[end] = self._per_head(q * k).sum(1) / (self.width // self.heads) ** 0.5
            values[end] = exchange.spread(value, OTHER[end]) * modulation + v
        return self.out(self._softmax_mean(exchange, scores, values))

    def _softmax_mean(
        self, exchange: Exchange, scores: dict[End, Tensor], values: dict[End, Tensor]
    ) -> Tensor:
        """(H, E) scores and (H K, E) values at both ends -> (H K, N) averages over the edges at each node."""
        # Softmax does not change by what is subtracted, so that no derivative need pass through it.
        highest = torch.maximum(*(exchange.largest(scores[end], end) for end in ENDS)).detach()
        # Nodes without edges have a maximum of -inf.
        highest = torch.where(torch.isinf(highest), torch.zeros_like(highest), highest)
        above: list[Tensor] = []
        below: list[Tensor] = []
        for end in ENDS:
            weight = torch.exp(scores[end] - exchange.spread(highest, end))
            above.append(exchange.total((self._per_head(values[end]) * weight[:, None]).flatten(0, 1), end))
            below.append(exchange.total(weight, end))
        # Each node with an edge has a weight of exp(0) = 1; the others get zeros.
        share = 1 / (below[0] + below[1]).clamp(min=0.5)
        return (self._per_head(above[0] + above[1]) * share[:, None]).flatten(0, 1)

    def _per_head(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.heads, -1))
