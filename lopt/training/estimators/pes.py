"""Evolution strategies on whole lives, a truncation at a time: persistent, and with noise reused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from lopt.config import Positive
from lopt.rules.base import Rule, Tensors
from lopt.training.cohort import Cohort, Twins
from lopt.training.estimators.base import Estimate, Estimator
from lopt.training.estimators.perturbed import Fitness, draw_perturbations, evolution_gradient, run_pair


@dataclass(frozen=True)
class PES(Estimator):
    """g = mean over networks of (L+ - L-) / (2 sigma^2) xi, with xi the sum of a network's eps since its start.

    Both of a pair keep their own networks from truncation to truncation, so that what a perturbation does later is
    credited to it; summed over the truncations of a life, the expectation is the derivative of the smoothed sum of
    outer losses (Vicol, Metz and Sohl-Dickstein 2021). The variance grows with the number of truncations.
    """

    sigma: Positive = 0.01
    """Standard deviation of the perturbations."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        twins = cohort.twins or first_twins(rule, cohort)
        epsilon = draw_perturbations(rule, len(cohort.ages), self.sigma, generator)
        sums = added(twins.perturbations, epsilon)
        with torch.no_grad():
            pair = run_pair(self, rule, cohort, twins.networks, epsilon, generator)
        gradient = evolution_gradient(pair.outer, sums, self.sigma)
        return pair.estimate(gradient, Twins(pair.negative, sums))


@dataclass(frozen=True)
class NRES(Estimator):
    """g = mean over networks of (L+ - L-) / (2 sigma^2) eps, with one eps for the whole life of a network.

    What PES sums up is one perturbation here. Summed over the truncations of a life, the expectation is the derivative
    of the smoothed sum of outer losses where all of a life has the same perturbation, as in `WholeLives`. Its
    variance is lower than that of PES where one perturbation does the same to all truncations of a life, and does not
    grow with their number (Li et al. 2023, arXiv 2304.12180).
    """

    sigma: Positive = 0.01
    """Standard deviation of the perturbations."""
    fitness: Fitness = "difference"
    """What becomes of the two losses of a pair: their difference, its sign, or its rank in the cohort."""

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        twins = cohort.twins or first_twins(rule, cohort)
        drawn = draw_perturbations(rule, len(cohort.ages), self.sigma, generator)
        epsilon = _newborn_or_kept(cohort, drawn, twins.perturbations)
        with torch.no_grad():
            pair = run_pair(self, rule, cohort, twins.networks, epsilon, generator)
        gradient = evolution_gradient(pair.outer, epsilon, self.sigma, self.fitness)
        return pair.estimate(gradient, Twins(pair.negative, epsilon))


def _newborn_or_kept(cohort: Cohort, drawn: Tensors, kept: Tensors) -> dict[str, torch.Tensor]:
    """(T, *shape): a new perturbation for networks that have not lived yet, that of their birth for the others."""
    newborn = cohort.ages == 0
    return {
        name: torch.where(
            newborn.to(fresh.device).view(-1, *[1] * (fresh.dim() - 1)), fresh, kept[name].to(fresh)
        )
        for name, fresh in drawn.items()
    }


def first_twins(rule: Rule, cohort: Cohort) -> Twins:
    """Twins of networks that no perturbation has touched yet."""
    count = len(cohort.ages)
    return Twins(cohort.networks, {name: p.new_zeros(count, *p.shape) for name, p in rule.named_parameters()})


def added(sums: Tensors, epsilon: Tensors) -> dict[str, torch.Tensor]:
    """The summed perturbations after another truncation."""
    return {name: sums[name].to(value) + value for name, value in epsilon.items()}
