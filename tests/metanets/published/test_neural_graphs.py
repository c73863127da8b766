"""NG-GNN, NG-T and GMN: their parts against loops over single nodes and edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.metanets.published.exchange import ENDS, DenseExchange, Exchange, edge_list
from lopt.metanets.published.gmn import EdgeFunction, Gmn
from lopt.metanets.published.ng_gnn import MEAN_LOG_DEGREE, SPREAD_FLOOR, FilmMessage, NgGnn, aggregate
from lopt.metanets.published.ng_t import EdgeAttention, NgT
from lopt.metanets.published.wiring import wiring_of
from tests.helpers import hand_graph, randomised, seeded
from tests.metanets.cases import network

D = 4


@pytest.fixture(params=["mlp", "resnet"])
def exchange(request: pytest.FixtureRequest) -> Exchange:
    return DenseExchange(wiring_of(network(request.param).graph))


def values(exchange: Exchange, edge_width: int = D) -> tuple[Tensor, Tensor]:
    count = edge_list(exchange.wiring).shape[1]
    nodes = torch.randn(D, exchange.wiring.nodes, generator=seeded(0), dtype=torch.float64)
    return nodes, torch.randn(edge_width, count, generator=seeded(1), dtype=torch.float64)


def fresh(net: nn.Module) -> Any:
    torch.manual_seed(0)
    return randomised(net.double(), scale=0.2)  # type: ignore[arg-type]


def at(exchange: Exchange, node: int, end: str) -> list[int]:
    """The edges with the node at this end."""
    index = edge_list(exchange.wiring)[ENDS.index(end)]  # type: ignore[arg-type]
    return (index == node).nonzero().flatten().tolist()


@pytest.mark.parametrize("end", ENDS)
def test_aggregates_are_those_of_pna(exchange: Exchange, end: Any) -> None:
    _, messages = values(exchange)
    found = aggregate(exchange, messages, end)
    for node in range(exchange.wiring.nodes):
        edges = at(exchange, node, end)
        scale = math.log(len(edges) + 1) / MEAN_LOG_DEGREE
        m = messages[:, edges] if edges else torch.zeros(D, 1, dtype=torch.float64)
        spread = (m.var(1, correction=0) + SPREAD_FLOOR).sqrt()
        statistics = torch.cat([m.mean(1), m.amin(1), m.amax(1), spread])
        torch.testing.assert_close(found[:, node], torch.cat([statistics, scale * statistics]))


@pytest.mark.parametrize("end", ENDS)
def test_messages_are_modulated_by_their_edge(exchange: Exchange, end: Any) -> None:
    nodes, edges = values(exchange)
    message = fresh(FilmMessage(D))
    found = message(exchange, nodes, edges, end)
    targets, sources = edge_list(exchange.wiring).tolist()
    for number, (i, j) in enumerate(zip(targets, sources, strict=True)):
        scale, shift = message.modulate(edges[:, number : number + 1])[:, 0].chunk(2)
        content = message.ends["target"].weight @ nodes[:, i] + message.ends["source"].weight @ nodes[:, j]
        torch.testing.assert_close(found[:, number], scale * content + shift)


def test_attention_is_one_softmax_over_both_directions(exchange: Exchange) -> None:
    heads, width, edge_width = 2, 6, 3
    nodes, edges = values(exchange, edge_width)
    attention = fresh(EdgeAttention(D, edge_width, width, heads))
    found = attention(exchange, nodes, edges)
    index = edge_list(exchange.wiring)
    query, key, value = (attention.of_nodes.weight @ nodes).chunk(3)
    for i in range(exchange.wiring.nodes):
        scores, contents = [], []
        for end, other in (("target", 1), ("source", 0)):
            for edge in at(exchange, i, end):
                j = int(index[other, edge])
                q, k, v, m = (attention.of_edges[end].weight @ edges[:, edge]).chunk(4)
                pair = (query[:, i] + q) * (key[:, j] + k)
                scores.append(pair.reshape(heads, -1).sum(1) / math.sqrt(width / heads))
                contents.append((value[:, j] * m + v).reshape(heads, -1))
        weights = torch.stack(scores).softmax(0)
        mixed = (weights[:, :, None] * torch.stack(contents)).sum(0).flatten()
        torch.testing.assert_close(found[:, i], attention.out.weight @ mixed + attention.out.bias)


def test_attention_survives_huge_scores(exchange: Exchange) -> None:
    nodes, edges = values(exchange, 3)
    found = fresh(EdgeAttention(D, 3, 6, 2))(exchange, 1e4 * nodes, 1e4 * edges)
    assert torch.isfinite(found).all()


def test_gmn_edges_read_both_nodes_and_the_whole(exchange: Exchange) -> None:
    nodes, edges = values(exchange)
    whole = torch.randn(D, 1, generator=seeded(2), dtype=torch.float64)
    function = fresh(EdgeFunction(D))
    found = function(exchange, nodes, edges, whole)
    targets, sources = edge_list(exchange.wiring).tolist()
    for number, (i, j) in enumerate(zip(targets, sources, strict=True)):
        expected = function.edge.weight @ edges[:, number] + function.edge.bias
        expected = expected + function.whole.weight @ whole[:, 0]
        expected = expected + function.ends["target"].weight @ nodes[:, i]
        expected = expected + function.ends["source"].weight @ nodes[:, j]
        torch.testing.assert_close(found[:, number], torch.relu(expected))


NETS = {
    "ng_gnn": lambda layers: NgGnn(4, 3, 2, width=6, layers=layers),
    "ng_t": lambda layers: NgT(
        4, 3, 2, node_width=6, edge_width=4, attention_width=6, heads=2, layers=layers
    ),
    "gmn": lambda layers: Gmn(4, 3, 2, width=6, layers=layers),
}


@pytest.mark.parametrize("name", NETS)
def test_news_travel_one_hop_a_layer(name: str) -> None:
    """In a chain of five weights, a change in the last bias reaches the weights that touch changed neurons first."""
    sets = {"INPUT": 2, **{f"h{i}": 3 for i in range(4)}, "OUTPUT": 2}
    names = list(sets)
    parameters = {f"w{i}": f"weight out:{names[i + 1]} in:{names[i]}" for i in range(5)}
    graph = hand_graph(sets, {**parameters, "b": "bias out:OUTPUT"})
    features = torch.randn(4, graph.numel, generator=seeded(0), dtype=torch.float64)
    changed = features.clone()
    changed[:, -1] += 1
    context = torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)
    for layers in (1, 2):
        net = fresh(NETS[name](layers))
        if name == "gmn":
            # Its global vector would tell everybody at once.
            for layer in net.layers:
                nn.init.zeros_(layer.message.whole.weight), nn.init.zeros_(layer.edge.whole.weight)
                layer.node.inner.weight.data[:, -6:] = 0
        before, after = (graph.unflatten(net(graph, x, context)[0]) for x in (features, changed))
        reached = {n: not torch.allclose(before[n], after[n], rtol=0, atol=1e-12) for n in before}
        assert reached["w4"]
        assert not reached["w0"], "four hops away"
        hops = layers if name == "gmn" else layers + 1
        assert [reached[f"w{4 - i}"] for i in range(5)] == [i < hops for i in range(5)]


def test_attention_width_must_divide() -> None:
    with pytest.raises(ConfigError, match=r"multiple of heads \(4\), found 6"):
        NgT(4, 3, 2, attention_width=6, heads=4)
