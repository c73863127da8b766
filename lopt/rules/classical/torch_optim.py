"""Any optimizer class, of `torch.optim` or of another package, as a baseline in comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.rules.base import Rule, State, Tensors, working_dtype

EXCLUDED = {"Optimizer", "LBFGS", "SparseAdam"}
"""The base class, one that needs a closure, and one that needs sparse gradients."""


class TorchOptim(Rule):
    """An optimizer class, or the `torch.optim` class of that name, as a pure rule: rebuilt at every step.

    Slow, neither vmap-able nor differentiable, but the reference implementation itself. As a pure rule it keeps what
    the optimizer's state holds in tensors; `lopt.inner.evaluation` steps the optimizer itself, whatever it holds.

    Raises: ConfigError for a name that is not there, options or parameters that it refuses.
    """

    def __init__(self, optimizer: str | type[torch.optim.Optimizer], **options: Any) -> None:
        super().__init__()
        self.optimizer = optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
        self.options = options
        self._made([torch.nn.Parameter(torch.zeros(1, 1))])
        try:
            self._made([torch.nn.Parameter(torch.zeros(1))])
        except ConfigError:
            self.matrices_only = True
        else:
            self.matrices_only = False

    def build(self, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer itself, for use in an ordinary training loop.

        One that takes matrices alone, as Muon does, has AdamW at the same learning rate for the rest.
        """
        if not self.matrices_only:
            return self._made(params)
        matrices, others = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
        if not matrices:
            raise ConfigError(f"{self.optimizer.__name__} takes matrices alone, and the network has none")
        return WithAdamW(self._made(matrices), others) if others else self._made(matrices)

    def _made(self, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        try:
            return self.optimizer(params, **self.options)
        except (TypeError, ValueError) as error:
            name = self.optimizer.__name__
            raise ConfigError(f"{name} refused its options or parameters: {error}") from error

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


class WithAdamW(torch.optim.Optimizer):
    """An optimizer of matrices, and AdamW for all other parameters."""

    def __init__(self, matrices: torch.optim.Optimizer, others: list[torch.nn.Parameter]) -> None:
        self.parts = (matrices, torch.optim.AdamW(others, lr=matrices.param_groups[0]["lr"]))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # The parts' own groups, so that a learning rate set here is theirs.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of `torch.optim` of that name, or any other by its dotted one ("pytorch_optimizer.SOAP").

    Raises ConfigError with the names there are.
    """
    module, _, own = name.rpartition(".")
    try:
        members = vars(import_module(module) if module else torch.optim)
    except ImportError as error:
        raise ConfigError(f"Expected an optimizer's dotted name, found {name!r}: {error}.") from None
    usable = {
        n: c
        for n, c in members.items()
        if n not in EXCLUDED and isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    if own not in usable:
        place = module or "torch.optim"
        raise ConfigError(f"Expected an optimizer of {place} out of {sorted(usable)}, found {name!r}.")
    return usable[own]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if value is not None}
