"""Damaged optimizer states: each is read, and a step goes well, or refused with one line, and nothing has changed."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lopt
from lopt.errors import ConfigError
from lopt.rules.classical import TorchOptim
from tests.fuzz import mutate
from tests.fuzz.test_fuzz import bounded, outcome
from tests.optim.kit import same

RULES: dict[str, Callable[[], lopt.rules.Rule]] = {
    "axisnet": lambda: lopt.make_rule("axisnet", width=3, neuron_width=4, layers=1),
    "lstm": lambda: lopt.make_rule("lstm", width=3),
    "adam": lambda: lopt.make_rule("adam"),
    "muon": lambda: lopt.make_rule("muon"),
    "adafactor": lambda: lopt.make_rule("adafactor"),
    "schedule_free": lambda: lopt.make_rule("schedule_free_adamw"),
    "torch": lambda: TorchOptim("Adam", lr=0.01),
}
OTHERS: tuple[Callable[[Any], torch.optim.Optimizer], ...] = (
    torch.optim.AdamW, torch.optim.RMSprop, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.Adafactor,
    torch.optim.LBFGS,
)  # fmt: skip


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


GRAPH = lopt.ParameterGraph.trace(model(), (torch.zeros(1, 3),))


def gradients(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in network.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def groups(network: nn.Module) -> list[dict[str, Any]]:
    named = list(network.named_parameters())
    return [{"params": named[:4]}, {"params": named[4:], "lr": 0.5}]


class Case:
    """A rule's optimizer after two steps, what it has saved, and what the others save."""

    def __init__(self, rule: lopt.rules.Rule) -> None:
        self.rule = rule
        self.network, self.optimizer = self.made()
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        twin, goes_on = self.made()
        goes_on.step()
        self.next = [p.detach().clone() for p in twin.parameters()]

    def made(self) -> tuple[nn.Module, lopt.LearnedOptimizer]:
        network = model()
        options = {"rule": self.rule, "graph": GRAPH, "total_steps": 50, "loss_guard": True}
        optimizer = lopt.LearnedOptimizer(groups(network), **options)
        gradients(network)
        for loss in (2.0, 1.0):
            optimizer.observe(loss)
            optimizer.step()
        optimizer.observe(1.0)
        return network, optimizer

    def load_and_step(self, damaged: Any) -> None:
        """Raises what loading raises, after making sure that it has changed nothing."""
        network, optimizer = copy.deepcopy((self.network, self.optimizer))
        gradients(network)
        try:
            optimizer.load_state_dict(damaged)
        except ValueError:
            assert same(optimizer.state_dict(), self.saved)
            optimizer.observe(1.0)
            optimizer.step()
            assert all(map(torch.equal, network.parameters(), self.next))
            raise
        optimizer.train()
        optimizer.observe(1.0)
        optimizer.step()
        assert all(p.isfinite().all() for p in network.parameters())
        after = optimizer.state_dict()
        # What else stands beside it is kept for wrappers of an optimizer.
        shapes = {key: value.shape for key, value in entries(after)}
        own = {key: value.shape for key, value in entries(self.saved)}
        assert {key: shape for key, shape in shapes.items() if key in own} == own


def entries(saved: dict[str, Any]) -> list[tuple[Any, Tensor]]:
    states = ((key, state) for key, state in saved["state"].items() if isinstance(state, dict))
    return [((key, name), t) for key, state in states for name, t in state.items() if isinstance(t, Tensor)]


def foreign() -> list[dict[str, Any]]:
    found = []
    for make in OTHERS:
        network = model()
        single = make is torch.optim.LBFGS
        optimizer = make(network.parameters() if single else groups(network))
        gradients(network)
        optimizer.step(lambda: 1.0)  # type: ignore[arg-type]
        found.append(optimizer.state_dict())
    return found


def test_what_is_not_damaged_is_read() -> None:
    for make in RULES.values():
        case = Case(make())
        case.load_and_step(copy.deepcopy(case.saved))


@pytest.mark.parametrize("count", [300, pytest.param(2_000, marks=pytest.mark.slow)])
def test_damaged_states(count: int) -> None:
    draw, others = random.Random(2), foreign()
    cases = [Case(make()) for make in RULES.values()]
    with bounded() as counts, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not finite, of other horizons and of rates
        for number in range(count):
            case = cases[number % len(cases)]
            kind = draw.random()
            if kind < 0.1:
                damaged = copy.deepcopy(draw.choice([*others, *(c.saved for c in cases if c is not case)]))
            elif kind < 0.3:
                damaged = mutate.tree(case.saved, draw)
            else:
                damaged = mutate.tensors(case.saved, draw)
            counts[outcome(lambda c=case, d=damaged: c.load_and_step(d), ConfigError)] += 1
    assert counts["refused"] > count / 3
    assert counts["read"] > count / 20
