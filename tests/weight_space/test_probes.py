"""Probe features: what neurons say, in the right place, of the right network, and what a readout can learn of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lopt import make_rule
from lopt.errors import ConfigError, GraphError
from lopt.graph import ParameterGraph
from lopt.graph.spec import Permutation
from lopt.metanets import METANETS
from lopt.metanets.published.wiring import probes_of_nodes, wiring_of
from lopt.weight_space.probes import probe, probe_each, run_each
from lopt.weight_space.readout import NetworkReadout
from tests.helpers import hand_graph, randomised, seeded
from tests.metanets.cases import ALL, CASES, network

NEURAL_GRAPHS = ("ng_gnn", "ng_t")


def by_group(graph: ParameterGraph, probes: Tensor) -> list[Tensor]:
    return list(probes.split([group.size for group in graph.groups], -1))


def said_of(graph: ParameterGraph, probes: Tensor, parameter: str, axis: int = 0) -> Tensor:
    """The probe features of the one group along an axis of a parameter."""
    ((group,),) = graph.parameters[parameter].axes[axis]
    return by_group(graph, probes)[group]


def permuted(graph: ParameterGraph, probes: Tensor, permutation: Permutation) -> Tensor:
    columns = [
        part[:, permutation[group.id]] if group.permutable else part
        for group, part in zip(graph.groups, by_group(graph, probes), strict=True)
    ]
    return torch.cat(columns, -1)


def test_every_layer_of_a_perceptron_by_hand() -> None:
    net, params = network("mlp"), network("mlp").params
    found = probe(net.module, net.graph, net.inputs, params)
    first = net.inputs @ params["0.weight"].T + params["0.bias"]
    second = first.relu() @ params["2.weight"].T + params["2.bias"]
    expected = {
        ("0.weight", 1): net.inputs,
        ("0.weight", 0): first,
        ("2.weight", 0): second,
        ("4.weight", 0): second.relu() @ params["4.weight"].T + params["4.bias"],
    }
    assert found.shape == (8, 4 + 6 + 6 + 3)
    for (name, axis), value in expected.items():
        torch.testing.assert_close(said_of(net.graph, found, name, axis), value)


def test_convolutions_and_streams_are_means_over_positions_and_layers() -> None:
    net = network("resnet")
    found, module = probe(net.module, net.graph, net.inputs), net.module
    stem = module.stem(net.inputs)
    branch = module.inner(stem)
    normed = module.norm(branch)
    outer = module.outer(normed.relu())
    stream = torch.stack([stem, outer]).mean((0, 3, 4))
    torch.testing.assert_close(said_of(net.graph, found, "stem.weight"), stream)
    inner = torch.stack([branch, normed]).mean((0, 3, 4))
    torch.testing.assert_close(said_of(net.graph, found, "inner.weight"), inner)
    torch.testing.assert_close(said_of(net.graph, found, "stem.weight", 1), net.inputs.mean((2, 3)))
    for tap in (2, 3):
        assert not said_of(net.graph, found, "inner.weight", tap).any(), "nobody says anything of kernel taps"


def test_what_no_layer_puts_out_is_what_layers_read() -> None:
    net = network("lstm")
    found = probe(net.module, net.graph, net.inputs)
    remembered = net.module.lstm(net.inputs)[0][:, -1]
    torch.testing.assert_close(said_of(net.graph, found, "head.weight", 1), remembered)


def test_heads_and_their_neurons_are_means_over_each_other() -> None:
    net = network("transformer")
    found = probe(net.module, net.graph, net.inputs)
    (((heads, within),),) = (net.graph.parameters["block.attention.value.weight"].axes[0],)
    caught: list[Tensor] = []
    handle = net.module.block.attention.value.register_forward_hook(lambda *a: caught.append(a[2]))
    net.module(net.inputs)
    handle.remove()
    sizes = [net.graph.groups[group].size for group in (heads, within)]
    value = caught[0].mean(1).reshape(len(net.inputs), *sizes)
    torch.testing.assert_close(by_group(net.graph, found)[within], value.mean(1))


class Tied(nn.Module):
    """Token numbers to logits, by one matrix at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x)))


def test_a_tied_matrix_plays_two_parts() -> None:
    model, tokens = Tied().double(), torch.randint(7, (5, 3), generator=seeded(0))
    graph = ParameterGraph.trace(model, (tokens,))
    found = probe(model, graph, tokens)
    torch.testing.assert_close(said_of(graph, found, "embed.weight", 0), model(tokens).mean(1))
    torch.testing.assert_close(said_of(graph, found, "embed.weight", 1), model.embed(tokens).mean(1))


