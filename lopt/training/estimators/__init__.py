"""Meta-gradient estimators: one truncation of a cohort -> the derivative of the outer loss."""

from __future__ import annotations

from lopt.registry import Registry
from lopt.training.estimators.backprop import TruncatedBackprop
from lopt.training.estimators.base import Estimate, Estimator, has_diverged, initial_losses
from lopt.training.estimators.es import ES
from lopt.training.estimators.greedy import Greedy
from lopt.training.estimators.lives import WholeLives
from lopt.training.estimators.mixture import Mixture
from lopt.training.estimators.pes import NRES, PES

__all__ = [
    "ES",
    "ESTIMATORS",
    "PES",
    "Estimate",
    "Estimator",
    "Greedy",
    "Mixture",
    "TruncatedBackprop",
    "WholeLives",
    "has_diverged",
    "initial_losses",
]


ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator", Estimator, given=("truncation", "outer_loss", "outer_data", "compiled"), default="backprop"
)
"""Every estimator by the name that configs use."""

for _name, _estimator in {
    "backprop": TruncatedBackprop,
    "greedy": Greedy,
    "es": ES,
    "pes": PES,
    "nres": NRES,
    "lives": WholeLives,
    "mixture": Mixture,
}.items():
    ESTIMATORS.register(_name)(_estimator)
