"""Learned optimizers for PyTorch: meta-train graph metanetworks that update weights, and use them anywhere."""

from typing import TYPE_CHECKING, Any

from lopt import rules
from lopt.graph import ParameterGraph
from lopt.graph.first_forward import trace_on_first_forward
from lopt.graph.tracing.ops.table import rule as register_op_rule
from lopt.metanets import METANETS
from lopt.optim.learned_optimizer import LearnedOptimizer
from lopt.rules import load_rule, make_rule, push_rule, save_rule
from lopt.rules.directions import DIRECTIONS

if TYPE_CHECKING:
    from lopt.training.estimators import ESTIMATORS
    from meta_tasks import register_family

    register_estimator = ESTIMATORS.register

__version__ = "0.1.0"

__all__ = [
    "LearnedOptimizer",
    "ParameterGraph",
    "load_rule",
    "make_rule",
    "push_rule",
    "register_direction",
    "register_estimator",
    "register_family",
    "register_metanet",
    "register_op_rule",
    "rules",
    "save_rule",
    "trace_on_first_forward",
]

register_metanet = METANETS.register
register_direction = DIRECTIONS.register


def __getattr__(name: str) -> Any:
    # Who optimizes with a rule needs no meta-training and no tasks, which take long to import.
    if name == "register_estimator":
        from lopt.training.estimators import ESTIMATORS

        return ESTIMATORS.register
    if name == "register_family":
        from meta_tasks import register_family

        return register_family
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
