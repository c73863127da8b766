"""Mlp, Lstm, TensorLstm, TensorMlp and DeepSets against torch's own layers and plain loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.metanets.deepsets import DeepSets
from lopt.metanets.lstm import Lstm, TensorLstm
from lopt.metanets.mlp import Mlp
from lopt.metanets.tensor_mlp import TensorMlp
from tests.helpers import randomised, seeded
from tests.metanets.cases import network

F, C, R = 4, 3, 2


def inputs(graph: ParameterGraph, seed: int = 0) -> tuple[Tensor, Tensor]:
    features = torch.randn(F, graph.numel, generator=seeded(seed), dtype=torch.float64)
    context = torch.randn(C, len(graph.parameters), generator=seeded(seed + 1), dtype=torch.float64)
    return features, context


def with_context(graph: ParameterGraph, features: Tensor, context: Tensor) -> Tensor:
    """(P, F + C): every scalar's features beside its tensor's context."""
    rows, start = [], 0
    for index, spec in enumerate(graph.parameters.values()):
        part = features[:, start : start + spec.numel].T
        rows.append(torch.cat([part, context[:, index].expand(spec.numel, -1)], 1))
        start += spec.numel
    return torch.cat(rows)


def fresh(net: nn.Module) -> Any:
    torch.manual_seed(0)
    return randomised(net.double(), scale=0.3)  # type: ignore[arg-type]


def copy_linear(target: nn.Linear, *weights: Tensor, bias: Tensor) -> None:
    target.weight.data, target.bias.data = torch.cat([w.data for w in weights], 1), bias.data


def test_mlp_is_torchs_own() -> None:
    graph = network("cnn").graph
    net = fresh(Mlp(F, C, R, width=5, layers=3))
    features, context = inputs(graph)
    twin = nn.Sequential(
        nn.Linear(F + C, 5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.ReLU(),
        nn.Linear(5, R),
    )
    first = net.first
    copy_linear(twin[0], first.scalar.weight, first.context.weight, bias=first.context.bias)  # type: ignore[arg-type]
    for layer, ours in zip((twin[2], twin[4], twin[6]), (*net.inner, net.head), strict=True):
        copy_linear(layer, ours.weight, bias=ours.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(
        net(graph, features, context)[0], twin(with_context(graph, features, context)).T
    )


def test_lstm_is_torchs_own_over_time() -> None:
    graph = network("cnn").graph
    net = fresh(Lstm(F, C, R, width=3, layers=2))
    twin = nn.LSTM(F + C, 3, num_layers=2).double()
    layers = [(net.first.scalar.weight, net.first.context.weight), (net.inputs[0].weight,)]
    biases = [net.first.context.bias, net.inputs[0].bias]
    for number, (weights, bias) in enumerate(zip(layers, biases, strict=True)):
        getattr(twin, f"weight_ih_l{number}").data = torch.cat([w.data for w in weights], 1)
        getattr(twin, f"weight_hh_l{number}").data = net.recurrent[number].weight.data
        getattr(twin, f"bias_ih_l{number}").data = bias.data
        offset = torch.zeros(4, 3, dtype=torch.float64)
        offset[1] = 1
        getattr(twin, f"bias_hh_l{number}").data = offset.flatten()
    steps = [inputs(graph, seed) for seed in range(4)]
    expected, _ = twin(torch.stack([with_context(graph, *step) for step in steps]))
    memory = None
    for step, hidden in zip(steps, expected, strict=True):
        raw, memory = net(graph, *step, memory)
        torch.testing.assert_close(raw, net.head.weight @ hidden.T + net.head.bias[:, None])
    assert memory is not None
    assert memory.shape == (net.memory, graph.numel) == (12, graph.numel)


def test_tensor_lstm_walks_over_the_tensors() -> None:
    graph = network("cnn").graph
    net = fresh(TensorLstm(F, C, R, width=4))
    features, context = inputs(graph)
    twin = nn.LSTM(4, 4).double()
    twin.weight_ih_l0.data, twin.weight_hh_l0.data = net.inputs.weight.data, net.recurrent.weight.data
    twin.bias_ih_l0.data = net.inputs.bias.data
    twin.bias_hh_l0.data = torch.tensor([0.0, 1.0, 0.0, 0.0]).double().repeat_interleave(4)
    both = with_context(graph, features, context)
    first = torch.cat([net.first.scalar.weight, net.first.context.weight], 1)
    scalars = torch.relu(both @ first.T + net.first.context.bias)
    parts = scalars.split([spec.numel for spec in graph.parameters.values()])
    heard, _ = twin(torch.stack([part.mean(0) for part in parts]))
    expected = [
        torch.relu(part @ net.scalar.weight.T + net.scalar.bias + net.tensor.weight @ h)
        for part, h in zip(parts, heard, strict=True)
    ]
    raw = torch.cat(expected) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(graph, features, context)[0], raw.T)


def test_deep_sets_see_means_alone() -> None:
    graph = network("cnn").graph
    net = fresh(DeepSets(F, C, R, width=4, layers=1))
    features, context = inputs(graph)
    both = with_context(graph, features, context)
    first = torch.cat([net.first.scalar.weight, net.first.context.weight], 1)
    scalars = torch.relu(both @ first.T + net.first.context.bias)
    parts = scalars.split([spec.numel for spec in graph.parameters.values()])
    overall = torch.stack([part.mean(0) for part in parts]).mean(0)
    layer = net.layers[0]
    own, overalls = layer.pooled.weight.chunk(2, 1)
    expected = [
        torch.relu(part @ layer.own.weight.T + own @ part.mean(0) + overalls @ overall + layer.pooled.bias)
        for part in parts
    ]
    raw = torch.cat(expected) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(graph, features, context)[0], raw.T)


def test_tensor_mlp_is_a_network_for_each_tensor_that_needs_no_features() -> None:
    graph = network("cnn").graph
    net = fresh(TensorMlp(F, C, R, width=4))
    features, context = inputs(graph)
    twin = nn.Sequential(nn.Linear(C, 4), nn.ReLU(), nn.Linear(4, R)).double()
    copy_linear(twin[0], net.first.weight, bias=net.first.bias)
    copy_linear(twin[2], net.head.weight, bias=net.head.bias)
    raw, _ = net(graph, features[:0], context)
    parts = raw.split([spec.numel for spec in graph.parameters.values()], -1)
    for part, expected in zip(parts, twin(context.T), strict=True):
        torch.testing.assert_close(part, expected[:, None].expand_as(part))
