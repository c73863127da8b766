"""The unroll: equal to networks trained one by one, and its derivatives equal to finite differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.inner.step import Networks, detached
from lopt.inner.unroll import unroll
from lopt.rules import LearnedRule
from lopt.rules.base import Rule, State
from tests.helpers import TinyTask, flat_state, seeded, small_rule

COUNT, STEPS = 3, 5
ORDERS = {"second order": True, "first order": False}
MODES = [
    pytest.param({"second_order": second, "rematerialise": again}, id=f"{name}{', rematerialised' * again}")
    for name, second in ORDERS.items()
    for again in (False, True)
]


def tiny(rule: Rule, seed: int = 0, task: TinyTask | None = None) -> tuple[TinyTask, Networks, list[Tensor]]:
    """Networks that know their horizon or do not, and batches for them, in float64."""
    task = task or TinyTask(dtype=torch.float64)
    generator = seeded(seed)
    params = task.init(COUNT, generator)
    told = torch.tensor([0.0, 10.0, 3.0], dtype=torch.float64)
    networks = Networks(params, torch.vmap(rule.on(task.graph).init)(params, told))
    return task, networks, [task.sample("train", COUNT, generator) for _ in range(STEPS + 1)]


def pick(tree: Any, index: int) -> Any:
    return {
        key: pick(value, index) if isinstance(value, dict) else value[index] for key, value in tree.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_equals_networks_trained_one_by_one(mode: dict[str, bool]) -> None:
    rule = small_rule()
    task, networks, batches = tiny(rule)
    result = unroll(rule.on(task.graph), task, networks, batches, **mode)
    assert result.losses.shape == (STEPS + 1, COUNT)
    bound = rule.on(task.graph)
    for index in range(COUNT):
        params, state = pick(networks.params, index), pick(networks.state, index)
        losses = []
        for batch in batches[:-1]:
            grads, loss = torch.func.grad_and_value(task.loss)(params, batch[index])
            losses.append(loss)
            params, state = bound.update(grads, state, params)
        losses.append(task.loss(params, batches[-1][index]))
        close(result.losses[:, index], torch.stack(losses))
        close(pick(result.networks.params, index), params)
        close(flat_state(pick(result.networks.state, index)), flat_state(state))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def weighted(losses: Tensor) -> Tensor:
    """Every loss counts, each differently."""
    return (losses * torch.linspace(1, 2, losses.numel(), dtype=losses.dtype).view_as(losses)).sum()


def probes(gradient: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Directions in the space of meta-parameters: the rate, one entry each of some tensors, and all at once."""
    zero = {name: torch.zeros_like(value) for name, value in gradient.items()}
    found = {}
    for name in (
        "log_rate",
        "metanet.head.scalar",
        "metanet.kind_embedding",
        "metanet.layers.1.neuron.weight",
    ):
        one = torch.zeros_like(gradient[name])
        one.view(-1)[gradient[name].abs().argmax()] = 1.0
        found[name] = {**zero, name: one}
    generator = seeded(9)
    whole = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in gradient.items()}
    return {**found, "all": whole}


def assert_slopes(gradient: Mapping[str, Tensor], rule: LearnedRule, objective: Any) -> None:
    """The gradient's component in each probe against (f(x + h) - f(x - h)) / 2h, whose error is of order h^2."""
    start = {name: p.detach().clone() for name, p in rule.named_parameters()}
    for name, probe in probes(gradient).items():
        h, values = 1e-6, []
        for sign in (1, -1):
            rule.load_state_dict({n: p + sign * h * probe[n] for n, p in start.items()})
            value = objective()
            values.append(value.item() if isinstance(value, Tensor) else value)
        rule.load_state_dict(start)
        expected = (values[0] - values[1]) / (2 * h)
        found = sum((gradient[n] * value).sum().item() for n, value in probe.items())
        assert abs(expected) > 1e-5, f"{name} has an effect"
        assert found == pytest.approx(expected, rel=1e-5, abs=2e-9), name


def gradient_of(outer: Tensor, rule: LearnedRule) -> dict[str, Tensor]:
    named = dict(rule.named_parameters())
    return dict(zip(named, torch.autograd.grad(outer, list(named.values())), strict=True))


@pytest.mark.parametrize("rematerialise", [False, True])
@pytest.mark.parametrize(
    "directions", [("adam", "slow", "gradient", "factored", "momentum", "parameter"), ("orthogonal",)]
)
def test_second_order_is_the_finite_difference(rematerialise: bool, directions: tuple[str, ...]) -> None:
    rule = small_rule(directions=directions, rate=0.02)
    task, networks, batches = tiny(rule)

    def objective() -> Tensor:
        mode = {"second_order": True, "rematerialise": rematerialise}
        return weighted(unroll(rule.on(task.graph), task, networks, batches, **mode).losses)

    assert_slopes(gradient_of(objective(), rule), rule, objective)


