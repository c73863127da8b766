"""Truncated backpropagation through time.

Shapes: T networks, K inner steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator

from lopt.config import Positive
from lopt.inner.step import detached, each_its_own
from lopt.inner.unroll import unroll
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort
from lopt.training.estimators.base import Estimate, Estimator, has_diverged, initial_losses
from lopt.training.estimators.per_network import combined, leaves, network_gradients


@dataclass(frozen=True)
class TruncatedBackprop(Estimator):
    """Backpropagation through K inner steps; what happened before them is taken as given.

    Low variance; biased against gains that show only after the truncation (Wu et al. 2018). The meta-gradient is the
    mean of those of the networks, each cut to a norm of at most `network_clip`.
    """

    second_order: bool = True
    """Differentiate through the inner gradients. False is cheaper and biased."""
    rematerialise: bool = False
    """Keep only the networks between inner steps: much less memory, a third more time."""
    network_clip: Positive = field(default=1.0, kw_only=True)
    """Limit on the norm of a single network's meta-gradient, before the mean over networks is taken."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        batches, probes = self.batches(cohort, generator)
        bound = rule.on(cohort.task.graph)
        # Leaves of each network's own, so that one backward pass gives all of their meta-gradients apart.
        own = leaves(each_its_own(bound, cohort.networks))
        unrolled = unroll(
            bound, cohort.task, cohort.networks, batches, own=own, probes=probes,
            second_order=self.second_order, rematerialise=self.rematerialise, compiled=self.compiled,
        )  # fmt: skip
        losses = unrolled.losses.detach()
        initial = initial_losses(cohort, losses)
        diverged = has_diverged(losses, initial)
        # A loss that is not finite would give a derivative that is not, even where its weight is 0.
        usable = torch.where(diverged, torch.ones_like(unrolled.measured), unrolled.measured)
        outer = self.per_network(usable, initial)
        meta = combined(network_gradients(outer, own), ~diverged, self.network_clip)
        shown = self.mean_outer(outer.detach(), ~diverged, usable.detach())
        return Estimate(
            meta.gradient, shown, detached(unrolled.networks), losses, diverged.cpu(),
            bool(meta.dropped.all()), unrolled.previous,
            clipped=meta.clipped.double().mean().item(), dropped=meta.dropped.double().mean().item(),
        )  # fmt: skip
