"""Meta-gradient estimators: one truncation of a cohort -> the derivative of the outer loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lopt.registry import Registry
from lopt.training.estimators.backprop import TruncatedBackprop
from lopt.training.estimators.base import Estimate, Estimator, has_diverged, initial_losses
from lopt.training.estimators.es import ES
from lopt.training.estimators.lives import WholeLives
from lopt.training.estimators.mixture import Mixture
from lopt.training.estimators.pes import NRES, PES

if TYPE_CHECKING:
    from lopt.training.config import MetaConfig

__all__ = [
    "ES",
    "ESTIMATORS",
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


ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator", Estimator, given=("truncation", "outer_loss", "outer_data", "compiled"), default="backprop"
)
"""Every estimator by the name that configs use."""

for _name, _estimator in {
    "backprop": TruncatedBackprop,
    "es": ES,
    "pes": PES,
    "nres": NRES,
    "lives": WholeLives,
    "mixture": Mixture,
}.items():
    ESTIMATORS.register(_name)(_estimator)


def make_estimator(config: MetaConfig) -> Estimator:
    """The estimator that a config names."""
    return ESTIMATORS.make(
        config.estimator,
        truncation=config.truncation,
        outer_loss=config.outer_loss,
        outer_data=config.outer_data,
        compiled=config.compile,
    )
