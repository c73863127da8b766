"""Rules that read logarithms and signs, begin as torch's layers do and keep their rate: those of Neural Graphs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lopt import load_rule, save_rule
from lopt.config import from_mapping
from lopt.errors import ConfigError
from lopt.features import log_sign
from lopt.metanets import METANETS
from lopt.rules import LearnedRule, LearnedRuleConfig
from tests.helpers import flat_state, seeded
from tests.metanets.cases import CASES, network

PLAIN = {
    "inputs": "log_sign", "initial": "torch", "decays": [0.5, 0.9], "update_form": "magnitude",
    "directions": ["gradient"], "rate": 0.01, "learned_rate": False, "factored": False, "anneal": False,
    "max_step": 1e6,
}  # fmt: skip


def made(metanet: Any = "mlp", **config: Any) -> LearnedRule:
    torch.manual_seed(0)
    rule = LearnedRule(from_mapping(LearnedRuleConfig, {**PLAIN, "metanet": metanet, **config}, "rule"))
    return rule.double()


SIGHTED = {
    name: {"name": case.metanet, **case.options}
    for name, case in CASES.items()
    if case.metanet != "tensor_mlp"
}


@pytest.mark.parametrize("case", SIGHTED)
def test_every_metanet_that_sees_scalars_takes_steps_at_once(case: str) -> None:
    rule, net = made(SIGHTED[case]), network("mlp")
    bound = rule.on(net.graph)
    params, state = net.params, bound.init(net.params)
    for _ in range(3):
        after, state = bound.update(torch.func.grad(net.loss)(params), state, params)
        assert all((after[name] - params[name]).abs().max() > 1e-6 for name in params)
        params = after
    assert all(torch.isfinite(value).all() for value in (*params.values(), *flat_state(state).values()))


def test_the_metanet_reads_parameters_gradients_and_sums_without_decay(monkeypatch: Any) -> None:
    rule, net = made(), network("mlp")
    seen: list[tuple[Tensor, Tensor]] = []
    forward = rule.metanet.forward

    def watched(graph: Any, features: Tensor, context: Tensor, memory: Any = None) -> Any:
        seen.append((features, context))
        return forward(graph, features, context, memory)

    monkeypatch.setattr(rule.metanet, "forward", watched)
    bound = rule.on(net.graph)
    params, state = net.params, bound.init(net.params)
    sums = torch.zeros(2, net.graph.numel, dtype=torch.float64)
    for step in range(4):
        grads = {
            name: torch.randn(p.shape, generator=seeded(step), dtype=torch.float64)
            for name, p in params.items()
        }
        g = net.graph.flatten(grads)
        sums = torch.tensor([[0.5], [0.9]], dtype=torch.float64) * sums + g
        expected = log_sign.log_sign_features(net.graph.flatten(params), g, sums)
        params, state = bound.update(grads, state, params)
        torch.testing.assert_close(seen[-1][0], expected)
        assert seen[-1][1].shape == (0, len(params))


def test_steps_are_direction_times_exponential_of_magnitude() -> None:
    """Neither annealed, nor bounded, nor more on a horizon than without: 0.01 d exp(0.01 m)."""
    rule, net = made({"name": "mlp", "width": 5}), network("mlp")
    graph, params = net.graph, net.params
    grads = torch.func.grad(net.loss)(params)
    p, g = graph.flatten(params), graph.flatten(grads)
    raw, _ = rule.metanet(
        graph, log_sign.log_sign_features(p, g, torch.stack([g, g])), p.new_zeros(0, len(params))
    )
    expected = 0.01 * raw[0] * torch.exp(0.01 * raw[1])
    for horizon in (None, 7.0):
        bound = rule.on(graph)
        deltas, _ = bound.delta(grads, bound.init(params, horizon), params)
        torch.testing.assert_close(graph.flatten(deltas).abs(), expected.abs(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", SIGHTED)
def test_maps_begin_as_those_of_torch(case: str) -> None:
    """Within 1 / sqrt(inputs), biases and heads too; the widest of them fill it."""
    rule = made(SIGHTED[case])
    inputs = {
        name: m.in_features if isinstance(m, nn.Linear) else getattr(m, "fan_in", None)
        for name, m in rule.metanet.named_modules()
    }
    linear = {name: count for name, count in inputs.items() if isinstance(count, int) and count}
    assert linear
    for name, count in linear.items():
        module, bound = rule.metanet.get_submodule(name), count**-0.5
        for parameter in module.parameters(recurse=False):
            if parameter.numel():
                assert 0 < parameter.abs().max() <= bound, name
            if parameter.numel() > 60:
                assert parameter.abs().max() > 0.9 * bound, name
                assert abs(parameter.std().item() * math.sqrt(3) / bound - 1) < 0.25, name


def test_an_mlp_begins_as_torch_has_it_layer_by_layer() -> None:
    """Standard deviations of a wide one, beside those of `torch.nn.Linear`, with its inputs in two maps or in one."""
    rule, inputs = made({"name": "mlp", "width": 256}), log_sign.count(2)
    layers = nn.Linear(inputs, 256), nn.Linear(256, 256), nn.Linear(256, 2)
    metanet: Any = rule.metanet
    ours = (
        (metanet.first.scalar.weight, metanet.first.context.bias),
        (metanet.inner[0].weight, metanet.inner[0].bias),
        (metanet.head.weight, None),
    )
    for layer, (weight, bias) in zip(layers, ours, strict=True):
        assert weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.1)
        if bias is not None:
            assert bias.std().item() == pytest.approx(layer.bias.std().item(), rel=0.25)


def test_a_rate_that_is_not_learned_is_no_meta_parameter_and_is_kept_in_the_file(tmp_path: Path) -> None:
    rule = made(rate=0.03)
    assert "log_rate" not in dict(rule.named_parameters())
    assert "log_rate" in dict(made(learned_rate=True).named_parameters())
    assert rule.gauges()["base_rate"] == pytest.approx(0.03)
    save_rule(rule, tmp_path / "rule.safetensors")
    again = load_rule(tmp_path / "rule.safetensors")
    assert again.describe() == rule.describe()
    assert again.gauges()["base_rate"] == pytest.approx(0.03)
    torch.testing.assert_close(again.state_dict(), rule.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("learned_rate", [True, False])
def test_rates_can_be_hastened_whether_learned_or_not(learned_rate: bool) -> None:
    rule, net = made(learned_rate=learned_rate), network("mlp")
    own = {name: p.expand(2, *p.shape) for name, p in rule.named_parameters()}
    hastened = rule.hastened(own, torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))
    grads, state = torch.func.grad(net.loss)(net.params), rule.on(net.graph).init(net.params)
    steps = [
        net.graph.flatten(
            rule.on(net.graph, {name: value[k] for name, value in hastened.items()}).delta(
                grads, state, net.params
            )[0]
        )
        for k in (0, 1)
    ]
    torch.testing.assert_close(steps[1], 3 * steps[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"factored": True}, r"factored: expected false beside inputs: log_sign, found true"),
        ({"metanet": "tensor_mlp"}, r"metanet: expected a metanet that sees scalars, .*found 'tensor_mlp'"),
        ({"inputs": "logs"}, r"inputs"),
        ({"initial": "zero"}, r"initial"),
    ],
)
def test_what_does_not_fit_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**config)


def test_every_metanet_is_tried() -> None:
    assert {metanet["name"] for metanet in SIGHTED.values()} == set(METANETS) - {"tensor_mlp"}
