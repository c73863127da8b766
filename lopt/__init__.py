"""Learned optimizers for PyTorch: meta-train graph metanetworks that update weights, and use them anywhere."""

from lopt import rules
from lopt.graph import ParameterGraph
from lopt.graph.first_forward import trace_on_first_forward
from lopt.graph.tracing.ops.table import rule as register_op_rule
from lopt.optim.learned_optimizer import LearnedOptimizer
from lopt.rules import load_rule, make_rule, push_rule, save_rule

__version__ = "0.1.0"

__all__ = [
    "LearnedOptimizer",
    "ParameterGraph",
    "load_rule",
    "make_rule",
    "push_rule",
    "register_op_rule",
    "rules",
    "save_rule",
    "trace_on_first_forward",
]
