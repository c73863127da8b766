"""Evolution strategies on whole lives at once, each as long as the horizon that the rule is told.

Shapes: T networks, H inner steps of a life.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor

from lopt.config import Positive
from lopt.inner.compiled import compiled_step
from lopt.inner.step import Networks, second_order_step
from lopt.inner.task import Task
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort
from lopt.training.estimators.base import Estimate, Estimator, finite_or_zero, has_diverged, initial_losses
from lopt.training.estimators.perturbed import (
    Fitness,
    doubled,
    draw_perturbations,
    evolution_gradient,
    halves,
    joined,
)


@dataclass(frozen=True)
class WholeLives(Estimator):
    """g = mean over networks of u(L+, L-) / (2 sigma^2) eps, with L the outer loss of a whole life and u the fitness.

    All networks of a cohort live equally long, from their first step to the end of their horizon, where a rule that
    anneals is at its best; nothing of a life is left to remember afterwards. The last loss of a life, which alone
    counts for the outer loss "final", is a mean over `final_batches` batches of `outer_data`; those before it are
    losses on the next training batch. After VeLO (Metz et al. 2022, arXiv 2211.09760, appendix B).
    """

    whole_lives: ClassVar[bool] = True
    sigma: Positive = 0.01
    """Standard deviation of the perturbations."""
    fitness: Fitness = "difference"
    """What becomes of the two losses of a pair: their difference, its sign, or its rank in the cohort."""
    final_batches: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Batches that the last loss of a life is measured on."""
    rate_spread: Annotated[float, Field(ge=1, le=100)] = 1.0
    """Both networks of a pair live at the rule's rate times a number between 1 / this and this, log-uniform: what is
    learned then holds for tasks whose scales the rule does not expect."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        count, steps = len(cohort.ages), int(cohort.horizons[0])
        epsilon = draw_perturbations(rule, count, self.sigma, generator)
        own = {name: torch.cat([p + epsilon[name], p - epsilon[name]]) for name, p in rule.named_parameters()}
        if self.rate_spread > 1:
            spread = math.log(self.rate_spread) * (2 * torch.rand(count, generator=generator) - 1)
            own = rule.hastened(own, torch.cat([spread, spread]))
        with torch.no_grad():
            networks, losses, previous = self._live(rule, cohort, own, steps, generator)
            final = self._final(cohort.task, networks, count, generator)
        losses, final = losses.unflatten(1, (2, -1)), final.unflatten(0, (2, -1))
        initial = initial_losses(cohort, losses[:, 0])
        outer = torch.stack(
            [self.per_network(torch.cat([losses[1:, side], final[side, None]]), initial) for side in (0, 1)]
        )
        ends = torch.cat([losses, final[None]])
        diverged = has_diverged(ends[:, 0], initial) | has_diverged(ends[:, 1], initial)
        gradient, skipped = finite_or_zero(evolution_gradient(outer, epsilon, self.sigma, self.fitness))
        return Estimate(
            gradient, outer.mean().item(), halves(networks)[0], ends.mean(1), diverged.cpu(), skipped,
            halves(previous)[0],
        )  # fmt: skip

    def _live(
        self, rule: Rule, cohort: Cohort, own: dict[str, Tensor], steps: int, generator: Generator
    ) -> tuple[Networks, Tensor, dict[str, Tensor]]:
        """The networks of both sides after all steps, (H, 2 T) losses before each, and parameters before the last."""
        bound = rule.on(cohort.task.graph)
        make = partial(compiled_step, second_order_step) if self.compiled else second_order_step
        step = make(bound, cohort.task, own)
        networks, losses = joined(cohort.networks, cohort.networks), []
        previous = networks.params
        for _ in range(steps):
            previous = networks.params
            batch = doubled(cohort.task.sample("train", len(cohort.ages), generator))
            loss, networks = step(networks, batch)
            losses.append(loss)
        return networks, torch.stack(losses), previous

    def _final(self, task: Task, networks: Networks, count: int, generator: Generator) -> Tensor:
        """(2 T,) the mean loss over `final_batches` batches, the same ones for both of a pair."""
        total = torch.zeros(())
        for _ in range(self.final_batches):
            batch = doubled(task.sample(self.outer_data, count, generator))
            total = total + torch.vmap(task.loss)(networks.params, batch)
        return total / self.final_batches
