"""Rules that train at one point and average at another: `eval()` and `train()`."""

from __future__ import annotations

import copy

import pytest
import torch

import lopt
from lopt.errors import ConfigError
from lopt.optim.averages import TRAINED
from tests.optim.kit import learned, mlp, same, train, values

RULE = lopt.make_rule("schedule_free_adamw", lr=0.01)


def trained(steps: int = 20, **options):
    model = mlp()
    optimizer = learned(model.parameters(), rule=RULE, **options)
    losses = train(model, optimizer, steps)
    return model, optimizer, losses


@pytest.mark.parametrize("lr", [0.5, torch.tensor([0.5])])
def test_averages_of_the_pure_rule_are_put_in_place(lr):
    model, optimizer, _ = trained(lr=lr)
    params = dict(zip("abcd", values(model), strict=True))
    state = dict(zip("abcd", optimizer.state_dict()["state"].values(), strict=True))
    optimizer.eval()
    expected = RULE.evaluation_params(params, state, 0.5)
    assert same(values(model), list(expected.values()))
    assert not same(values(model), list(params.values()))


def test_training_goes_on_bit_for_bit():
    model, optimizer, _ = trained()
    plain, unswapped, _ = trained()
    memory = [p.data_ptr() for p in model.parameters()]
    for _ in range(3):
        optimizer.eval()
        optimizer.eval()
        optimizer.train()
        optimizer.train()
        assert same(values(model), values(plain))
        train(model, optimizer, 2)
        train(plain, unswapped, 2)
    assert [p.data_ptr() for p in model.parameters()] == memory
    assert same(optimizer.state_dict(), unswapped.state_dict())


def test_a_step_among_averages_is_refused():
    model, optimizer, _ = trained()
    optimizer.eval()
    before = values(model)
    with pytest.raises(
        ConfigError, match=r"found the averages that eval\(\) put there; call optimizer.train\(\)"
    ):
        train(model, optimizer, 1)
    assert same(values(model), before)


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_checkpoint_of_either_mode_continues(evaluating):
    model, optimizer, _ = trained()
    if evaluating:
        optimizer.eval()
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    assert all((TRAINED in found) == evaluating for found in state["state"].values())
    other = mlp(seed=1)
    resumed = learned(other.parameters(), rule=RULE)
    train(other, resumed, 1)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for which in (optimizer, resumed):
        which.train()
    train(model, optimizer, 2)
    train(other, resumed, 2)
    assert same(values(model), values(other))


def test_rules_without_averages_and_steps_not_done_yet_change_nothing():
    for rule in (RULE, "lopt-small"):
        model = mlp()
        optimizer = learned(model.parameters(), rule=rule)
        before = values(model)
        optimizer.eval()
        assert same(values(model), before)
        train(model, optimizer, 1)
    optimizer.eval()
    train(model, optimizer, 1)


def test_groups_have_their_own_rate():
    model = mlp()
    layers = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = learned(layers, rule=RULE)
    train(model, optimizer, 3)
    before = values(model)
    optimizer.eval()
    assert [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)] == [
        True,
        True,
        False,
        False,
    ]
