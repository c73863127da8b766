"""What an ordinary optimizer reaches on a task, to measure a rule by.

Shapes: H steps, N networks.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lopt.inner.evaluation import train_networks
from lopt.inner.step import FLOOR
from lopt.inner.task import Task
from lopt.rules.classical import CLASSICAL

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = 2
SMOOTHING = 10
"""The curve at step t is a mean over t / SMOOTHING steps to both sides: losses of single batches are noisy."""


def reference_curve(task: Task, steps: int, generator: Generator) -> Tensor:
    """(H,): the loss of Adam before each step relative to its first, at the best of `RATES`; geometric means."""
    base = int(torch.randint(2**31, (), generator=generator))
    seeds = [base + seed for seed in range(SEEDS)] * len(RATES)
    rates = torch.tensor(RATES).repeat_interleave(SEEDS)
    rule = CLASSICAL["adam"](1.0).on(task.graph)
    curves = train_networks(rule, task, seeds, steps, lr=rates, splits=())
    logs = curves.log_relative.reshape(len(RATES), SEEDS, steps).mean(1)
    return (torch.exp(_smoothed(logs[logs.mean(1).argmin()])) - FLOOR).clamp(min=0)


def _smoothed(values: Tensor) -> Tensor:
    """(H,) centred running means that widen with time."""
    index = torch.arange(len(values))
    low, high = index - index // SMOOTHING, (index + index // SMOOTHING).clamp(max=len(values) - 1)
    # In float64: differences of running sums lose what float32 has no digits for.
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), values.double().cumsum(0)])
    return ((sums[high + 1] - sums[low]) / (high + 1 - low)).float()