@pytest.mark.parametrize("rematerialise", [False, True])
def test_first_order_is_the_finite_difference_with_gradients_held(rematerialise: bool) -> None:
    """Of the objective in which every inner gradient keeps its recorded value g, and L is L + <g, p - p'>."""
    rule = small_rule(rate=0.02)
    task, networks, batches = tiny(rule)
    recorded = record(rule, task, networks, batches)

    def objective() -> Tensor:
        bound = rule.on(task.graph)
        (params, state), losses = networks, []
        for grads, at, loss in recorded:
            losses.append(loss + sum(((params[n] - at[n]) * grads[n]).flatten(1).sum(1) for n in params))
            params, state = torch.vmap(bound.update)(grads, state, params)
        losses.append(torch.vmap(task.loss)(params, batches[-1]))
        return weighted(torch.stack(losses))

    outcome = unroll(
        rule.on(task.graph), task, networks, batches, second_order=False, rematerialise=rematerialise
    )
    first = gradient_of(weighted(outcome.losses), rule)
    assert_slopes(first, rule, objective)
    second = gradient_of(weighted(unroll(rule.on(task.graph), task, networks, batches).losses), rule)
    difference = (first["log_rate"] - second["log_rate"]).abs() / second["log_rate"].abs()
    assert difference > 1e-3, "the two orders are different things"


Record = list[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]]


def record(rule: LearnedRule, task: TinyTask, networks: Networks, batches: list[Tensor]) -> Record:
    """(gradients, parameters, losses) before each step."""
    (params, state), found = networks, []
    with torch.no_grad():
        for batch in batches[:-1]:
            grads, loss = torch.vmap(torch.func.grad_and_value(task.loss))(params, batch)
            found.append((grads, params, loss))
            params, state = torch.vmap(rule.on(task.graph).update)(grads, state, params)
    return found


def test_a_truncation_begins_where_the_last_one_ended() -> None:
    """Values as in one long unroll; the derivative sees this truncation alone."""
    rule = small_rule(rate=0.02)
    task, networks, batches = tiny(rule)
    bound = rule.on(task.graph)
    whole = unroll(bound, task, networks, batches)
    first = unroll(bound, task, networks, batches[:3])
    middle = detached(first.networks)
    assert not any(
        value.requires_grad for value in [*middle.params.values(), *flat_state(middle.state).values()]
    )
    second = unroll(bound, task, middle, batches[2:])
    close(torch.cat([first.losses[:2], second.losses]).detach(), whole.losses.detach())
    close(second.networks.params, whole.networks.params)

    def objective() -> Tensor:
        return weighted(unroll(rule.on(task.graph), task, middle, batches[2:]).losses)

    assert_slopes(gradient_of(objective(), rule), rule, objective)


class FlatTask(TinyTask):
    """A tiny network whose loss is multiplied by a factor, and whose hidden neurons can all be dead."""

    def __init__(self, factor: float, shift: float = 0.0, spread: float = 1.0) -> None:
        super().__init__(dtype=torch.float32, spread=spread)
        self.factor, self.shift = factor, shift

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        hidden = torch.relu(batch @ params["w"].T + params["b"] - self.shift)
        return self.factor * (hidden @ params["v"].T - torch.tanh(batch @ self.target)).square().mean()


EXTREMES = {
    "no gradient": FlatTask(0.0),
    "huge gradients": FlatTask(1e10),
    "tiny gradients": FlatTask(1e-30),
    "denormal gradients": FlatTask(1e-41),
    "dead neurons": FlatTask(1.0, shift=1e3),
    "zero parameters": FlatTask(1.0, spread=0.0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", list(EXTREMES))
def test_meta_gradients_are_finite_at_extremes(case: str, mode: dict[str, bool]) -> None:
    task = EXTREMES[case]
    rule = small_rule(scale=0.2).float()
    bound = rule.on(task.graph)
    params = task.init(COUNT, seeded(0))
    networks = Networks(params, torch.vmap(bound.init)(params, torch.tensor([0.0, 2.0, 1e6])))
    batches = [task.sample("train", COUNT, seeded(step)) for step in range(STEPS + 1)]
    result = unroll(bound, task, networks, batches, **mode)
    assert torch.isfinite(result.losses).all()
    initial = result.losses[0].detach().clamp(min=1e-8)
    gradient = gradient_of((result.losses / initial).mean(), rule)
    assert all(torch.isfinite(value).all() for value in gradient.values())


def test_meta_gradients_are_finite_when_the_first_gradient_vanishes() -> None:
    """At the very minimum of a bowl: curvature one, gradient zero, where scale-free features have no slope."""

    class Bowl(TinyTask):
        def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
            return sum(0.5 * p.square().sum() for p in params.values())

    task, rule = Bowl(spread=0.0), small_rule(scale=0.2).float()
    bound = rule.on(task.graph)
    params = task.init(COUNT, seeded(0))
    state: State = torch.vmap(bound.init)(params)
    batches = [task.sample("train", COUNT, seeded(step)) for step in range(STEPS + 1)]
    gradient = gradient_of(unroll(bound, task, Networks(params, state), batches).losses.mean(), rule)
    assert all(torch.isfinite(value).all() for value in gradient.values())
