"""What the classical rules share: hyperparameters in the constructor, one independent step per parameter."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.rules.base import Rule, State, Tensors, working_dtype

Amount = Annotated[float, Field(ge=0)]
"""A hyperparameter without an upper bound: tuning looks for the largest that works."""


class ClassicalRule(Rule):
    """A rule with constant hyperparameters and no meta-parameters that treats each parameter by itself.

    Where `linear_in_lr` holds, every delta is proportional to `lr`, so that one rule with lr=1 can be run at
    many learning rates at once through `BoundRule.update(..., lr=...)`.
    """

    linear_in_lr: ClassVar[bool] = True

    elementwise: ClassVar[bool] = False
    """Whether the step of every scalar is its own, whatever tensor it is in."""

    @abstractmethod
    def start(self, param: Tensor) -> dict[str, Tensor]:
        """The state of one parameter before the first step, in its working dtype."""

    @abstractmethod
    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of one parameter: what to add to it, and its next state. All in the working dtype."""

    def init(
        self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
    ) -> State:
        return {name: self.part(graph, name).start(param) for name, param in params.items()}

    def forward(
        self, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors
    ) -> tuple[Tensors, State]:
        deltas, next_state = {}, {}
        for name, param in params.items():
            dtype = working_dtype(param)
            step = self.part(graph, name).step
            for _ in range(self.stacked(graph, name)):
                step = torch.vmap(step)
            # State may come from a file of another precision.
            own = {key: value.to(dtype) for key, value in state[name].items()}
            deltas[name], next_state[name] = step(grads[name].to(dtype), own, param.to(dtype))
        return deltas, next_state

    def takes_shards(self, graph: ParameterGraph) -> bool:
        return self.elementwise

    def part(self, graph: ParameterGraph, name: str) -> ClassicalRule:
        """The rule that moves parameter `name`: this one, unless it leaves some parameters to another."""
        return self

    def stacked(self, graph: ParameterGraph, name: str) -> int:
        """How many leading axes of parameter `name` count members that are each stepped by themselves."""
        return 0


def zeros(param: Tensor, shape: torch.Size | None = None) -> Tensor:
    """A fresh state tensor: of the parameter's shape unless told, in its working dtype."""
    return param.new_zeros(param.shape if shape is None else shape, dtype=working_dtype(param))


def counter(param: Tensor) -> Tensor:
    """A step count of its own, () in the working dtype, so that states stack and vmap."""
    return zeros(param, torch.Size())


def decay(param: Tensor, rate: float) -> Tensor:
    """-rate * param, rounded as `param.mul_(1 - rate)` rounds it: in float32 the difference adds up."""
    return param * (1 - rate) - param


def safe_sqrt(value: Tensor) -> Tensor:
    """The square root of a non-negative tensor, with derivative 0 rather than infinity at 0."""
    return value.clamp_min(torch.finfo(value.dtype).tiny).sqrt()
