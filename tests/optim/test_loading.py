"""What is loaded is looked at as a whole first: one line says what does not fit, and nothing has changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lopt
from lopt.errors import ConfigError
from lopt.rules.base import OWN
from lopt.rules.classical import CLASSICAL, TorchOptim
from tests.optim.kit import give_gradients, learned, mlp, same, train, values

Damage = Callable[[dict[str, Any]], Any]


def trained(**options: Any) -> tuple[nn.Module, lopt.LearnedOptimizer]:
    model = mlp()
    optimizer = learned(model.named_parameters(), **options)
    train(model, optimizer)
    return model, optimizer


def entry(key: str, value: Any) -> Damage:
    return lambda saved: saved["state"][0].update({key: value})


def option(key: str, value: Any) -> Damage:
    return lambda saved: saved["param_groups"][0].update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: saved.clear(), "state_dict.param_groups: expected a list, found 'nothing'"),
        (lambda saved: saved.pop("state"), "state_dict.state: expected a dict"),
        (lambda saved: saved.update(state=[]), "state_dict.state: expected a dict"),
        (lambda saved: saved.update(param_groups=[3]), "param_groups.0: expected a dict"),
        (lambda saved: saved["param_groups"].append({"params": []}), r"groups of \[4\] parameters, found \[4, 0\]"),
        (option("params", [[0], 1, 2, 3]), "param_groups.0.params: expected a list of numbers"),
        (option("params", [0, 0, 2, 3]), "param_groups: expected each parameter once"),
        (option("lr", "fast"), "state_dict.param_groups.0.lr: expected a number"),
        (option("lr", math.nan), "param_groups.0.lr: expected a finite number"),
        (option("lr", torch.ones((), device="meta")), "param_groups.0.lr: expected a number"),
        (option("weight_decay", [[1], [2, 3]]), "param_groups.0.weight_decay: expected a number"),
        (option("maximize", "no"), "param_groups.0.maximize: expected true or false"),
        (option("param_names", ["2.weight", "0.bias", "0.weight", "2.bias"]), "expected '0.weight' at its place"),
        (option("param_names", 7), "expected a list of names"),
        (lambda saved: saved["state"].update({9: {}}), r"expected parameters of the groups, .*, found 9"),
        (lambda saved: saved["state"].update({0: "gone"}), "state_dict.state.0: expected a dict"),
        (entry("momenta", torch.ones(3, 8, 6, device="meta")), "state.0.weight.momenta: expected a dense tensor"),
        (entry("momenta", torch.ones(3, 8, 6).to_sparse()), "state.0.weight.momenta: expected a dense tensor"),
        (entry("momenta", torch.ones(3, 8, 6).long()), "state.0.weight.momenta: expected torch.float32"),
        (entry("step", torch.tensor(-1.0)), "state.0.weight.step: expected a number from 0, found -1"),
        (entry("step", torch.tensor(math.nan)), "state.0.weight.step: expected a number from 0, found nan"),
        (entry("momenta", 10**5000), "expected this rule's .* found .*'momenta': 'int'"),
        (entry("trained", torch.ones(2)), r"expected this rule's .* found .*'trained': \(2,\)"),
        (lambda saved: saved.update(skipped_steps="two"), "skipped_steps: expected a whole number"),
        (lambda saved: saved.update(skipped_steps=10**30), "skipped_steps: expected a whole number"),
        (lambda saved: saved.update(skipped_steps=torch.ones(2)), "skipped_steps: expected a whole number"),
        (lambda saved: saved.update(loss_guard=3), "state_dict.loss_guard: expected a dict"),
        (lambda saved: saved["loss_guard"].update(count=-1), "loss_guard.count: expected a number from 0"),
        (lambda saved: saved["loss_guard"].update(smooth=math.nan), "loss_guard.smooth: expected a finite"),
        (lambda saved: saved["loss_guard"].update(best="low"), "loss_guard.best: expected a finite"),
    ],
)  # fmt: skip
def test_damage_is_named_and_changes_nothing(damage: Damage, message: str) -> None:
    model = mlp()
    optimizer = learned(model.named_parameters(), loss_guard=True)
    give_gradients(model)
    for loss in (3.0, 2.0):
        optimizer.observe(loss)
        optimizer.step()
    damaged, before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    damage(damaged)
    with pytest.raises(ConfigError, match=message):
        optimizer.load_state_dict(damaged)
    assert same(optimizer.state_dict(), before)


@pytest.mark.parametrize("saved", [None, [], "state", 3])
def test_what_is_no_dict_is_refused(saved: Any) -> None:
    with pytest.raises(ConfigError, match="state_dict: expected a dict"):
        trained()[1].load_state_dict(saved)


def test_lists_that_became_tuples_on_the_way_are_read() -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"] = tuple(
        {**group, "params": tuple(group["params"])} for group in saved["param_groups"]
    )
    optimizer.load_state_dict(saved)
    train(model, optimizer)


def test_an_lr_below_zero_is_loaded() -> None:
    """Trainers whose schedule has run past its end (Stable-Baselines3) save what they have."""
    model, optimizer = trained()
    optimizer.param_groups[0]["lr"] = -0.02
    other = learned(model.named_parameters())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == -0.02


def test_names_of_a_wrapped_model_are_the_same_names() -> None:
    _, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    group = saved["param_groups"][0]
    group["param_names"] = [f"module.{name}" for name in group["param_names"]]
    optimizer.load_state_dict(saved)


def test_what_wrappers_keep_beside_the_state_comes_back() -> None:
    """Lookahead keeps slow weights with each parameter, others something of the whole run under a word."""
    model, optimizer = trained()
    for p in model.parameters():
        optimizer.state[p] |= {"slow": p.detach().clone(), "since": 3, 7: None}
    optimizer.state["whole"] = {"scale": 2.0}  # type: ignore[index]
    train(model, optimizer)
    again = learned(mlp().named_parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.state["whole"] == {"scale": 2.0}  # type: ignore[index]
    first, second = optimizer.state[model[0].weight], next(iter(again.state.values()))
    assert first.keys() == second.keys()
    assert torch.equal(first["slow"], second["slow"])
    assert (second["since"], second[7]) == (3, None)


@pytest.mark.parametrize("rule", ["lopt-small", "schedule_free_adamw"])
def test_steps_mind_nothing_that_wrappers_keep(rule: str) -> None:
    """Nor does `eval`, nor a step for which what is not finite in the state is taken as 0."""
    results = []
    for beside in (False, True):
        model, optimizer = trained(rule=rule if rule == "lopt-small" else lopt.make_rule(rule))
        if beside:
            optimizer.state["whole"] = 3  # type: ignore[index, assignment]
            for p in model.parameters():
                optimizer.state[p]["since"] = 3
        optimizer.eval()
        optimizer.train()
        key = "second" if rule == "lopt-small" else "v"
        optimizer.state[model[0].weight][key][0, 0] = torch.nan
        train(model, optimizer)
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", [*CLASSICAL, "axisnet", "lopt-base"])
def test_rules_keep_state_under_names_of_their_own(name: str) -> None:
    model = mlp()
    optimizer = learned(
        model.named_parameters(), rule=lopt.make_rule(name) if name in lopt.rules.names() else name
    )
    train(model, optimizer)
    assert all(state.keys() <= OWN for state in optimizer.state.values())


def test_what_wrappers_keep_as_tensors_is_dense_and_has_values() -> None:
    _, optimizer = trained()
    for value in (torch.zeros(3, device="meta"), torch.zeros(3, 3).to_sparse()):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["slow"] = value
        message = r"state_dict\.state\..*slow: expected a dense tensor with values, found"
        with pytest.raises(ConfigError, match=message):
            optimizer.load_state_dict(saved)


def test_the_state_of_a_parameter_under_another_key_is_no_wrappers() -> None:
    _, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"]["1x"] = saved["state"].pop(1)
    with pytest.raises(
        ConfigError, match=r"state_dict\.state: expected parameters of the groups, .* found '1x'"
    ):
        optimizer.load_state_dict(saved)


def test_state_of_a_rule_that_keeps_more_is_refused() -> None:
    optimizer = learned(mlp().named_parameters(), rule="lopt-small")
    _, larger = trained(rule="lopt-base")
    with pytest.raises(ConfigError, match=r"expected this rule's .* found .*rows_root"):
        optimizer.load_state_dict(larger.state_dict())


def test_a_rule_without_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="found one on the meta device; load or make it anew"):
        learned(mlp().parameters(), rule=lopt.load_rule("lopt-small").to("meta"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_told_of_and_spoil_no_step(value: float) -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][2]["momenta"][0, 1, 2] = value
    with pytest.warns(
        UserWarning, match="state_dict.state.2.weight.momenta: expected finite numbers, found 1 that"
    ):
        optimizer.load_state_dict(saved)
    before = values(model)
    train(model, optimizer, 1)
    assert optimizer.skipped_steps == 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert not same(values(model), before)


def test_foreign_state_before_the_graph_is_known_is_refused_by_the_first_step() -> None:
    _, saved = trained(total_steps=10)
    damaged = copy.deepcopy(saved.state_dict())
    damaged["state"][0]["total_steps"] = torch.ones(3)
    model = mlp()
    late = learned(model.named_parameters(), graph=lopt.trace_on_first_forward(model), total_steps=10)
    late.load_state_dict(damaged)
    with pytest.raises(ConfigError, match="expected this rule's"):
        train(model, late, 1)
    damaged["state"][0]["total_steps"] = "ten"
    model = mlp()
    late = learned(model.named_parameters(), graph=lopt.trace_on_first_forward(model))
    with pytest.raises(ConfigError, match=r"state.0.total_steps: expected a dense tensor"):
        late.load_state_dict(damaged)


def test_state_of_another_torch_optimizer_inside_a_rule_is_refused() -> None:
    """`TorchOptim` begins with no state, so what it should hold is seen by a step."""
    optimizers = {}
    for name in ("Adam", "SGD"):
        model = mlp()
        optimizers[name] = learned(model.parameters(), rule=TorchOptim(name))
        train(model, optimizers[name], 1)
    with pytest.raises(ConfigError, match="expected this rule's"):
        optimizers["SGD"].load_state_dict(optimizers["Adam"].state_dict())
