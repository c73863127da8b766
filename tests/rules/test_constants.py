"""Constants that are meta-learned: nothing while they are off or at zero, and what they say else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import CLASSES
from lopt.numerics.schedules import annealing
from lopt.rules import LearnedRule, LearnedRuleConfig, load_rule, make_rule, save_rule
from lopt.rules.constants import CONSTANTS, SPEED, horizon_features
from tests.helpers import NETWORKS, flat_state, mlp, relative_error, seeded, small_rule
from tests.rules.test_learned import equivariance_error

OPTIONS: dict[str, Any] = {
    "directions": ("adam", "slow", "gradient"), "update_form": "preconditioned", "decays": (0.9, 0.99), "rate": 0.05,
    "scales": {"matrix": 0.35}, "relative": True, "warm_up": 0.1, "fade": 100.0, "weight_decay": 0.1,
    "decay_horizon": 1500.0, "pace": 0.3, "whitening": {"every": 2},
}  # fmt: skip


def rule_of(*constants: str, **options: Any) -> LearnedRule:
    torch.manual_seed(0)
    rule = make_rule("tensor_mlp", **{**OPTIONS, "constants": constants, **options})
    assert isinstance(rule, LearnedRule)
    return rule.double()


def trained(rule: LearnedRule, total: float | None = 20.0, steps: int = 20) -> tuple[Any, Any]:
    network = mlp()
    bound = rule.on(network.graph)
    params = {name: p.double() for name, p in network.params.items()}
    state = bound.init(params, total)
    for t in range(steps):
        noise = {n: torch.randn(p.shape, generator=seeded(t), dtype=p.dtype) for n, p in params.items()}
        params, state = bound.update({n: p.sin() + noise[n] for n, p in params.items()}, state, params)
    return params, state


@pytest.mark.parametrize("total", [None, 20.0, 1000.0])
def test_fresh_constants_change_nothing(total: float | None) -> None:
    """Not the steps, but for rounding, and not what is remembered for each parameter."""
    off, on = trained(rule_of(), total), trained(rule_of(*CONSTANTS), total)
    assert relative_error(on[0], off[0]) < 1e-12
    sizes = [{name: value.shape for name, value in flat_state(state).items()} for _, state in (off, on)]
    assert sizes[0] == sizes[1]


def test_a_rule_without_them_has_the_meta_parameters_that_it_had() -> None:
    assert not [name for name, _ in rule_of().named_parameters() if "constants" in name]
    count = sum(p.numel() for p in rule_of(*CONSTANTS).constants.parameters())
    assert count == sum(CONSTANTS.values()) == 37


@pytest.mark.parametrize("total", [None, 20.0])
def test_every_constant_changes_the_steps_and_has_a_finite_gradient(total: float | None) -> None:
    rule = rule_of(*CONSTANTS)
    loss = torch.stack([p.square().sum() for p in trained(rule, total)[0].values()]).sum()
    assert rule.constants.weights is not None
    (flat,) = torch.autograd.grad(loss, [rule.constants.weights])
    slopes = flat.split(list(CONSTANTS.values()))
    classes = {"matrix", "output", "vector"}
    for name, slope in zip(CONSTANTS, slopes, strict=True):
        assert slope.isfinite().all()
        there = name.removesuffix("_rate") in classes or not name.endswith("_rate")
        if total is None:  # nothing is known of the horizon, and there is no schedule to be moved
            assert bool(slope[0]) == (there and name not in ("warm_up", "cool_down"))
            assert (slope[1:] == 0).all()
        else:
            assert (slope != 0).all() == there


@pytest.mark.parametrize("name", ["second_decay", "momentum_decay"])
@pytest.mark.parametrize("total", [None, 40.0, 3000.0])
def test_a_learned_decay_is_the_constant_that_it_says(name: str, total: float | None) -> None:
    """As if it stood in the config: bias corrections, too."""
    rule = rule_of(name)
    with torch.no_grad():
        rule.constants.of(name).copy_(torch.tensor([-0.2, 0.1], dtype=torch.float64))
    length = 0.0 if total is None else max(-1.0, math.log10(total / 300))
    start = 0.999 if name == "second_decay" else 0.9
    decay = 1 / (1 + (1 - start) / start * math.exp(SPEED * (0.2 - 0.1 * length)))
    options = {"second_decay": decay} if name == "second_decay" else {"decays": (decay, 0.99)}
    assert relative_error(trained(rule, total)[0], trained(rule_of(**options), total)[0]) < 1e-12
    assert relative_error(trained(rule, total)[0], trained(rule_of(), total)[0]) > 1e-5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("matrix_rate", {"scales": {"matrix": 0.35 * math.e}}),
        ("vector_rate", {"scales": {"matrix": 0.35, "vector": math.e}}),
        ("weight_decay", {"weight_decay": 0.1 * math.e}),
        ("warm_up", {"warm_up": 1 / (1 + 9 / math.e)}),
    ],
)
def test_a_learned_constant_is_the_one_of_the_config(name: str, options: dict[str, Any]) -> None:
    rule = rule_of(name)
    with torch.no_grad():
        rule.constants.of(name)[0] = 1 / SPEED
    assert relative_error(trained(rule)[0], trained(rule_of(**options))[0]) < 1e-12


def test_features_of_the_horizon() -> None:
    steps, horizon = (
        torch.tensor([1.0, 16.0, 31.0, 5.0, 5.0, 5.0]),
        torch.tensor([30.0, 30, 30, 0, 3000, 1e9]),
    )
    one, length, over = horizon_features(steps, horizon)
    assert one.tolist() == [1.0] * 6
    torch.testing.assert_close(length, torch.tensor([-1.0, -1, -1, 0, 1, 2]))
    torch.testing.assert_close(over, torch.tensor([-1.0, 0, 1, 0, 8 / 3000 - 1, -1]))


def test_powers_of_the_annealing() -> None:
    steps, horizon = torch.arange(1.0, 101.0), torch.full((100,), 100.0)
    plain, squared = annealing(steps, horizon), annealing(steps, horizon, power=torch.full((100,), 2.0))
    torch.testing.assert_close(squared, plain**2)
    assert torch.equal(annealing(steps, horizon, power=1.0), plain)
    learned = annealing(steps, horizon, torch.full((100,), 0.1))
    torch.testing.assert_close(learned, annealing(steps, horizon, 0.1))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_training_with_learned_constants_is_equivariant(name: str) -> None:
    options = {key: value for key, value in OPTIONS.items() if key not in ("decays", "scales")}
    rule = small_rule(scale=0.1, constants=tuple(CONSTANTS), **options)
    assert all((p != 0).all() for p in rule.constants.parameters())
    assert equivariance_error(rule, NETWORKS[name]()) < 1e-9


def test_under_vmap_every_network_has_its_own() -> None:
    rule, graph = (
        rule_of("second_decay", "matrix_rate", "warm_up"),
        ParameterGraph.untied([("w", torch.ones(3, 2))]),
    )
    own = {name: torch.stack([p, p + 0.05]) for name, p in rule.named_parameters()}
    params = {"w": torch.randn(2, 3, 2, generator=seeded(0), dtype=torch.float64)}
    total = torch.tensor([20.0, 2000.0])

    def one(own: dict[str, Tensor], params: dict[str, Tensor], total: Tensor) -> Tensor:
        bound = rule.on(graph, own)
        state = bound.init(params, total)
        for _ in range(3):
            params, state = bound.update(params, state, params)
        return params["w"]

    together = torch.vmap(one)(own, params, total)
    for i in (0, 1):
        alone = one({n: p[i] for n, p in own.items()}, {"w": params["w"][i]}, total[i])
        torch.testing.assert_close(together[i], alone)


def test_they_are_saved_and_loaded(tmp_path: Any) -> None:
    rule = rule_of("second_decay", "output_rate").float()
    with torch.no_grad():
        rule.constants.of("second_decay").fill_(0.25)
    save_rule(rule, tmp_path / "rule.safetensors")
    again = load_rule(tmp_path / "rule.safetensors")
    assert again.config == rule.config
    assert again.gauges()["constants/second_decay"] == pytest.approx(2.5)
    assert again.gauges()["constants/output_rate"] == 0


def test_names_of_rates_are_the_classes() -> None:
    assert {name for name in CONSTANTS if name.endswith("_rate")} == {f"{found}_rate" for found in CLASSES}


@pytest.mark.parametrize(
    "options",
    [
        {"constants": ("third_decay",)},
        {"constants": ("second_decay", "second_decay")},
        {"constants": ("warm_up",)},
        {"constants": ("weight_decay",)},
        {"constants": ("relative",)},
        {"constants": ("cool_down",), "anneal": False},
        {"constants": ("momentum_decay",), "update_form": "momentum"},
    ],
)
def test_bad_constants_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="constants"):
        LearnedRuleConfig(**options)
