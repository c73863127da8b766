"""Validation of a rule in training: the same networks of the same fixed tasks every time.

Shapes: K inner steps, T networks.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lopt.inner.step import LIMIT, Networks, second_order_step
from lopt.inner.task import Task
from lopt.progress import tracked
from lopt.rules.base import Rule
from lopt.training.config import MetaConfig

SEED = 7_919

FLOOR = 2e-2
"""Added to relative losses: a task that is learned to the end soon must not outweigh all others in the logarithm."""


def validation_curve(rule: Rule, task: Task, config: MetaConfig) -> Tensor:
    """(K,) geometric mean over networks of the loss relative to the first, before each step.

    A non-finite or diverged loss counts as the limit.
    """
    generator = Generator().manual_seed(SEED)
    count = config.validation_networks
    bound = rule.on(task.graph)
    params = task.init(count, generator)
    told = torch.full((count,), float(config.validation_steps), device=next(iter(params.values())).device)
    step = second_order_step(bound, task)
    losses: list[Tensor] = []
    with torch.no_grad():
        networks = Networks(params, torch.vmap(bound.init)(params, told))
        for _ in tracked(range(config.validation_steps), f"validation, {task.name}"):
            loss, networks = step(networks, task.sample("train", count, generator))
            losses.append(loss)
    ratio = torch.stack(losses) / losses[0].clamp(min=1e-8)
    ratio = torch.where(torch.isfinite(ratio), ratio, LIMIT).clamp(max=LIMIT)
    return torch.log(ratio + FLOOR).mean(1).exp().double().cpu()
