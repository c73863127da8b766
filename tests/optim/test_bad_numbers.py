"""One number that is not finite, in a weight, a gradient or a state, and what becomes of the others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import lopt
from lopt.optim.step import SMALL, is_finite
from lopt.rules import Rule
from tests.optim.kit import give_gradients, learned, mlp, train, values

BAD = [math.nan, math.inf, -math.inf]


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    """What is compiled for one optimizer counts against the limit of the next test."""
    yield
    torch.compiler.reset()


def words() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Token 11 is in no batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 6), nn.Flatten(), nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.randint(11, (32, 3)), torch.randint(3, (32,))


def fit(model, optimizer, x, y, steps: int, step=None) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        (step or optimizer.step)()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("size", [5, SMALL])
def test_one_entry_is_found_in_tensors_of_every_size(size, bad):
    tensors = [torch.ones(3, 2), torch.ones(size), torch.ones(0), torch.ones(())]
    assert is_finite(tensors)
    tensors[1][-1] = bad
    assert not is_finite(tensors)


def test_a_sum_that_overflows_is_no_entry():
    assert is_finite([torch.full((4,), 3e38), torch.ones(SMALL)])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base", "muon", "adafactor", "lstm"])
def test_a_weight_that_nothing_reads(rule, bad):
    """Its neighbours train exactly as beside a zero, which is what the rule is shown."""
    rule = rule if rule.startswith("lopt") else lopt.make_rule(rule)
    models = []
    for value in (bad, 0.0):
        model, x, y = words()
        graph = lopt.ParameterGraph.trace(model, (x,))
        with torch.no_grad():
            model[0].weight[11] = value
        fit(model, learned(model.named_parameters(), rule=rule, graph=graph), x, y, 3)
        models.append(model)
    assert not torch.isfinite(models[0][0].weight[11]).any()
    with torch.no_grad():
        models[0][0].weight[11] = models[1][0].weight[11]
    for a, b in zip(*map(values, models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", BAD)
def test_a_weight_that_nothing_reads_under_a_gate(bad):
    """Compiled, as on accelerators, no value can be asked for."""
    model, x, y = words()
    with torch.no_grad():
        model[0].weight[11, 2] = bad
    optimizer = learned(model.parameters(), rule="lopt-small")
    losses = fit(model, optimizer, x, y, 4, torch.compile(optimizer.step, backend="eager"))
    assert losses[-1] < losses[0]
    assert optimizer.skipped_steps == 0
    assert sum(int((~torch.isfinite(p)).sum()) for p in model.parameters()) == 1


@pytest.mark.parametrize("key", ["momenta", "second"])
@pytest.mark.parametrize("bad", BAD)
def test_a_state_is_healed(key, bad):
    model, x, y = words()
    optimizer = learned(model.parameters(), rule="lopt-base")
    fit(model, optimizer, x, y, 2)
    optimizer.state[model[2].weight][key][..., 0] = bad
    losses = fit(model, optimizer, x, y, 5)
    assert losses[-1] < losses[0]
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    assert all(torch.isfinite(t).all() for t in [*tensors, *model.parameters()])


class Overflow(Rule):
    """Makes infinities out of finite gradients."""

    def init(self, graph, params, total_steps=None):
        return {name: {"step": p.new_zeros(())} for name, p in params.items()}

    def forward(self, graph, grads, state, params):
        new = {name: {"step": state[name]["step"] + 1} for name in params}
        return {name: grad * math.inf for name, grad in grads.items()}, new


def test_what_a_rule_makes_of_finite_gradients_is_refused():
    model = mlp()
    optimizer, before = learned(model.parameters(), rule=Overflow()), values(model)
    with pytest.warns(UserWarning, match="last 10 steps were skipped .* what the rule makes is not finite"):
        train(model, optimizer, 10)
    assert optimizer.skipped_steps == 10
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())


def stuck(steps: int, step=None, named: bool = True) -> lopt.LearnedOptimizer:
    model, radius = mlp(), nn.Parameter(torch.zeros(()))
    params = [*model.named_parameters(), ("radius", radius)]
    optimizer = learned(params if named else [p for _, p in params])
    step = optimizer.step if step is None else step(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        give_gradients(model)
        (radius * radius).sqrt().backward()
        step()
    return optimizer


def test_many_skipped_steps_in_a_row_are_told_of_by_name():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer = stuck(101)
    assert optimizer.skipped_steps == 101
    texts = [str(warning.message) for warning in told]
    assert [text.split(" steps")[0] for text in texts] == ["the last 10", "the last 100"]
    assert all("the gradient of 'radius' is not finite" in text for text in texts)
    with pytest.warns(UserWarning, match="gradient of '0.4' is not finite"):
        stuck(10, named=False)


def test_few_skipped_steps_in_a_row_are_not():
    model = mlp()
    optimizer = learned(model.parameters())
    for step in range(30):
        optimizer.zero_grad()
        give_gradients(model)
        if step % 9:
            model[0].weight.grad[0, 0] = math.nan
        optimizer.step()
    assert optimizer.skipped_steps == 26


def test_compiled_steps_are_told_of_when_gradients_are_cleared():
    with pytest.warns(UserWarning, match=r"last \d+ steps were skipped .* 'radius'"):
        stuck(15, lambda optimizer: torch.compile(optimizer.step, backend="eager"))
