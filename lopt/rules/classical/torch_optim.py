"""Any optimizer of `torch.optim`, as a baseline in comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.rules.base import Rule, State, Tensors, working_dtype

EXCLUDED = {"Optimizer", "LBFGS", "SparseAdam"}
"""The base class, one that needs a closure, and one that needs sparse gradients."""


class TorchOptim(Rule):
    """The `torch.optim` class of that name, as a pure rule: rebuilt, stepped and discarded at every step.

    Slow, neither vmap-able nor differentiable, but the reference implementation itself.

    Raises: ConfigError for a name that `torch.optim` does not have, options or parameters that it refuses.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.optimizer, self.options = optimizer_class(name), options
        self.build([torch.nn.Parameter(torch.zeros(1, 1))])

    def build(self, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer itself, for use in an ordinary training loop."""
        try:
            return self.optimizer(params, **self.options)
        except (TypeError, ValueError) as error:
            name = self.optimizer.__name__
            raise ConfigError(f"torch.optim.{name} refused its options or parameters: {error}") from error

    def init(
        self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
    ) -> State:
        return {name: {} for name in params}

    def forward(
        self, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors
    ) -> tuple[Tensors, State]:
        copies = {
            n: torch.nn.Parameter(p.detach().to(working_dtype(p), copy=True)) for n, p in params.items()
        }
        optimizer = self.build(list(copies.values()))
        for name, copy in copies.items():
            copy.grad = grads[name].detach().to(copy.dtype, copy=True)
            if state[name]:
                optimizer.state[copy] = {key: value.clone() for key, value in state[name].items()}
        optimizer.step()
        deltas = {name: copy.detach() - params[name] for name, copy in copies.items()}
        return deltas, {name: _tensors(optimizer.state[copy]) for name, copy in copies.items()}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of `torch.optim` of that name; raises ConfigError with the names there are."""
    found = vars(torch.optim)
    usable = {
        n: c
        for n, c in found.items()
        if n not in EXCLUDED and isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    if name not in usable:
        raise ConfigError(f"Expected an optimizer of torch.optim out of {sorted(usable)}, found {name!r}.")
    return usable[name]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if value is not None}
