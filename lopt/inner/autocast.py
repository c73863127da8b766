"""The inner networks in bfloat16: half the memory traffic, and the matrix units of a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from lopt.graph import ParameterGraph
from lopt.inner.task import Batch, Task


class Autocast(Task):
    """A task whose networks compute in bfloat16 where `torch.autocast` would have them, and in float32 elsewhere.

    Parameters, gradients, losses and the rule itself stay as they are.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.name = task, task.name

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        return self.task.init(count, generator)

    def sample(self, split: str, count: int, generator: Generator) -> Batch:
        return self.task.sample(split, count, generator)

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        first = next(iter(params.values()))
        # Without the cache: what it keeps of one level of differentiation is of no use to another.
        with torch.autocast(first.device.type, torch.bfloat16, cache_enabled=False):
            value = self.task.loss(params, batch)
        return value.to(first.dtype)

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        return self.task.metrics(params, split)

    def trace(self) -> ParameterGraph:
        return self.task.graph
