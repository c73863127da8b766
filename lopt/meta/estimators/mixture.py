"""Backpropagation and persistent evolution strategies out of the same unroll."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from lopt.meta.cohort import Cohort, Twins
from lopt.meta.estimators.backprop import finite_gradient
from lopt.meta.estimators.base import Estimate, Estimator, finite_or_zero, mean_where
from lopt.meta.estimators.perturbed import draw_perturbations, evolution_gradient, run_pair
from lopt.meta.estimators.pes import added, first_twins
from lopt.rules.base import Rule


@dataclass(frozen=True)
class Mixture(Estimator):
    """g = (1 - share) g_backprop + share g_pes, both from one pair of unrolls at theta +- eps.

    g_backprop is the derivative of the pair's mean outer loss: of the truncated loss, smoothed. It sees every
    meta-parameter with little noise, and PES the consequences beyond the truncation (after Metz et al. 2019, who
    combine the two estimators for whole unrolls).
    """

    second_order: bool = True
    rematerialise: bool = False
    sigma: float = 0.01
    share: float = 0.5
    """Weight of PES, from 0 to 1."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        twins = cohort.twins or first_twins(rule, cohort)
        epsilon = draw_perturbations(rule, len(cohort.ages), self.sigma, generator)
        sums = added(twins.perturbations, epsilon)
        pair = run_pair(
            self, rule, cohort, twins.networks, epsilon, generator, self.second_order, self.rematerialise
        )
        # What diverged gives PES a finite loss, but no derivative that is worth anything.
        outer = mean_where(~pair.diverged.to(pair.outer.device), pair.outer.mean(0))
        direct, skipped = finite_gradient(outer, rule)
        indirect = evolution_gradient(pair.outer, epsilon, sums, self.sigma)
        mixed = {
            name: (1 - self.share) * direct[name] + self.share * value for name, value in indirect.items()
        }
        gradient, bad = finite_or_zero(mixed)
        return Estimate(
            gradient, pair.outer.detach().mean().item(), pair.positive, pair.losses, pair.diverged, skipped or bad,
            pair.previous, Twins(pair.negative, sums),
        )  # fmt: skip
