"""Truncated backpropagation through time.

Shapes: T networks, K inner steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lopt.meta.cohort import Cohort
from lopt.meta.estimators.base import (
    Estimate,
    Estimator,
    finite_or_zero,
    has_diverged,
    initial_losses,
    mean_where,
)
from lopt.meta.unroll import detached, unroll
from lopt.rules.base import Rule


@dataclass(frozen=True)
class TruncatedBackprop(Estimator):
    """Backpropagation through K inner steps; what happened before them is taken as given.

    Low variance; biased against gains that show only after the truncation (Wu et al. 2018).
    """

    second_order: bool = True
    rematerialise: bool = False

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        batches, probes = self.batches(cohort, generator)
        unrolled = unroll(
            rule.on(cohort.task.graph), cohort.task, cohort.networks, batches, probes=probes,
            second_order=self.second_order, rematerialise=self.rematerialise,
        )  # fmt: skip
        losses = unrolled.losses.detach()
        initial = initial_losses(cohort, losses)
        diverged = has_diverged(losses, initial)
        # A loss that is not finite would give a derivative that is not, even where its weight is 0.
        usable = torch.where(diverged, torch.ones_like(unrolled.measured), unrolled.measured)
        outer = mean_where(~diverged, self.per_network(usable, initial, cohort))
        gradient, skipped = finite_gradient(outer, rule)
        return Estimate(
            gradient,
            outer.item(),
            detached(unrolled.networks),
            losses,
            diverged.cpu(),
            skipped,
            unrolled.previous,
        )


def finite_gradient(outer: Tensor, rule: Rule) -> tuple[dict[str, Tensor], bool]:
    """d outer / d meta-parameters, or zeros and True if any of it is not finite."""
    named = dict(rule.named_parameters())
    if not outer.requires_grad:
        return {name: torch.zeros_like(p) for name, p in named.items()}, True
    values = torch.autograd.grad(outer, list(named.values()), allow_unused=True)
    gradient = {
        name: torch.zeros_like(p) if value is None else value
        for (name, p), value in zip(named.items(), values, strict=True)
    }
    return finite_or_zero(gradient)
