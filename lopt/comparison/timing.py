"""What one step of an optimizer costs a user, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch
from torch import Generator, Tensor

from lopt.inner.task import Task
from lopt.optim.learned_optimizer import LearnedOptimizer
from lopt.rules.base import Rule
from lopt.rules.classical import SGD, Adafactor, Adam, AdamW, TorchOptim


@dataclass(frozen=True)
class StepTime:
    """Medians over the repeats, in milliseconds."""

    optimizer_ms: float
    """One optimizer step on one network."""
    gradient_ms: float
    """Forward and backward pass of the same network on one batch."""


def time_step(
    rule: Rule,
    task: Task,
    repeats: int = 30,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    compiled: bool = False,
) -> StepTime:
    """Train one network of the task in an ordinary loop, and time gradient and optimizer step apart.

    With `clock=time.process_time` the figures are processor time: on one thread the same as wall-clock time, but
    not what other programs of a busy machine take. With `compiled` the step runs under `torch.compile`.
    """
    generator = Generator().manual_seed(0)
    params = {n: p[0].detach().clone().requires_grad_() for n, p in task.init(1, generator).items()}
    batch = torch.utils._pytree.tree_map(lambda x: x[0], task.sample("train", 1, generator))
    optimizer = make_optimizer(rule, task, params)
    step = torch.compile(optimizer.step, dynamic=False) if compiled else optimizer.step

    def gradient() -> None:
        optimizer.zero_grad()
        task.loss(params, batch).backward()

    gradient_times, step_times = [], []
    for _ in range(warmup + repeats):
        gradient_times.append(_milliseconds(gradient, clock))
        step_times.append(_milliseconds(step, clock))
    return StepTime(median(step_times[warmup:]), median(gradient_times[warmup:]))


def make_optimizer(rule: Rule, task: Task, params: dict[str, Tensor]) -> torch.optim.Optimizer:
    """torch's own optimizer where there is one for a classical rule, `LearnedOptimizer` for every other rule."""
    leaves: Any = list(params.values())
    if isinstance(rule, TorchOptim):
        return rule.build({name: cast(torch.nn.Parameter, leaf) for name, leaf in params.items()}, task.graph)
    if isinstance(rule, SGD):
        return torch.optim.SGD(
            leaves, rule.lr, rule.momentum, rule.dampening, rule.weight_decay, nesterov=rule.nesterov
        )
    if isinstance(rule, Adam):
        return torch.optim.Adam(leaves, rule.lr, rule.betas, rule.eps, rule.weight_decay)
    if isinstance(rule, AdamW):
        return torch.optim.AdamW(leaves, rule.lr, rule.betas, rule.eps, rule.weight_decay)
    if isinstance(rule, Adafactor):
        return torch.optim.Adafactor(
            leaves, rule.lr, rule.beta2_decay, (None, rule.eps), rule.clip, rule.weight_decay
        )
    return LearnedOptimizer(params.items(), rule=rule, graph=task.graph)


def _milliseconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (clock() - start)
