"""Evolution strategies on single truncations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from lopt.config import Positive
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort
from lopt.training.estimators.base import Estimate, Estimator
from lopt.training.estimators.perturbed import draw_perturbations, evolution_gradient, run_pair


@dataclass(frozen=True)
class ES(Estimator):
    """g = mean over networks of (L(theta + eps) - L(theta - eps)) / (2 sigma^2) eps, with eps ~ N(0, sigma^2).

    The derivative of the outer loss smoothed over the meta-parameters (Salimans et al. 2017): its valleys are
    wider and its cliffs gone. Biased by truncation as backpropagation is. Both of a pair start where the cohort
    stands; it goes on with the positive ones.
    """

    sigma: Positive = 0.01
    """Standard deviation of the perturbations."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        epsilon = draw_perturbations(rule, len(cohort.ages), self.sigma, generator)
        with torch.no_grad():
            pair = run_pair(self, rule, cohort, cohort.networks, epsilon, generator)
        return pair.estimate(evolution_gradient(pair.outer, epsilon, self.sigma))