def test_an_untied_graph_says_the_same_of_weight_and_bias() -> None:
    net = network("mlp")
    graph = ParameterGraph.untied(net.params.items())
    found = probe(net.module, graph, net.inputs, net.params)
    for layer in ("0", "2", "4"):
        said = said_of(graph, found, f"{layer}.weight")
        assert said.abs().max() > 0.01
        assert torch.equal(said, said_of(graph, found, f"{layer}.bias"))
    read = said_of(graph, found, "2.weight", 1)
    torch.testing.assert_close(read, said_of(graph, found, "0.weight").relu())


@pytest.mark.parametrize("name", ALL)
def test_probes_are_equivariant(name: str) -> None:
    net, graph = network(name), network(name).graph
    permutation = graph.random_permutation(seeded(1))
    found = probe(net.module, graph, net.inputs, net.params)
    moved_params = graph.permute(net.params, permutation)
    moved = probe(net.module, graph, net.inputs, moved_params)
    assert (moved - permuted(graph, found, permutation)).abs().max() < 1e-9
    assert (moved - found).abs().max() > 1e-3
    first = next(iter(moved_params))
    half = probe(net.module, graph, net.inputs, {**net.params, first: moved_params[first]})
    assert (half - permuted(graph, found, permutation)).abs().max() > 1e-6


