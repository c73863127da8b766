"""Learned optimizers for PyTorch: meta-train graph metanetworks that update weights, and use them anywhere."""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lopt import rules
    from lopt.graph import ParameterGraph
    from lopt.graph.first_forward import trace_on_first_forward
    from lopt.graph.tracing.ops.table import rule as register_op_rule
    from lopt.metanets import METANETS
    from lopt.optim.learned_optimizer import LearnedOptimizer
    from lopt.rules import load_rule, make_rule, push_rule, save_rule
    from lopt.rules.directions import DIRECTIONS
    from lopt.training.estimators import ESTIMATORS
    from meta_tasks import register_family

    register_metanet = METANETS.register
    register_direction = DIRECTIONS.register
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

_PLACES = {
    "LearnedOptimizer": "lopt.optim.learned_optimizer:LearnedOptimizer",
    "ParameterGraph": "lopt.graph:ParameterGraph",
    "load_rule": "lopt.rules:load_rule",
    "make_rule": "lopt.rules:make_rule",
    "push_rule": "lopt.rules:push_rule",
    "register_direction": "lopt.rules.directions:DIRECTIONS.register",
    "register_estimator": "lopt.training.estimators:ESTIMATORS.register",
    "register_family": "meta_tasks:register_family",
    "register_metanet": "lopt.metanets:METANETS.register",
    "register_op_rule": "lopt.graph.tracing.ops.table:rule",
    "save_rule": "lopt.rules:save_rule",
    "trace_on_first_forward": "lopt.graph.first_forward:trace_on_first_forward",
}


def __getattr__(name: str) -> Any:
    # Not at the top: the command line, which is in this package, must run before torch is imported, which takes a
    # second in which Ctrl-C gave a traceback; and who optimizes with a rule needs no meta-training and no tasks.
    if name in _PLACES:
        return resolve_name(_PLACES[name])
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
