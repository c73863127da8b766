"""State in 16 bits: half the memory, the same training, runs that repeat and resume bit for bit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import lopt
from lopt.errors import ConfigError

BITS = {"state_dtype": torch.bfloat16}


def network(width: int = 40) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def made(net: nn.Module, rule: object = "lopt-small", **options: object) -> lopt.LearnedOptimizer:
    graph = lopt.ParameterGraph.trace(net, (torch.zeros(2, 64),))
    return lopt.LearnedOptimizer(net.parameters(), rule=rule, graph=graph, total_steps=60, **options)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(60)) -> float:
    """The mean loss on the way."""
    generator = torch.Generator().manual_seed(1)
    inputs, map_ = torch.randn(512, 64, generator=generator), torch.randn(64, 10, generator=generator)
    labels, total = (inputs @ map_).argmax(1), 0.0
    for step in steps:
        index = torch.randint(512, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs[index]), labels[index])
        loss.backward()
        optimizer.step()
        total += loss.item() / len(steps)
    return total


def bytes_of(net: nn.Module, optimizer: torch.optim.Optimizer, keys: tuple[str, ...]) -> float:
    """For each parameter."""
    held = [optimizer.state[p][key] for p in net.parameters() for key in keys]
    return sum(x.numel() * x.element_size() for x in held) / sum(p.numel() for p in net.parameters())


LSTM = lopt.make_rule("lstm")
"""A rule that looks at all scalars at once, and remembers some more."""


@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base", LSTM], ids=["small", "base", "lstm"])
@pytest.mark.parametrize("width", [40, 400], ids=["gathered", "in ranges"])
def test_half_the_memory_and_the_same_curve(rule, width):
    losses, held = [], []
    for options in ({}, BITS):
        net = network(width)
        optimizer = made(net, rule, **options)
        losses.append(train(net, optimizer))
        held.append(bytes_of(net, optimizer, ("momenta", "second")))
        dtypes = {state[key].dtype for state in optimizer.state.values() for key in ("momenta", "second")}
        assert dtypes == {options.get("state_dtype", torch.float32)}
    assert held[1] == held[0] / 2
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("width", [40, 400], ids=["gathered", "in ranges"])
def test_resumed_is_uninterrupted(width):
    nets = [network(width), network(width)]
    straight = made(nets[0], **BITS)
    train(nets[0], straight, range(12))
    first = made(nets[1], **BITS)
    train(nets[1], first, range(5))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = made(nets[1], **BITS)
    second.load_state_dict(torch.load(file))
    train(nets[1], second, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_state_of_either_kind_goes_on_as_the_other():
    net = network()
    for before, after in (({}, BITS), (BITS, {})):
        saved = made(net, **before)
        train(net, saved, range(3))
        taken = made(net, **after)
        taken.load_state_dict(copy.deepcopy(saved.state_dict()))
        train(net, taken, range(3, 5))
        assert {s["momenta"].dtype for s in taken.state.values()} == {after.get("state_dtype", torch.float32)}
        assert all(p.isfinite().all() for p in net.parameters())


def test_a_skipped_step_leaves_state_as_it_is():
    net = network()
    optimizer = made(net, **BITS)
    train(net, optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    net[0].weight.grad[0, 0] = torch.nan
    optimizer.step()
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(before[i][key], after[i][key]) for i in before for key in before[i])


def test_what_cannot_be_is_told():
    net = network()
    with pytest.raises(
        ConfigError, match=r"state_dtype: expected torch\.bfloat16 or None, found torch\.float16"
    ):
        made(net, state_dtype=torch.float16)
    with pytest.raises(ConfigError, match="state_dtype: expected a learned rule, found AdamW, whose"):
        made(net, lopt.make_rule("adamw"), **BITS)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base"])
def test_fused_as_not(rule):
    losses = []
    for fused in (False, True):
        net = network(400)
        losses.append(train(net, made(net, rule, fused=fused, **BITS), range(30)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
