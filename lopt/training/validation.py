"""Validation of a rule in training: the same networks of the same fixed tasks every time.

Shapes: K inner steps.
"""

from __future__ import annotations

from torch import Tensor

from lopt.inner.evaluation import train_networks
from lopt.inner.task import Task
from lopt.rules.base import Rule
from lopt.training.config import MetaConfig

SEED = 7_919


def validation_curve(rule: Rule, task: Task, config: MetaConfig) -> Tensor:
    """(K,) geometric mean over networks of the loss relative to the first, before each step.

    A loss that is not finite, or diverged, counts as the limit.
    """
    seeds = range(SEED, SEED + config.validation_networks)
    curves = train_networks(
        rule.on(task.graph), task, seeds, config.validation_steps, total_steps=config.validation_steps,
        splits=(), label=f"validation, {task.name}",
    )  # fmt: skip
    return curves.log_relative.double().mean(0).exp()
