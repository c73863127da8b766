"""Averaged weights in the place of trained ones, for rules that train at one point and average at another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from lopt.errors import ConfigError
from lopt.optim.sharding import gathered, local, sharded_like
from lopt.rules.base import Rule

TRAINED = "trained"
"""The key under which the state of a parameter keeps its trained value, while the average is in its place."""

States = MutableMapping[Any, dict[str, Any]]


def has_averages(rule: Rule) -> bool:
    """Whether the rule evaluates at another point than it trains at."""
    return type(rule).evaluation_params is not Rule.evaluation_params


def put_in(
    rule: Rule, named: Iterable[tuple[str, Tensor]], groups: Sequence[Mapping[str, Any]], states: States
) -> None:
    """Overwrite the parameters that have been stepped with their averages, and keep their values in the state."""
    names = {id(p): name for name, p in named}
    for group in groups:
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        owners = {names[id(p)]: p for p in group["params"] if states.get(p) and TRAINED not in states[p]}
        state = {
            name: {key: gathered(value) for key, value in states[p].items() if isinstance(value, Tensor)}
            for name, p in owners.items()
        }
        params = {name: gathered(p.detach()) for name, p in owners.items()}
        for name, average in rule.evaluation_params(params, state, lr).items():
            p = owners[name]
            states[p][TRAINED] = p.detach().clone()
            local(p).copy_(local(sharded_like(average, p)))


def take_out(states: States) -> None:
    """Give the parameters the values that they were trained to."""
    for p, state in _of_parameters(states):
        if TRAINED in state:
            local(p).copy_(local(state.pop(TRAINED)))


def check_taken_out(states: States) -> None:
    if any(TRAINED in state for _, state in _of_parameters(states)):
        raise ConfigError(
            "step: expected the trained weights in place, found the averages that eval() put there; call"
            " optimizer.train() before training goes on"
        )


def _of_parameters(states: States) -> list[tuple[Tensor, dict[str, Any]]]:
    """Without what wrappers of an optimizer keep under words."""
    return [(p, state) for p, state in states.items() if isinstance(p, Tensor)]
