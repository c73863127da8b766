"""What all meta-gradient estimators share: one truncation of a cohort in, an estimate out.

Shapes: T networks, K inner steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lopt.inner.step import LIMIT, Networks
from lopt.inner.task import Batch
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort, Twins
from lopt.training.outer import OUTER_LOSSES


@dataclass(frozen=True)
class Estimate:
    """What one truncation of one cohort gives."""

    gradient: dict[str, Tensor]
    """By meta-parameter name; all zero if it was not finite."""
    outer_loss: float
    """Mean over the networks that did not diverge; if all did, that of losses at `LIMIT`."""
    networks: Networks
    """The cohort's networks afterwards."""
    losses: Tensor
    """(K + 1, T) inner losses."""
    diverged: Tensor
    """(T,) which networks have a non-finite loss, or one far above the initial."""
    skipped: bool
    """Whether there is no meta-gradient: none of the networks gave one, or it was not finite."""
    previous: dict[str, Tensor]
    """The networks' parameters before their last step."""
    twins: Twins | None = None
    """What the estimator remembers of the cohort, if anything."""
    clipped: float = 0.0
    """Share of the networks whose own meta-gradient was cut to the limit."""
    dropped: float = 0.0
    """Share of the networks whose meta-gradient was left out: they diverged, or it was not finite."""


@dataclass(frozen=True)
class Estimator(ABC):
    """Turns one truncation of a cohort into an estimate of d (outer loss) / d (meta-parameters)."""

    truncation: int
    """K, the inner steps of a truncation."""
    outer_loss: str = "mean"
    """One of `OUTER_LOSSES`."""
    outer_data: str = field(default="train", kw_only=True)
    """The split whose batches the outer loss is measured on; "train": the training batches themselves."""
    compiled: bool = field(default=False, kw_only=True)
    """Whether inner steps are compiled."""

    whole_lives: ClassVar[bool] = False
    """Whether a truncation is a whole life: then all networks of a cohort live as long as one horizon."""

    @abstractmethod
    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        """The cohort is left as it is."""

    def batches(self, cohort: Cohort, generator: Generator) -> tuple[list[Batch], list[Batch] | None]:
        """K + 1 training batches, and K probe batches if the outer loss is measured on others."""
        count = len(cohort.ages)
        training = [cohort.task.sample("train", count, generator) for _ in range(self.truncation + 1)]
        if self.outer_data == "train":
            return training, None
        return training, [
            cohort.task.sample(self.outer_data, count, generator) for _ in range(self.truncation)
        ]

    def per_network(self, measured: Tensor, initial: Tensor) -> Tensor:
        """(K, T) losses -> (T,) outer losses."""
        return OUTER_LOSSES[self.outer_loss](measured, initial)

    def mean_outer(self, outer: Tensor, keep: Tensor, measured: Tensor) -> float:
        """The mean of (T,) outer losses over the networks to keep; without any, the outer loss at the limit."""
        if not keep.any():
            outer = self.per_network(torch.full_like(measured, LIMIT), torch.ones_like(measured[0]))
            keep = ~keep
        return outer[keep].mean().item()


def initial_losses(cohort: Cohort, losses: Tensor) -> Tensor:
    """(T,) what each network's losses are measured by: its first loss, from this truncation if it is its first."""
    known = cohort.initial.to(losses)
    return torch.where(torch.isnan(known), losses[0], known)


def has_diverged(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) True where a loss is not finite or the last ones lie above `LIMIT` times the initial."""
    # Not "above": a comparison with what is no number is false, and such a network has diverged.
    return ~torch.isfinite(losses).all(0) | ~(losses[-5:].mean(0) < LIMIT * initial.clamp(min=1e-8))


def finite_or_zero(gradient: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The gradient, or zeros and True if any of it is not finite."""
    if all(bool(torch.isfinite(value).all()) for value in gradient.values()):
        return gradient, False
    return {name: torch.zeros_like(value) for name, value in gradient.items()}, True
