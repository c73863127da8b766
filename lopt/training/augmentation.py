"""Task augmentation: the same networks in other units, so that a rule cannot learn the scales of its own tasks.

Shapes: T networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lopt.graph import ParameterGraph
from lopt.inner.task import Batch, Task


class Scales(NamedTuple):
    """The units of T networks."""

    weights: dict[str, Tensor]
    """(T,) for each parameter: the network computes with scale times what the rule sees."""
    loss: Tensor
    """(T,) factors on the loss."""


@dataclass(frozen=True)
class Augmentation:
    """Log-normal units, drawn for each network and tensor."""

    reparametrise: float = 0.0
    """Standard deviation of the log of a tensor's scale."""
    rescale_loss: float = 0.0
    """Standard deviation of the log of the loss's factor."""

    def __bool__(self) -> bool:
        return self.reparametrise > 0 or self.rescale_loss > 0

    def draw(self, task: Task, count: int, generator: Generator) -> Scales:
        """Units for `count` networks, on the CPU."""
        normal = torch.randn(len(task.graph.parameters) + 1, count, generator=generator)
        weights = torch.exp(self.reparametrise * normal[1:])
        names = list(task.graph.parameters)
        return Scales(dict(zip(names, weights, strict=True)), torch.exp(self.rescale_loss * normal[0]))


NO_AUGMENTATION = Augmentation()


class Augmented(Task):
    """T networks of a task, each in units of its own: L'(p) = c L(s p), with s for each tensor.

    The rule sees p = theta / s and gradients c s dL/dtheta: what it does for theta depends on the units unless it
    ignores them. As in the task augmentation of Metz et al. 2022 (arXiv 2203.11860).
    """

    def __init__(self, task: Task, scales: Scales) -> None:
        self.task, self.scales, self.name = task, scales, task.name

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        """As the task, for exactly T networks."""
        self._check(count)
        return {
            n: p / _aligned(self.scales.weights[n], p) for n, p in self.task.init(count, generator).items()
        }

    def sample(self, split: str, count: int, generator: Generator) -> Batch:
        """As the task, for exactly T networks; each batch carries the units of its network."""
        self._check(count)
        return self.task.sample(split, count, generator), self.scales

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        inner, scales = batch
        units = {name: p * scales.weights[name].to(p) for name, p in params.items()}
        value = self.task.loss(units, inner)
        return value * scales.loss.to(value)

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        """Not defined: metrics are given parameters without their units."""
        raise NotImplementedError("metrics of an augmented task; take those of the task itself")

    def trace(self) -> ParameterGraph:
        return self.task.graph

    def replaced(self, index: Tensor, fresh: Scales) -> Augmented:
        """With the units of the networks at `index` replaced."""
        weights = {n: s.index_copy(0, index, fresh.weights[n]) for n, s in self.scales.weights.items()}
        return Augmented(self.task, Scales(weights, self.scales.loss.index_copy(0, index, fresh.loss)))

    def _check(self, count: int) -> None:
        if count != len(self.scales.loss):
            raise ValueError(
                f"expected the {len(self.scales.loss)} networks that the units are for, found {count}"
            )


def _aligned(scale: Tensor, param: Tensor) -> Tensor:
    """(T,) -> (T, 1, ...), as many axes as the parameter."""
    return scale.to(param).reshape(-1, *[1] * (param.dim() - 1))
