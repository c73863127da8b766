"""Meta-gradient estimators: one truncation of a cohort -> the derivative of the outer loss."""

from __future__ import annotations

from typing import Any

from lopt.training.config import MetaConfig
from lopt.training.estimators.backprop import TruncatedBackprop
from lopt.training.estimators.base import Estimate, Estimator, has_diverged, initial_losses
from lopt.training.estimators.es import ES
from lopt.training.estimators.lives import WholeLives
from lopt.training.estimators.mixture import Mixture
from lopt.training.estimators.pes import NRES, PES

__all__ = [
    "ES",
    "NRES",
    "PES",
    "Estimate",
    "Estimator",
    "Mixture",
    "TruncatedBackprop",
    "WholeLives",
    "has_diverged",
    "initial_losses",
    "make_estimator",
]


def make_estimator(config: MetaConfig) -> Estimator:
    """The estimator that a config names."""
    goal = (config.truncation, config.outer_loss)
    order = (config.second_order, config.rematerialise)
    common: dict[str, Any] = {"outer_data": config.outer_data, "compiled": config.compile}
    if config.estimator == "es":
        return ES(*goal, config.sigma, **common)
    if config.estimator == "pes":
        return PES(*goal, config.sigma, **common)
    if config.estimator == "nres":
        return NRES(*goal, config.sigma, config.fitness, **common)
    if config.estimator == "lives":
        return WholeLives(*goal, config.sigma, config.fitness, config.final_batches, **common)
    common["network_clip"] = config.network_clip
    if config.estimator == "backprop":
        return TruncatedBackprop(*goal, *order, **common)
    return Mixture(*goal, *order, config.sigma, config.pes_share, **common)
