"""Meta-gradient estimators: one truncation of a cohort -> the derivative of the outer loss by the meta-parameters.

Shapes: T networks, K inner steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from lopt.meta.cohort import Cohort
from lopt.meta.outer import LIMIT, OUTER_LOSSES
from lopt.meta.unroll import Networks, detached, unroll
from lopt.rules.base import Rule


@dataclass(frozen=True)
class Estimate:
    """What one truncation of one cohort gives."""

    gradient: dict[str, Tensor]
    """By meta-parameter name; all zero if it was not finite."""
    outer_loss: float
    """Mean over the networks that did not diverge."""
    networks: Networks
    """The cohort's networks afterwards."""
    losses: Tensor
    """(K + 1, T) inner losses."""
    diverged: Tensor
    """(T,) which networks have a non-finite loss, or one far above the initial."""
    skipped: bool
    """Whether the meta-gradient was not finite."""


class Estimator(Protocol):
    """Anything that turns one truncation of a cohort into a meta-gradient."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate: ...


@dataclass(frozen=True)
class TruncatedBackprop:
    """Backpropagation through K inner steps; what happened before them is taken as given.

    Low variance; biased against gains that show only after the truncation (Wu et al. 2018).
    """

    truncation: int
    outer_loss: str = "mean"
    second_order: bool = True
    rematerialise: bool = False

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        count = len(cohort.ages)
        batches = [cohort.task.sample("train", count, generator) for _ in range(self.truncation + 1)]
        unrolled = unroll(
            rule.on(cohort.task.graph), cohort.task, cohort.networks, batches,
            second_order=self.second_order, rematerialise=self.rematerialise,
        )  # fmt: skip
        losses = unrolled.losses
        initial = initial_losses(cohort, losses.detach())
        diverged = has_diverged(losses.detach(), initial)
        usable = torch.where(diverged, torch.ones_like(losses), losses)
        per_network = OUTER_LOSSES[self.outer_loss](usable[1:], initial)
        outer = torch.where(diverged, torch.zeros_like(per_network), per_network).sum() / (~diverged).sum().clamp(min=1)
        gradient, skipped = finite_gradient(outer, rule)
        return Estimate(gradient, outer.item(), detached(unrolled.networks), losses.detach(), diverged.cpu(), skipped)


def initial_losses(cohort: Cohort, losses: Tensor) -> Tensor:
    """(T,) what each network's losses are measured by: its first loss, from this truncation if it is its first."""
    known = cohort.initial.to(losses)
    return torch.where(torch.isnan(known), losses[0], known)


def has_diverged(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) True where a loss is not finite or the last ones lie above `LIMIT` times the initial."""
    return ~torch.isfinite(losses).all(0) | ~(losses[-5:].mean(0) < LIMIT * initial.clamp(min=1e-8))


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
    if all(bool(torch.isfinite(value).all()) for value in gradient.values()):
        return gradient, False
    return {name: torch.zeros_like(p) for name, p in named.items()}, True
