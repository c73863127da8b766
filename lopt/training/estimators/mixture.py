"""Backpropagation and persistent evolution strategies out of the same unroll."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Generator

from lopt.config import Positive, Share
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort, Twins
from lopt.training.estimators.base import Estimate, Estimator
from lopt.training.estimators.per_network import combined, network_gradients
from lopt.training.estimators.perturbed import draw_perturbations, evolution_gradient, halves, run_pair
from lopt.training.estimators.pes import added, first_twins


@dataclass(frozen=True)
class Mixture(Estimator):
    """g = (1 - share) g_backprop + share g_pes, both from one pair of unrolls at theta +- eps.

    g_backprop is the derivative of the pair's mean outer loss: of the truncated loss, smoothed. It sees every
    meta-parameter with little noise, and PES the consequences beyond the truncation (after Metz et al. 2019, who
    combine the two estimators for whole unrolls).
    """

    second_order: bool = True
    """Differentiate through the inner gradients. False is cheaper and biased."""
    rematerialise: bool = False
    """Keep only the networks between inner steps: much less memory, a third more time."""
    sigma: Positive = 0.01
    """Standard deviation of the perturbations."""
    share: Share = 0.5
    """Weight of PES, from 0 to 1."""
    network_clip: Positive = field(default=1.0, kw_only=True)
    """As in `TruncatedBackprop`, for each pair's mean."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        twins = cohort.twins or first_twins(rule, cohort)
        epsilon = draw_perturbations(rule, len(cohort.ages), self.sigma, generator)
        sums = added(twins.perturbations, epsilon)
        pair = run_pair(
            self, rule, cohort, twins.networks, epsilon, generator, self.second_order, self.rematerialise
        )
        # What diverged gives PES a finite loss, but no derivative that is worth anything.
        slopes = network_gradients(pair.outer.flatten() / 2, pair.own)
        pairs = {name: sum(halves(value)) for name, value in slopes.items()}
        direct = combined(pairs, ~pair.diverged, self.network_clip)
        indirect = evolution_gradient(pair.outer, sums, self.sigma)
        mixed = {
            name: (1 - self.share) * direct.gradient[name] + self.share * value
            for name, value in indirect.items()
        }
        shares = (flags.double().mean().item() for flags in (direct.clipped, direct.dropped))
        return pair.estimate(mixed, Twins(pair.negative, sums), *shares)
