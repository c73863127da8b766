"""A cohort: T networks of one task in training at once, each with an age and a horizon of its own.

Shapes: T networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from lopt.inner.step import Networks
from lopt.inner.task import Task
from lopt.rules.base import BoundRule


@dataclass(frozen=True)
class Horizons:
    """Log-uniform horizons in whole truncations, and how often the rule is told them."""

    shortest: int
    longest: int
    truncation: int
    known: float = 0.5
    """Share of the networks whose rule is told the horizon."""
    shared: bool = False
    """Whether all networks drawn for at once have one horizon, from their first step on."""

    def draw(self, count: int, generator: Generator, first: bool) -> tuple[Tensor, Tensor]:
        """(count,) horizons, and what the rule is told of each (0: nothing).

        The first lives of a cohort are cut at random points, so that later restarts are staggered, unless all lives are
        of one length.
        """
        # All three rows whatever is used of them: options must not shift what is drawn from the stream afterwards.
        uniform = torch.rand(3, count, generator=generator)
        if self.shared:
            uniform[0] = uniform[0, :1]
            first = False
        low, high = math.log(self.shortest), math.log(self.longest)
        steps = torch.exp(low + (high - low) * uniform[0])
        steps = steps * uniform[1] if first else steps
        # The exponential of the logarithm of a multiple may lie a rounding error above it.
        horizon = (steps / self.truncation - 1e-4).ceil().clamp(min=1) * self.truncation
        return horizon, torch.where(uniform[2] < self.known, horizon, 0.0)


class Twins(NamedTuple):
    """What persistent evolution strategies remember of a cohort between truncations."""

    networks: Networks
    """T networks that live under the negative perturbations; the cohort's own live under the positive ones."""
    perturbations: dict[str, Tensor]
    """(T, *shape) for each meta-parameter: the sum of a network's perturbations since its start."""


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
    twins: Twins | None = None

    @classmethod
    def start(
        cls, task: Task, origin: dict[str, Any], rule: BoundRule, count: int, horizons: Horizons,
        generator: Generator,
    ) -> Cohort:  # fmt: skip
        """Fresh networks with staggered horizons."""
        length, told = horizons.draw(count, generator, first=True)
        networks = fresh_networks(task, rule, count, told, generator)
        ages, unknown = torch.zeros(count), torch.full((count,), math.nan)
        return cls(task, origin, networks, ages, length, unknown)

    def restart(self, due: Tensor, rule: BoundRule, horizons: Horizons, generator: Generator) -> None:
        """Replace the networks where `due` (T,) by fresh ones with fresh horizons."""
        index = due.nonzero().flatten()
        if len(index) == 0:
            return
        length, told = horizons.draw(len(index), generator, first=False)
        fresh = fresh_networks(self.task, rule, len(index), told, generator)
        self.networks = replace_at(self.networks, index, fresh)
        if self.twins is not None:
            summed = {
                n: s.index_fill(0, index.to(s.device), 0.0) for n, s in self.twins.perturbations.items()
            }
            self.twins = Twins(replace_at(self.twins.networks, index, fresh), summed)
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
        # Never in place: the estimate that these tensors came with may still be read, and twins share them at first.
        return old.index_copy(0, index.to(old.device), new.to(old.dtype))

    params = {name: put(p, fresh.params[name]) for name, p in networks.params.items()}
    state = {
        n: {key: put(value, fresh.state[n][key]) for key, value in s.items()}
        for n, s in networks.state.items()
    }
    return Networks(params, state)
