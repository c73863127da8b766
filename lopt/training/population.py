"""All networks of a run: one cohort in each slot. Every slot has a random stream of its own, so that what happens in
it does not depend on who computes the others.

Shapes: T networks of a cohort.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator
from torch.utils._pytree import tree_map

from lopt.inner.checks import check_task
from lopt.inner.step import Networks
from lopt.inner.task import Task, TaskFamily
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort, Horizons, Twins
from lopt.training.config import MetaConfig
from lopt.training.estimators import Estimate
from lopt.training.ranks import Ranks


@dataclass(frozen=True)
class Weighted:
    """A task family and how often it is drawn, relative to the others."""

    family: TaskFamily
    weight: float = 1.0


class Population:
    """The cohorts in the slots that this process owns."""

    def __init__(
        self, rule: Rule, families: Sequence[Weighted], config: MetaConfig, seed: int, ranks: Ranks
    ) -> None:
        self.rule, self.families, self.config, self.ranks = rule, list(families), config, ranks
        self.horizons = Horizons(
            config.shortest_horizon, config.longest_horizon, config.truncation, config.known_horizon,
            shared=config.whole_lives,
        )  # fmt: skip
        seeds = torch.randint(2**31, (config.cohorts,), generator=Generator().manual_seed(seed)).tolist()
        self.generators = {
            slot: Generator().manual_seed(seeds[slot]) for slot in range(config.cohorts) if ranks.owns(slot)
        }
        self.cohorts: dict[int, Cohort] = {}
        self.tasks: dict[str, Task] = {}
        """By family and spec, kept where there are few: what is compiled for a task lives as long as its graph."""
        draw = Generator().manual_seed(seed + 1)
        self.specs = [
            [weighted.family.sample_spec(draw) for _ in range(config.architectures)] for weighted in families
        ]
        """By family those that it is held to; none: it draws."""

    def cohort(self, slot: int) -> Cohort:
        """The cohort in a slot, which stays empty until its turn: no checkpoint holds what has not begun."""
        if slot not in self.cohorts:
            self.cohorts[slot] = self.new_cohort(slot)
        return self.cohorts[slot]

    def new_cohort(self, slot: int) -> Cohort:
        """A cohort of a fresh task.

        Each slot draws from its own stretch of the families' total weight: any at its rate over all slots, and
        never all slots the same by chance.
        """
        generator = self.generators[slot]
        # The order of draws (task, spec, horizons, weights) is part of what a seed means.
        weights = torch.tensor([weighted.weight for weighted in self.families], dtype=torch.float64)
        point = (slot + torch.rand((), generator=generator, dtype=torch.float64)) / self.config.cohorts
        index = int((weights.cumsum(0) / weights.sum() <= point).sum().clamp(max=len(weights) - 1))
        spec = self._spec(index, generator)
        task = self._task(index, spec)
        origin = {"family": index, "spec": spec}
        rule = self.rule.on(task.graph)
        return Cohort.start(task, origin, rule, self.config.networks, self.horizons, generator)

    def advance(self, slot: int, estimate: Estimate) -> int:
        """Take over the trained networks; restart those that diverged or reached their horizon, and count them."""
        cohort = self.cohorts[slot]
        cohort.networks, cohort.twins = estimate.networks, estimate.twins
        first = torch.isnan(cohort.initial)
        cohort.initial = torch.where(first, estimate.losses[0].cpu(), cohort.initial)
        cohort.ages = cohort.ages + len(estimate.losses) - 1
        cohort.turns += 1
        due = estimate.diverged | (cohort.ages >= cohort.horizons)
        cohort.restart(due, self.rule.on(cohort.task.graph), self.horizons, self.generators[slot])
        if cohort.turns >= self.config.cohort_turns:
            del self.cohorts[slot]
        return int(due.sum())

    def family_of(self, slot: int) -> int:
        """The index of the family that the slot's task comes from."""
        return int(self.cohorts[slot].origin["family"])

    def tree(self) -> list[Any]:
        """On the leader the state of every slot, in order; elsewhere that of the slots it owns."""
        mine = {
            slot: {
                "generator": generator.get_state(),
                "cohort": _cohort_tree(self.cohorts[slot]) if slot in self.cohorts else None,
            }
            for slot, generator in self.generators.items()
        }
        return [slot for _, slot in sorted(self.ranks.merge(mine).items())]

    def load_tree(self, tree: list[Any]) -> None:
        """Continue from what the leader's `tree` returned, with any number of processes."""
        for slot, generator in self.generators.items():
            generator.set_state(tree[slot]["generator"])
            if (saved := tree[slot]["cohort"]) is not None:
                self.cohorts[slot] = self._restored(saved)

    def _restored(self, saved: dict[str, Any]) -> Cohort:
        origin = saved["origin"]
        task = self._task(origin["family"], origin["spec"])
        twins = saved["twins"] and Twins(self._placed(saved["twins"][0]), saved["twins"][1])
        return Cohort(
            task, origin, self._placed(saved["networks"]), saved["ages"], saved["horizons"], saved["initial"],
            saved["turns"], twins,
        )  # fmt: skip

    def _spec(self, family: int, generator: Generator) -> dict[str, Any]:
        if not self.config.architectures:
            return self.families[family].family.sample_spec(generator)
        return self.specs[family][int(torch.randint(self.config.architectures, (), generator=generator))]

    def _task(self, family: int, spec: dict[str, Any]) -> Task:
        key = json.dumps([family, spec], sort_keys=True)
        if key in self.tasks:
            return self.tasks[key]
        task = self.families[family].family.build(spec)
        check_task(task, relative=self.config.outer_loss != "plain")
        if self.config.architectures:
            self.tasks[key] = task
        return task

    def _placed(self, saved: list[Any]) -> Networks:
        """Networks out of a checkpoint, which is read to the CPU, where the rule is."""
        device = next(self.rule.parameters()).device
        return Networks(*tree_map(lambda value: value.to(device), saved))


def _cohort_tree(cohort: Cohort) -> dict[str, Any]:
    return {
        "origin": cohort.origin,
        "networks": cohort.networks,
        "ages": cohort.ages,
        "horizons": cohort.horizons,
        "initial": cohort.initial,
        "turns": cohort.turns,
        "twins": cohort.twins,
    }
