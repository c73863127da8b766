"""Steps that find their own length: what the pace of each tensor follows, and how far it goes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lopt
from lopt.graph import ParameterGraph
from lopt.numerics.schedules import settling
from lopt.rules import LearnedRule, LearnedRuleConfig
from lopt.rules.learned import LONGEST_PACE
from tests.helpers import seeded

PACE, HORIZON = 2.0, 60.0
SHAPE = (8, 6)


def rule_of(**options: object) -> LearnedRule:
    return LearnedRule(
        LearnedRuleConfig.model_validate({"rate": 1e-4, "directions": {"adam": 1.0}, "pace": PACE, **options})
    ).double()


def paces(
    gradient: Callable[[int], Tensor], steps: int, total: float | None = HORIZON, **options: object
) -> list[float]:
    """The logarithms of a tensor's pace after each step."""
    params = {"w": torch.zeros(SHAPE, dtype=torch.float64)}
    bound = rule_of(**options).on(ParameterGraph.untied(params.items()))
    state, found = bound.init(params, total), []
    for t in range(steps):
        params, state = bound.update({"w": gradient(t)}, state, params)
        found.append(state["w"]["pace"].log().item())
    return found


def noise(t: int) -> Tensor:
    return torch.randn(SHAPE, generator=seeded(t), dtype=torch.float64)


@pytest.mark.parametrize("total", [None, HORIZON])
def test_it_is_the_sum_of_cosines_with_the_direction_of_the_steps_before(total: float | None) -> None:
    found, expected = paces(noise, 20, total), [0.0]
    momentum = second = torch.zeros(SHAPE, dtype=torch.float64)
    for t in range(20):
        g, before = noise(t), momentum
        momentum, second = 0.9 * momentum + 0.1 * g, 0.999 * second + 0.001 * g * g
        way = before / (second / (1 - 0.999 ** (t + 1))).sqrt()
        if t > 0:
            at, horizon = torch.tensor([t + 1.0]).double(), torch.tensor([total or 0.0]).double()
            gain = PACE * settling(at, horizon).item()
            expected.append(expected[-1] + gain * torch.cosine_similarity(g.ravel(), way.ravel(), 0).item())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert max(map(abs, found)) > 0.01


def test_gradients_that_agree_lengthen_steps_and_those_that_turn_shorten_them() -> None:
    agree = paces(lambda _: torch.ones(SHAPE, dtype=torch.float64), 30)
    turn = paces(lambda t: (-1.0) ** t * torch.ones(SHAPE, dtype=torch.float64), 30)
    assert agree == sorted(agree)
    assert turn == sorted(turn, reverse=True)
    assert agree[-1] > 1.0
    assert turn[-1] < -1.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_is_bounded_either_way(sign: float) -> None:
    last = paces(lambda t: sign**t * torch.ones(SHAPE, dtype=torch.float64), 40, None, pace=10.0)[-1]
    assert last == pytest.approx(sign * math.log(100), rel=1e-12)
    assert LONGEST_PACE == 100


@pytest.mark.parametrize("total", [100.0, 1000.0, None])
def test_it_grows_by_as_much_over_any_horizon(total: float | None) -> None:
    """With nothing but agreement; an unknown horizon counts as 320 steps."""
    steps = int(total or 320)
    last = paces(lambda _: torch.ones(SHAPE, dtype=torch.float64), steps, total)[-1]
    assert last == pytest.approx(PACE, rel=0.15)


def test_steps_are_that_much_longer() -> None:
    """Beside the same rule without it, on the same gradients."""
    params = {"w": torch.zeros(SHAPE, dtype=torch.float64)}
    graph = ParameterGraph.untied(params.items())
    with_pace, without = (rule_of(pace=pace).on(graph) for pace in (PACE, 0.0))
    states = [bound.init(params, HORIZON) for bound in (with_pace, without)]
    for t in range(10):
        g = {"w": noise(t).abs()}
        longer, states[0] = with_pace.delta(g, states[0], params)
        usual, states[1] = without.delta(g, states[1], params)
        torch.testing.assert_close(longer["w"], states[0]["w"]["pace"] * usual["w"])
    assert states[0]["w"]["pace"].log() > 0.5


def test_a_hastened_rule_takes_steps_that_are_so_many_times_as_long() -> None:
    params = {"w": torch.ones(SHAPE, dtype=torch.float64)}
    graph, rule = ParameterGraph.untied(params.items()), rule_of(weight_decay=0.1)
    own = {name: p[None] for name, p in rule.named_parameters()}
    hastened = {name: p[0] for name, p in rule.hastened(own, torch.tensor([0.7])).items()}
    usual, longer = rule.on(graph), rule.on(graph, hastened)
    state = usual.init(params, HORIZON)
    torch.testing.assert_close(
        longer.delta({"w": noise(0)}, state, params)[0]["w"],
        math.exp(0.7) * usual.delta({"w": noise(0)}, state, params)[0]["w"],
    )


def test_each_tensor_has_its_own_whatever_the_scale_of_its_gradient() -> None:
    params = {name: torch.zeros(SHAPE, dtype=torch.float64) for name in ("agrees", "noisy", "tiny")}
    bound = rule_of().on(ParameterGraph.untied(params.items()))
    state = bound.init(params, HORIZON)
    for t in range(20):
        grads = {"agrees": noise(0), "noisy": noise(t), "tiny": 1e-6 * noise(t)}
        params, state = bound.update(grads, state, params)
    pace = {name: entry["pace"].log().item() for name, entry in state.items()}
    assert pace["agrees"] > 1.0 > abs(pace["noisy"]) > 0
    assert pace["tiny"] == pytest.approx(pace["noisy"], rel=1e-2)


def test_a_saved_state_goes_on_bit_for_bit_where_steps_have_become_shorter() -> None:
    """What a state holds of a tensor beside its moments must be no negative number."""

    def optimizer() -> tuple[torch.nn.Linear, lopt.LearnedOptimizer]:
        torch.manual_seed(0)
        network = torch.nn.Linear(6, 8).double()
        return network, lopt.LearnedOptimizer(network.named_parameters(), rule=rule_of(), total_steps=40)

    def steps(network: torch.nn.Linear, optimizer: lopt.LearnedOptimizer) -> None:
        for t in range(6):
            optimizer.zero_grad()
            ((-1) ** t * network(torch.ones(3, 6, dtype=torch.float64))).sum().backward()
            optimizer.step()

    (network, first), (copy, second) = optimizer(), optimizer()
    steps(network, first)
    assert all(state["pace"] < 1 for state in first.state.values())
    copy.load_state_dict(network.state_dict())
    second.load_state_dict(first.state_dict())
    steps(network, first)
    steps(copy, second)
    torch.testing.assert_close(copy.state_dict(), network.state_dict(), rtol=0, atol=0)