def readout(case: str, probes: int, outputs: int = 3) -> Any:
    torch.manual_seed(0)
    options = {**CASES[case].options, "probes": probes}
    return randomised(NetworkReadout(case, outputs, 3, 8, options).double(), scale=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", NEURAL_GRAPHS)
def test_readout_with_probes_is_invariant_and_reads_them(case: str, name: str) -> None:
    net, graph = network(name), network(name).graph
    permutation = graph.random_permutation(seeded(1))
    read = readout(case, len(net.inputs))
    params = net.params
    probes = probe(net.module, graph, net.inputs, params)
    moved_params = graph.permute(params, permutation)
    moved_probes = probe(net.module, graph, net.inputs, moved_params)
    found = read(graph, params, probes)
    assert (read(graph, moved_params, moved_probes) - found).abs().max() < 1e-9
    assert (read(graph, params, moved_probes) - found).abs().max() > 1e-7, "probes of other neurons"
    assert (read(graph, params, -probes) - found).abs().max() > 1e-4


@pytest.mark.parametrize("case", NEURAL_GRAPHS)
def test_metanets_with_probes_are_equivariant_and_without_weight_for_them_what_they_were(case: str) -> None:
    net, graph = network("chain"), network("chain").graph
    options = CASES[case].options
    torch.manual_seed(0)
    unprobed = randomised(METANETS[case](4, 3, 2, **options).double(), scale=0.2)  # type: ignore[arg-type]
    net_with = METANETS[case](4, 3, 2, probes=len(net.inputs), **options).double()
    net_with.load_state_dict({**net_with.state_dict(), **unprobed.state_dict()})
    features = torch.randn(4, graph.numel, generator=seeded(2), dtype=torch.float64)
    context = torch.randn(3, len(graph.parameters), generator=seeded(3), dtype=torch.float64)
    probes = probe(net.module, graph, net.inputs)
    found = net_with(graph, features, context, probes=probes)[0]

    permutation = graph.random_permutation(seeded(1))

    def along(rows: Tensor) -> Tensor:
        return torch.stack([graph.flatten(graph.permute(graph.unflatten(row), permutation)) for row in rows])

    moved = net_with(graph, along(features), context, probes=permuted(graph, probes, permutation))[0]
    assert (moved - along(found)).abs().max() < 1e-9
    before = unprobed(graph, features, context)[0]
    assert (found - before).abs().max() > 1e-4
    nn.init.zeros_(net_with.nodes.probes.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(net_with(graph, features, context, probes=probes)[0], before)
    assert set(net_with.state_dict()) - set(unprobed.state_dict()) == {"nodes.probes.weight"}


def test_nodes_of_a_product_have_the_sum_of_their_groups() -> None:
    graph = hand_graph({"x": 2, "head": 2, "q": 3}, {"w": "query out:head*q in:x", "t": "other"})
    wiring = wiring_of(graph)
    found = probes_of_nodes(wiring, torch.tensor([[1.0, 2.0, 10.0, 20.0, 100.0, 200.0, 300.0]]))
    wire = wiring.edges[0]
    assert found.shape == (1, wiring.nodes)
    assert found[0, wire.target].tolist() == [110, 210, 310, 120, 220, 320]
    assert wire.source is not None
    assert found[0, wire.source].tolist() == [1, 2]
    assert not found[0, wiring.attributes[0].target].any()


@pytest.mark.parametrize("name", ["mlp", "chain", "resnet", "transformer", "lstm"])
def test_derivatives_equal_finite_differences(name: str) -> None:
    net, graph = network(name), network(name).graph
    names = list(net.params)
    inputs = net.inputs[:2].clone().requires_grad_()
    params = [p.clone().requires_grad_() for p in net.params.values()]

    def features(inputs: Tensor, *params: Tensor) -> Tensor:
        return probe(net.module, graph, inputs, dict(zip(names, params, strict=True)))

    assert torch.autograd.gradcheck(features, (inputs, *params), fast_mode=True)


@pytest.mark.parametrize("name", ["mlp", "chain", "cnn", "resnet", "transformer"])
def test_many_networks_at_once_equal_each_alone(name: str) -> None:
    net, graph = network(name), network(name).graph
    many = {name: torch.stack([p, 0.5 * p, p.flip(0)]) for name, p in net.params.items()}
    read = readout("ng_gnn", len(net.inputs))

    def both(one: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        probes = probe(net.module, graph, net.inputs, one)
        return probes, read(graph, one, probes)

    together = torch.vmap(both)(many)
    for index in range(3):
        alone = both({name: p[index] for name, p in many.items()})
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[index], expected, rtol=1e-10, atol=1e-10)


class Busy(nn.Module):
    """A network with everything that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.latest = x
        torch.rand(1)
        return self.last(self.drop(self.norm(self.first(x))))


@pytest.mark.parametrize("fits", [True, False])
def test_the_model_is_left_unchanged(fits: bool) -> None:
    torch.manual_seed(0)
    model = Busy()
    graph = ParameterGraph.trace(model, (torch.randn(5, 3),))
    model.drop.eval()
    model.first.register_forward_hook(lambda *_: None)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    hooks = [list(m._forward_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    inputs = torch.randn(6, 3 if fits else 5, generator=seeded(0))
    if fits:
        found = probe(model, graph, inputs)
        assert torch.equal(found, probe(model, graph, inputs)), "evaluation mode"
    else:
        with pytest.raises(GraphError, match="the network fails on inputs of shape \\(6, 5\\)"):
            probe(model, graph, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [list(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    assert model.seen == []
    assert not hasattr(model, "latest")
    assert all(p.grad is None for p in model.parameters())


def test_buffers_can_be_given_as_well() -> None:
    model = Busy().double()
    inputs = torch.randn(6, 3, generator=seeded(0), dtype=torch.float64)
    graph = ParameterGraph.trace(model, (inputs,))
    given = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    generator = seeded(1)
    for name in ("norm.running_mean", "norm.running_var", "norm.weight", "norm.bias"):
        given[name] = torch.rand(4, generator=generator, dtype=torch.float64) + 0.5
    permutation = graph.random_permutation(seeded(2))
    found = probe(model, graph, inputs, given)
    moved = probe(model, graph, inputs, graph.permute(given, permutation))
    assert (moved - permuted(graph, found, permutation)).abs().max() < 1e-9
    assert (found - probe(model, graph, inputs)).abs().max() > 1e-2


def probed(inputs: Any, params: Any = None, graph: str = "mlp") -> Tensor:
    return probe(network("mlp").module, network(graph).graph, inputs, params)


def read_by(net: Any, probes: Tensor | None) -> Tensor:
    return net(network("mlp").graph, network("mlp").params, probes)


def plain(metanet: str) -> NetworkReadout:
    return NetworkReadout(metanet, 1).double()


def stepped(rule: Any) -> Any:
    bound, params = rule.double().on(network("mlp").graph), network("mlp").params
    return bound.update(params, bound.init(params), params)


WHOLE = torch.zeros(8, 19, dtype=torch.float64)
X = torch.zeros(8, 4, dtype=torch.float64)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "width": (lambda: probed(X[:, :3]), r"fails on inputs of shape \(8, 3\)"),
    "no batch": (lambda: probed(X[0]), r"layers that give \(4, \.\.\.\) for 4 inputs"),
    "no inputs": (lambda: probed(X[:0]), r"tensor of M inputs, batch first, found \(0, 4\)"),
    "empty": (lambda: probed(()), "tensor of M inputs, batch first"),
    "stacked": (lambda: probed(X, {"0.weight": torch.zeros(2, 6, 4)}), r"0\.weight with shape \(6, 4\).*\(2, 6, 4\)"),
    "unknown": (lambda: probed(X, {"x.y": X}), r"that the model has, found x\.y"),
    "graph": (lambda: probed(X, graph="chain"), r"0\.weight with shape \(4, 2, 3, 3\)"),
    "fewer": (lambda: read_by(readout("ng_t", 8), WHOLE[:5]), r"shape \(8, 19\), found \(5, 19\)"),
    "neurons": (lambda: read_by(readout("ng_gnn", 8), WHOLE[:, 1:]), r"shape \(8, 19\), found \(8, 18\)"),
    "none": (lambda: read_by(readout("ng_gnn", 8), None), r"probes=8 expected .* \(8, 19\), found None"),
    "unasked": (lambda: read_by(plain("ng_gnn"), WHOLE), r"probes=0 expected .* None, found \(8, 19\)"),
    "metanet": (lambda: read_by(plain("axisnet"), WHOLE), "ng_gnn or ng_t with probes=M.*found AxisNet"),
    "size": (lambda: make_rule("ng_t", probes=-1), "probes: expected a number at least 0, found -1"),
    "rule": (lambda: stepped(make_rule("ng_gnn", probes=4)), r"probes=4 expected .* \(4, 19\), found None"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises((GraphError, ConfigError), match=message):
        call()


class Inr(nn.Module):
    """An implicit network: a point of the plane to a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(6 * self.first(x)))


HIDDEN_POINT = torch.tensor([[0.4, -0.3]])


def implicit_networks(graph: ParameterGraph, count: int, seed: int) -> dict[str, Tensor]:
    generator = seeded(seed)
    networks = {
        name: torch.randn(count, *spec.shape, generator=generator) / spec.shape[-1] ** 0.5
        for name, spec in graph.parameters.items()
    }
    return {**networks, "last.bias": 0.1 * networks["last.bias"]}


def share_explained(probes: int, learn_inputs: bool = True, steps: int = 60) -> float:
    """R^2, on networks never seen, of what a readout learns to say of their value at a point it is not told."""
    torch.manual_seed(0)
    model = Inr()
    graph = ParameterGraph.trace(model, (HIDDEN_POINT,))
    read = NetworkReadout("ng_gnn", 1, 4, 16, {"width": 8, "layers": 1, "probes": probes})
    inputs = nn.Parameter(2 * torch.rand(probes, 2) - 1)
    learned = [*read.parameters(), *([inputs] if probes and learn_inputs else [])]
    optimizer = torch.optim.Adam(learned, lr=1e-2)

    def predict(one: dict[str, Tensor]) -> Tensor:
        return read(graph, one, probe(model, graph, inputs, one) if probes else None)[0]

    def target(one: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, one, (HIDDEN_POINT,))[0, 0]

    for step in range(steps):
        networks = implicit_networks(graph, 64, step)
        loss = (torch.vmap(predict)(networks) - torch.vmap(target)(networks)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    networks = implicit_networks(graph, 1000, 10_000)
    with torch.no_grad():
        values = torch.vmap(target)(networks)
        error = (torch.vmap(predict)(networks) - values).square().mean()
    return 1 - (error / values.var()).item()


def test_learned_probes_show_what_weights_do_not() -> None:
    """The inputs find the point; random ones tell less, and weights alone nothing."""
    learned, random, none = share_explained(4), share_explained(4, learn_inputs=False), share_explained(0)
    assert learned > 0.9
    assert none < 0.2
    assert none < random < learned - 0.1


class Slow(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(x)


def test_threads_that_share_a_model_do_not_read_each_others_networks() -> None:
    model, inputs = Slow(2, 2), torch.eye(2)
    networks = [{"weight": torch.full((1, 2, 2), float(n)), "bias": torch.zeros(1, 2)} for n in range(4)]
    graph = ParameterGraph.trace(model, (inputs,))

    def said(params: dict[str, Tensor]) -> tuple[Any, Any]:
        return run_each(model, inputs, params).tolist(), probe_each(model, graph, inputs, params).tolist()

    alone = [said(params) for params in networks]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(said, networks)) == alone
