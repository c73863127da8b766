"""Rules by name."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

import lopt
from lopt.errors import ConfigError, GraphError
from lopt.graph import ParameterGraph
from lopt.metanets import METANETS
from lopt.rules import LearnedRule, make_rule, names
from lopt.rules.base import Rule
from lopt.rules.classical import CLASSICAL


def test_names_are_metanets_and_classical_rules_once_each() -> None:
    assert set(names()) == {*METANETS, *CLASSICAL}
    assert len(names()) == len(set(names()))
    assert lopt.make_rule is make_rule


@pytest.mark.parametrize("name", list(CLASSICAL))
def test_every_classical_name_makes_a_rule_that_steps(name: str) -> None:
    rule = make_rule(name)
    assert isinstance(rule, Rule)
    params = {"w": torch.ones(2, 3), "b": torch.zeros(2)}
    bound = rule.on(ParameterGraph.untied(params.items()))
    new, _ = bound.update(params, bound.init(params), params)
    assert torch.isfinite(new["w"]).all()
    assert not torch.equal(new["w"], params["w"])


@pytest.mark.parametrize("name", ["adam", "tensor_mlp"])
def test_a_bound_rule_names_what_it_lacks(name: str) -> None:
    rule, params = make_rule(name), {"w": torch.ones(2, 3), "b": torch.zeros(2)}
    bound, some = rule.on(ParameterGraph.untied(params.items())), {"w": params["w"]}
    state = bound.init(params)
    for what, step in {
        "params": lambda: bound.init(some),
        "grads": lambda: bound.update(some, state, params),
        "state": lambda: bound.update(params, {}, params),
    }.items():
        with pytest.raises(GraphError, match=f"{what}: expected those of all parameters .* found none of"):
            step()
    with pytest.raises(GraphError, match="graph: expected a ParameterGraph, found Linear"):
        rule.on(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_options_reach_the_rule_and_its_metanet() -> None:
    rule = make_rule("axisnet", rate=1e-2, decays=[0.5, 0.8], directions=["adam"], width=3, layers=1)
    assert isinstance(rule, LearnedRule)
    assert rule.config.rate == 1e-2
    assert rule.config.decays == (0.5, 0.8)
    assert dict(rule.config.metanet) == {
        "name": "axisnet",
        "width": 3,
        "neuron_width": 32,
        "layers": 1,
        "paths": 0,
    }
    assert rule.config.directions == {"adam": 1.0}
    assert rule.metanet.layers[0].update.scalar.shape[0] == 3  # type: ignore[index,union-attr]
    assert make_rule("adamw", lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("axis_net", {}, "expected one of axisnet, .*found 'axis_net'"),
        (None, {}, "expected one of"),
        ("axisnet", {"widht": 3}, "metanet.widht: unknown key; did you mean 'width'"),
        ("axisnet", {"raet": 3.0}, "metanet.raet: unknown key"),
        ("axisnet", {"paths": 10**20}, "metanet.paths: expected a number at most 4096"),
        ("axisnet", {"width": 0}, "width"),
        ("axisnet", {"layers": 1.5}, "layers"),
        ("axisnet", {"rate": -1.0}, "rate"),
        ("axisnet", {"rate": "fast"}, "rate"),
        ("axisnet", {"decays": 0.9}, "decays"),
        ("axisnet", {"decays": ["a"]}, "decays"),
        ("axisnet", {"directions": "adam"}, "directions"),
        ("axisnet", {"metanet_options": {"width": 3}}, "metanet_options"),
        ("adamw", {"lrate": 0.1}, "AdamW: lrate: unknown key; expected one of lr, betas"),
        ("adamw", {"lr": -1.0}, "lr"),
        ({"name": "axisnet", "width": 8}, {}, "expected one of axisnet, .* options go beside the name"),
    ],
)
def test_mistakes_are_named(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_rule(name, **options)


@pytest.mark.parametrize("name", METANETS)
def test_a_rule_with_its_config_can_be_pickled(name: str) -> None:
    rule = make_rule(name)
    assert pickle.loads(pickle.dumps(rule)).config == rule.config
