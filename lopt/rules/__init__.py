"""Pure update rules, learned and classical: `init(params) -> state`, `update(grads, state, params)`."""

from lopt.rules.base import BoundRule, Rule, State, Tensors
from lopt.rules.card import model_card, push_rule
from lopt.rules.config import LearnedRuleConfig
from lopt.rules.io import load_rule, pretrained_names, save_rule
from lopt.rules.learned import LearnedRule
from lopt.rules.registry import make_rule, names

__all__ = [
    "BoundRule",
    "LearnedRule",
    "LearnedRuleConfig",
    "Rule",
    "State",
    "Tensors",
    "load_rule",
    "make_rule",
    "model_card",
    "names",
    "pretrained_names",
    "push_rule",
    "save_rule",
]
