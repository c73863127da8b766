"""Wiring and exchange: folding is exact, edges are those of the PyG styles, dense equals edge list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lopt import make_rule
from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.graph.pyg import to_pyg
from lopt.metanets import METANETS
from lopt.metanets.published.exchange import ENDS, DenseExchange, IndexedExchange, edge_list
from lopt.metanets.published.wiring import WireEncoder, WireHead, Wiring, wiring_of
from tests.helpers import hand_graph, randomised, seeded
from tests.metanets.cases import ALL, network

LOOSE = hand_graph(
    {"INPUT": 2, "hidden": 3, "PLACE": 4, "TAP": 5, "OUTPUT": 2},
    {
        "bilinear": "weight out:OUTPUT in:hidden in:hidden",
        "wide": "weight out:hidden in:INPUT tap:TAP tap:PLACE",
        "head": "weight out:OUTPUT in:hidden*PLACE",
        "depthwise": "depthwise out:hidden in: tap:TAP",
        "temperature": "other",
    },
)
GRAPHS = [*ALL, "loose"]


def graph_of(name: str) -> ParameterGraph:
    return LOOSE if name == "loose" else network(name).graph


@pytest.mark.parametrize("slots", [1, 4, 9])
@pytest.mark.parametrize("name", GRAPHS)
def test_fold_and_back(name: str, slots: int) -> None:
    wiring = wiring_of(graph_of(name), slots, True)
    flat = torch.randn(3, graph_of(name).numel, generator=seeded(0))
    parts = wiring.parts(flat)
    back = {wire.number: wire.unfold(wire.fold(parts[wire.number])) for wire in wiring.wires}
    assert torch.equal(wiring.join(back), flat)
    for wire, part in zip(wiring.wires, parts, strict=True):
        assert wire.fold(part).shape == (3, wire.slots, wire.size)
        assert wire.slots <= slots


@pytest.mark.parametrize("name", ALL)
def test_one_slot_without_attributes_is_the_gmn_style(name: str) -> None:
    """One edge per scalar, between the same pairs of nodes, in however different numbers."""
    graph = graph_of(name)
    wiring = wiring_of(graph, 1, False)
    data = to_pyg(graph, {n: torch.zeros(s.shape) for n, s in graph.parameters.items()}, "gmn")
    ours = edge_list(wiring)
    assert ours.shape == (2, graph.numel)
    positions = wiring.parts(torch.arange(graph.numel)[None])
    folded = [wire.fold(part) for wire, part in zip(wiring.wires, positions, strict=True)]
    scalar = torch.cat([part.flatten() for part in folded])
    theirs = data.edge_index.flip(0)[:, scalar]
    for end in range(2):
        pairs = torch.stack([ours[end], theirs[end]]).unique(dim=1)
        assert len(pairs[0].unique()) == pairs.shape[1], "one node of theirs for each of ours"
        assert len(pairs[1].unique()) == pairs.shape[1], "and the other way round"


@pytest.mark.parametrize("name", ["mlp", "chain", "cnn", "resnet"])
def test_folded_edges_are_those_of_neural_graphs(name: str) -> None:
    graph = network(name).graph
    data = to_pyg(graph, {n: torch.zeros(s.shape) for n, s in graph.parameters.items()}, "neural_graphs")
    assert edge_list(wiring_of(graph)).shape[1] == data.num_edges


def test_taps_that_permute_are_never_folded() -> None:
    wires = {wire.block.parameter: wire for wire in wiring_of(LOOSE).wires}
    assert (wires["bilinear"].grid, wires["bilinear"].taps) == ((2, 3, 3), 1)
    assert (wires["wide"].grid, wires["wide"].slots) == ((3, 2, 3), 9), "20 taps in three edges of nine"
    assert wires["depthwise"].source is None
    assert wires["depthwise"].slots == 5


def exchanges(name: str) -> tuple[Wiring, DenseExchange, IndexedExchange]:
    wiring = wiring_of(graph_of(name))
    return wiring, DenseExchange(wiring), IndexedExchange(wiring)


@pytest.mark.parametrize("name", GRAPHS)
def test_dense_exchange_equals_gather_and_scatter(name: str) -> None:
    wiring, dense, indexed = exchanges(name)
    edges = torch.randn(3, edge_list(wiring).shape[1], generator=seeded(0), dtype=torch.float64)
    nodes = torch.randn(3, wiring.nodes, generator=seeded(1), dtype=torch.float64)
    for end in ENDS:
        assert torch.equal(dense.spread(nodes, end), indexed.spread(nodes, end))
        assert torch.equal(dense.largest(edges, end), indexed.largest(edges, end))
        assert torch.equal(dense.smallest(edges, end), indexed.smallest(edges, end))
        torch.testing.assert_close(dense.mean(edges, end), indexed.mean(edges, end), rtol=0, atol=1e-12)
        counted = torch.bincount(edge_list(wiring)[ENDS.index(end)], minlength=wiring.nodes)
        assert torch.equal(dense.degree(end, edges), counted.double())
    assert torch.equal(dense.sum_of_ends(nodes, -nodes.flip(1)), indexed.sum_of_ends(nodes, -nodes.flip(1)))


OPTIONS = {
    "ng_gnn": {"width": 5},
    "ng_t": {"node_width": 6, "edge_width": 4, "attention_width": 6, "heads": 2},
    "gmn": {"width": 5},
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("metanet", OPTIONS)
def test_dense_metanet_equals_edge_list(
    metanet: str, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    graph = graph_of(name)
    nets = {way: METANETS[metanet](4, 3, 2, execution=way, **OPTIONS[metanet]) for way in ("dense", "edges")}
    randomised(nets["dense"].double())  # type: ignore[arg-type]
    nets["edges"].double().load_state_dict(nets["dense"].state_dict())
    features = torch.randn(4, graph.numel, generator=seeded(2), dtype=dtype)
    context = torch.randn(3, len(graph.parameters), generator=seeded(3), dtype=dtype)
    dense, edges = (net.to(dtype)(graph, features, context)[0] for net in nets.values())
    assert dense.abs().max() > 0.01
    assert (dense - edges).abs().max() < tolerance * dense.abs().max().clamp(min=1)


@pytest.mark.parametrize("metanet", OPTIONS)
def test_unknown_execution_is_named(metanet: str) -> None:
    with pytest.raises(ConfigError, match="execution: expected one of 'dense' or 'edges', found 'sparse'"):
        make_rule(metanet, execution="sparse")


def test_encoder_and_head_read_and_write_each_tap() -> None:
    """Against a loop over the scalars of a convolution: slot s of an edge has weights of its own."""
    graph = network("chain").graph
    wiring = wiring_of(graph)
    wire = wiring.edges[0]
    torch.manual_seed(0)
    encoder, head = WireEncoder(2, 3, 4), WireHead(4, 2)
    torch.nn.init.normal_(head.weight)
    features = torch.randn(2, graph.numel, generator=seeded(0))
    context = torch.randn(3, len(graph.parameters), generator=seeded(1))
    hidden = encoder([wire], wiring.parts(features), context)
    raw = head([wire], hidden)[wire.number]
    weight = graph.unflatten(features)["0.weight"]
    known = encoder.context(context[:, 0]) + encoder.kinds[wire.kind]

    def edge(out: int, into: int) -> Tensor:
        taps = weight[:, out, into].flatten(1)
        return known + sum(encoder.weight[:, :, s] @ taps[:, s] for s in range(9))

    for out in range(4):
        for into in range(2):
            expected = edge(out, into)
            torch.testing.assert_close(hidden[:, out * 2 + into], expected)
            block = raw.reshape(2, 4, 2, 9)[:, out, into]
            torch.testing.assert_close(block, (head.weight @ expected), rtol=1e-5, atol=1e-5)
