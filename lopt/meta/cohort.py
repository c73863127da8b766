"""A cohort: T networks of one task in training at once, each with an age and a horizon of its own.

Shapes: T networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from lopt.meta.task import Task
from lopt.meta.unroll import Networks
from lopt.rules.base import BoundRule


@dataclass(frozen=True)
class Horizons:
    """Log-uniform horizons in whole truncations, and how often the rule is told them."""

    shortest: int
    longest: int
    truncation: int
    known: float = 0.5
    """Share of the networks whose rule is told the horizon."""

    def draw(self, count: int, generator: Generator, first: bool) -> tuple[Tensor, Tensor]:
        """(count,) horizons, and what the rule is told of each (0: nothing).

        The first lives of a cohort are cut at random points, so that later restarts are staggered.
        """
        uniform = torch.rand(3, count, generator=generator)
        low, high = math.log(self.shortest), math.log(self.longest)
        steps = torch.exp(low + (high - low) * uniform[0])
        steps = steps * uniform[1] if first else steps
        horizon = (steps / self.truncation).ceil().clamp(min=1) * self.truncation
        return horizon, torch.where(uniform[2] < self.known, horizon, 0.0)


@dataclass
class Cohort:
    """T networks of one task, all their training state, and which are due for a restart."""

    task: Task
    origin: dict[str, Any]
    """Family index and spec: how to rebuild the task."""
    networks: Networks
    ages: Tensor
    """(T,) inner steps taken."""
    horizons: Tensor
    """(T,) inner steps to take."""
    initial: Tensor
    """(T,) loss at the first step, by which later losses are measured; nan until it is known."""
    turns: int = 0
    """Truncations the cohort has lived through."""

    @classmethod
    def start(
        cls, task: Task, origin: dict[str, Any], rule: BoundRule, count: int, horizons: Horizons, generator: Generator
    ) -> Cohort:
        """Fresh networks with staggered horizons."""
        length, told = horizons.draw(count, generator, first=True)
        networks = fresh_networks(task, rule, count, told, generator)
        return cls(task, origin, networks, torch.zeros(count), length, torch.full((count,), math.nan))

    def restart(self, due: Tensor, rule: BoundRule, horizons: Horizons, generator: Generator) -> None:
        """Replace the networks where `due` (T,) by fresh ones with fresh horizons."""
        index = due.nonzero().flatten()
        if len(index) == 0:
            return
        length, told = horizons.draw(len(index), generator, first=False)
        fresh = fresh_networks(self.task, rule, len(index), told, generator)
        self.networks = replace_at(self.networks, index, fresh)
        self.ages = self.ages.index_fill(0, index, 0.0)
        self.horizons = self.horizons.index_copy(0, index, length)
        self.initial = self.initial.index_fill(0, index, math.nan)


def fresh_networks(task: Task, rule: BoundRule, count: int, told: Tensor, generator: Generator) -> Networks:
    """`count` initialised networks and the rule's first state for each; `told` (count,) horizons, 0 for unknown."""
    params = task.init(count, generator)
    device = next(iter(params.values())).device
    with torch.no_grad():
        return Networks(params, torch.vmap(rule.init)(params, told.to(device)))


def replace_at(networks: Networks, index: Tensor, fresh: Networks) -> Networks:
    """The networks with those at `index` replaced."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, index.to(old.device), new.to(old.dtype))

    params = {name: put(p, fresh.params[name]) for name, p in networks.params.items()}
    state = {n: {key: put(value, fresh.state[n][key]) for key, value in s.items()} for n, s in networks.state.items()}
    return Networks(params, state)
