"""Classical rules, in the same pure form as the learned ones."""

from collections.abc import Callable

from lopt.rules.base import Rule
from lopt.rules.classical.adam import Adam, AdamW
from lopt.rules.classical.base import ClassicalRule
from lopt.rules.classical.sgd import SGD

CLASSICAL: dict[str, Callable[..., Rule]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
"""The classical rules by name; each is called with its hyperparameters, `lr` among them."""

__all__ = ["CLASSICAL", "SGD", "Adam", "AdamW", "ClassicalRule"]
