"""Places of neurons and their codes, and what metanets make of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.metanets import METANETS
from lopt.metanets.published.ng_gnn import NgGnn, ScalarHeads
from lopt.metanets.published.positions import places, position_codes
from lopt.metanets.published.wiring import wiring_of
from lopt.rules import LearnedRule
from tests.helpers import randomised, seeded, small_rule
from tests.metanets.cases import CASES, network


def test_inputs_and_outputs_each_and_hidden_neurons_by_layer() -> None:
    """The chain: 2 -> 4 -> 5 -> 3, the last layer behind a flatten of 4 positions, which are taps of one weight."""
    wiring = wiring_of(network("chain").graph)
    expected = {"input": [0, 1], "4": [2] * 4, "5": [3] * 5, "output": [4, 5, 6]}
    found = [places(wiring)[nodes].tolist() for nodes, _ in wiring.node_sets]
    assert sorted(found) == sorted(expected.values())


def test_codes_by_hand() -> None:
    wiring = wiring_of(network("mlp").graph)
    width = 5
    codes = position_codes(wiring, width)
    assert codes.shape == (width, wiring.nodes)
    for node, place in enumerate(places(wiring).tolist()):
        angles = [place / 10_000 ** (2 * k / width) for k in range(3)]
        expected = [f(angle) for angle in angles for f in (math.sin, math.cos)][:width]
        assert codes[:, node].tolist() == pytest.approx(expected, abs=1e-12)


def swapped(rule: LearnedRule, name: str, role: str) -> float:
    """How much else a network's step is once two of its inputs or outputs, in all that knows of them, change places."""
    net = network(name)
    graph = net.graph
    group = next(g for g in graph.groups if g.kind == role)
    order = torch.arange(group.size)
    order[:2] = order[:2].flip(0)
    params = net.params
    grads = {n: torch.randn(p.shape, generator=seeded(1), dtype=p.dtype) for n, p in params.items()}

    def step(params: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, Tensor]:
        bound = rule.on(graph)
        return dict(bound.delta(grads, bound.init(params), params)[0])

    here = graph.permute(step(params, grads), {group.id: order})
    there = step(graph.permute(params, {group.id: order}), graph.permute(grads, {group.id: order}))
    return max(((here[n] - there[n]).abs().max() / here[n].abs().max()).item() for n in here)


@pytest.mark.parametrize("role", ["input", "output"])
@pytest.mark.parametrize("metanet", ["ng_gnn", "ng_t", "nfn"])
def test_inputs_and_outputs_are_told_apart_with_positions_alone(metanet: str, role: str) -> None:
    without = CASES[metanet].rule(scale=0.2)
    options = {**CASES[metanet].options, "positions": True}
    told = small_rule(metanet=metanet, metanet_options=options, scale=0.2)
    assert swapped(without, "mlp", role) < 1e-9
    assert swapped(told, "mlp", role) > 1e-3


def jacobian_rank(metanet: str, scalar_layers: int) -> int:
    """Of what the nine taps of one kernel say, two numbers each, by the features of these nine."""
    net = network("chain")
    width = {"node_width": 12, "edge_width": 12} if metanet == "ng_t" else {"width": 12}
    options: dict[str, Any] = {**CASES[metanet].options, **width, "scalar_layers": scalar_layers}
    features, count = 14, net.graph.numel
    torch.manual_seed(0)
    made: Any = randomised(METANETS[metanet](features, 0, 2, **options).double(), scale=0.3)
    x = torch.randn(features, count, generator=seeded(2), dtype=torch.float64)
    context = torch.zeros(0, len(net.graph.parameters), dtype=torch.float64)

    def taps(own: Tensor) -> Tensor:
        raw, _ = made(net.graph, torch.cat([own, x[:, 9:]], 1), context)
        return raw[:, :9].flatten()

    slopes = torch.autograd.functional.jacobian(taps, x[:, :9]).flatten(1)
    return int(torch.linalg.matrix_rank(slopes, rtol=1e-9))


@pytest.mark.parametrize("metanet", ["ng_gnn", "ng_t", "nfn"])
def test_nine_taps_have_a_say_of_their_own_with_a_network_for_each_scalar(metanet: str) -> None:
    """A linear head has as many dimensions as the edge has channels, of which the relu leaves some."""
    assert jacobian_rank(metanet, scalar_layers=2) == 18
    assert jacobian_rank(metanet, scalar_layers=0) <= 12


def test_scalar_heads_read_the_edge_of_each_weight_and_the_neuron_of_each_bias() -> None:
    """Scalar by scalar, on a chain of linear layers: no bias reads another neuron than its own."""
    net, width, features = network("mlp"), 5, 3
    wiring = wiring_of(net.graph)
    torch.manual_seed(0)
    heads: Any = randomised(ScalarHeads(features, width, width, 2, 2).double(), scale=0.3)  # type: ignore[arg-type]
    nodes = torch.randn(width, wiring.nodes, generator=seeded(0), dtype=torch.float64)
    edges = torch.randn(width, sum(w.size for w in wiring.edges), generator=seeded(1), dtype=torch.float64)
    x = torch.randn(features, net.graph.numel, generator=seeded(2), dtype=torch.float64)
    found = net.graph.unflatten(heads(wiring, nodes, edges, x))
    own = net.graph.unflatten(x)
    first = 0
    for wire in wiring.wires:
        name = wire.block.parameter
        for target in range(wire.grid[0]):
            for source in range(wire.grid[1]):
                at = (target, source) if wire.source is not None else (target,)
                if wire.source is None:
                    heard = heads.node(nodes[:, wire.target][:, target : target + 1])
                else:
                    edge = first + target * wire.grid[1] + source
                    heard = heads.edge(edges[:, edge : edge + 1])
                scalar = own[name][(slice(None), *at)][:, None]
                expected = heads.scalars(scalar, heads.scalars.read(heard))[:, 0]
                torch.testing.assert_close(found[name][(slice(None), *at)], expected)
        first += wire.size if wire.source is not None else 0


def test_positions_are_off_by_default() -> None:
    assert not NgGnn(3, 2, 1).nodes.positions
