"""Timing: which optimizer is timed, and that it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lopt.comparison import timing
from lopt.comparison.timing import make_optimizer, time_step
from lopt.optim.learned_optimizer import LearnedOptimizer
from lopt.rules import Rule, make_rule
from lopt.rules.classical import SGD, Adafactor, Adam, AdamW, Lion, TorchOptim
from tests.toy_tasks import TwoMoons

CASES = [
    (SGD(0.1, momentum=0.9, nesterov=True), torch.optim.SGD),
    (Adam(0.1, weight_decay=0.1), torch.optim.Adam),
    (AdamW(0.1), torch.optim.AdamW),
    (Adafactor(0.1), torch.optim.Adafactor),
    (TorchOptim("NAdam", lr=0.1), torch.optim.NAdam),
    (Lion(0.1), LearnedOptimizer),
]


@pytest.mark.parametrize(("rule", "expected"), CASES)
def test_times_torch_where_torch_has_the_rule(rule: Rule, expected: Any) -> None:
    """And it takes the same step as the rule."""
    task = TwoMoons()
    params = {n: torch.ones(s, requires_grad=True) for n, s in task.shapes.items()}
    optimizer = make_optimizer(rule, task, params)
    assert type(optimizer) is expected
    bound = rule.on(task.graph)
    state, pure = bound.init(params), {n: p.detach().clone() for n, p in params.items()}
    for t in range(3):
        grads = {n: torch.full_like(p, 0.1 * (t + 1)).detach() for n, p in params.items()}
        for n, p in params.items():
            p.grad = grads[n]
        optimizer.step()
        pure, state = bound.update(grads, state, pure)
    for n, p in params.items():
        torch.testing.assert_close(p.detach(), pure[n].detach(), rtol=1e-5, atol=1e-6)


def test_in_turns_all_take_as_many_steps_and_share_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rule that does at every fourth step what it leaves out at the others the mean is told."""
    now, taken = [0.0], {"even": 0, "fourth": 0}

    def step_of(name: str) -> Any:
        def step() -> None:
            taken[name] += 1
            now[0] += 1.0 if name == "even" else 8.0 * (taken[name] % 4 == 0)

        return SimpleNamespace(step=step, zero_grad=lambda: None)

    task = TwoMoons()
    monkeypatch.setattr(timing, "make_optimizer", lambda rule, *_: step_of(rule))
    found = timing.times_in_turns({n: n for n in taken}, task, rounds=3, turn=8, clock=lambda: now[0])  # type: ignore[dict-item, misc]
    assert taken == {"even": 32, "fourth": 32}
    assert (found["even"].optimizer_ms, found["fourth"].optimizer_ms) == (1000.0, 2000.0)
    assert found["even"].gradient_ms == found["fourth"].gradient_ms == 0.0


def test_times_are_positive_and_gradients_are_taken() -> None:
    torch.manual_seed(0)
    found = time_step(make_rule("axisnet"), TwoMoons(), repeats=3, warmup=1)
    assert 0 < found.optimizer_ms < 1000
    assert 0 < found.gradient_ms < 1000
