"""Reading a property of a network off its weights: invariant, vmap-able, and able to see what only neurons show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lopt.weight_space.readout import NetworkReadout, pool_tensors
from tests.helpers import hand_graph, randomised, seeded
from tests.metanets.cases import CASES, PAIRS, network


def readout(case: str, outputs: int = 3) -> NetworkReadout:
    torch.manual_seed(0)
    entry = CASES[case]
    net = NetworkReadout(entry.metanet, outputs, 3, 8, entry.options).double()
    return randomised(net, scale=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_readout_is_invariant(case: str, name: str) -> None:
    net, graph = readout(case), network(name).graph
    params = network(name).params
    moved = graph.permute(params, graph.random_permutation(seeded(1)))
    first = next(iter(params))
    half = {**params, first: moved[first]}
    found = net(graph, params)
    assert found.shape == (3,)
    assert (net(graph, moved) - found).abs().max() < 1e-9
    if CASES[case].knows_neurons:
        assert (net(graph, half) - found).abs().max() > 1e-7, "half a permutation is another network"


@pytest.mark.parametrize("case", CASES)
def test_readout_vmaps_and_has_finite_derivatives_at_zero(case: str) -> None:
    net, graph = readout(case), network(CASES[case].networks[0]).graph
    params = network(CASES[case].networks[0]).params
    many = {name: torch.stack([p, 0 * p]) for name, p in params.items()}
    found = torch.vmap(lambda one: net(graph, one))(many)
    torch.testing.assert_close(found[0], net(graph, params))
    zeros = {name: torch.zeros_like(p).requires_grad_() for name, p in params.items()}
    for derivative in torch.autograd.grad(net(graph, zeros).sum(), list(zeros.values())):
        assert torch.isfinite(derivative).all()


def test_pooling_by_hand() -> None:
    graph = hand_graph({"h": 2, "x": 3}, {"w": "weight out:h in:x", "t": "other"})
    values = torch.arange(7.0)[None]
    w = torch.arange(6.0).reshape(2, 3)
    expected = [w.mean(), w.square().mean().sqrt(), w.mean(1).square().mean().sqrt(), 6.0, 6.0, 6.0]
    torch.testing.assert_close(pool_tensors(graph, values).T.flatten(), torch.tensor(expected))


HIDDEN = 6
PAIRED = hand_graph(
    {"INPUT": 4, "hidden": HIDDEN, "OUTPUT": 4},
    {"w": "weight out:hidden in:INPUT", "v": "weight out:OUTPUT in:hidden"},
)


def paired_networks(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Half of the networks read each neuron as strongly as they feed it, half weakly: the tensors alone look alike."""
    generator = seeded(seed)
    strength = torch.exp(torch.linspace(-1.5, 1.5, HIDDEN))
    orders = torch.stack([torch.randperm(HIDDEN, generator=generator) for _ in range(count)])
    labels = torch.arange(count) % 2
    feeding = strength[orders]
    reading = torch.where(labels[:, None] == 1, feeding, 1 / feeding)
    return {
        "w": feeding[:, :, None] * torch.randn(count, HIDDEN, 4, generator=generator),
        "v": reading[:, None, :] * torch.randn(count, 4, HIDDEN, generator=generator),
    }, labels


def accuracy_after_training(case: str, steps: int = 60) -> float:
    torch.manual_seed(0)
    entry = CASES[case]
    net = NetworkReadout(entry.metanet, 2, 4, 16, entry.tiny or entry.options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    predict = torch.vmap(lambda one: net(PAIRED, one))
    for step in range(steps):
        networks, labels = paired_networks(64, step)
        loss = torch.nn.functional.cross_entropy(predict(networks), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    networks, labels = paired_networks(512, 10_000)
    with torch.no_grad():
        return (predict(networks).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("case", ["axisnet", "unf", "nfn", pytest.param("ng_gnn", marks=pytest.mark.slow)])
def test_who_knows_neurons_sees_which_are_strong_on_both_sides(case: str) -> None:
    assert accuracy_after_training(case) > 0.8


def test_who_knows_none_does_not() -> None:
    assert accuracy_after_training("deepsets") < 0.62
