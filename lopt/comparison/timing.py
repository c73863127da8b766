"""What one step of an optimizer costs a user, in milliseconds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean, median
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
    loop = _Loop(rule, task, clock, compiled)
    gradient_times, step_times = [], []
    for _ in range(warmup + repeats):
        gradient_times.append(loop.gradient())
        step_times.append(loop.step())
    return StepTime(median(step_times[warmup:]), median(gradient_times[warmup:]))


def times_in_turns(
    rules: Mapping[str, Rule],
    task: Task,
    rounds: int = 12,
    turn: int = 8,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, StepTime]:
    """What a step of each of several rules costs, all in one process and in turns, so that a busy machine slows each
    alike.

    In every round each rule, in random order, takes `turn` steps: what counts is their mean, as some rules do at every
    fourth step what they leave out at the others, and of that the median over the rounds. The gradient is the same for
    all, and so is its time: the median over all turns.
    """
    loops = {name: _Loop(rule, task, clock) for name, rule in rules.items()}
    steps: dict[str, list[float]] = {name: [] for name in rules}
    gradients: list[float] = []
    order, shuffle = list(loops), random.Random(0).shuffle
    for number in range(rounds + 1):
        shuffle(order)
        for name in order:
            times = [(loops[name].gradient(), loops[name].step()) for _ in range(turn)]
            if number:  # the first round warms up
                gradients.append(mean(gradient for gradient, _ in times))
                steps[name].append(mean(step for _, step in times))
    return {name: StepTime(median(own), median(gradients)) for name, own in steps.items()}


class _Loop:
    """A network in an ordinary training loop; what a gradient and a step took, in milliseconds."""

    def __init__(self, rule: Rule, task: Task, clock: Callable[[], float], compiled: bool = False) -> None:
        generator = Generator().manual_seed(0)
        self._task, self._clock = task, clock
        self._params = {n: p[0].detach().clone().requires_grad_() for n, p in task.init(1, generator).items()}
        self._batch = torch.utils._pytree.tree_map(lambda x: x[0], task.sample("train", 1, generator))
        self._optimizer = make_optimizer(rule, task, self._params)
        step = self._optimizer.step
        self._step: Callable[[], Any] = torch.compile(step, dynamic=False) if compiled else step

    def gradient(self) -> float:
        return _milliseconds(self._backward, self._clock)

    def step(self) -> float:
        return _milliseconds(self._step, self._clock)

    def _backward(self) -> None:
        self._optimizer.zero_grad()
        self._task.loss(self._params, self._batch).backward()


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
