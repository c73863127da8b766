"""Meta-gradient estimators: one truncation of a cohort -> the derivative of the outer loss."""

from __future__ import annotations

from lopt.meta.config import MetaConfig
from lopt.meta.estimators.backprop import TruncatedBackprop
from lopt.meta.estimators.base import Estimate, Estimator, has_diverged, initial_losses
from lopt.meta.estimators.es import ES
from lopt.meta.estimators.mixture import Mixture
from lopt.meta.estimators.pes import PES

__all__ = [
    "ES",
    "PES",
    "Estimate",
    "Estimator",
    "Mixture",
    "TruncatedBackprop",
    "has_diverged",
    "initial_losses",
    "make_estimator",
]


def make_estimator(config: MetaConfig) -> Estimator:
    """The estimator that a config names."""
    goal, data = (config.truncation, config.outer_loss), config.outer_data
    order = (config.second_order, config.rematerialise)
    if config.estimator == "backprop":
        return TruncatedBackprop(*goal, *order, outer_data=data, network_clip=config.network_clip)
    if config.estimator == "es":
        return ES(*goal, config.sigma, outer_data=data)
    if config.estimator == "pes":
        return PES(*goal, config.sigma, outer_data=data)
    return Mixture(
        *goal, *order, config.sigma, config.pes_share, outer_data=data, network_clip=config.network_clip
    )
