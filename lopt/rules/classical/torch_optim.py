"""Any optimizer class, of `torch.optim` or of another package, as a baseline in comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import is_hidden_matrix
from lopt.rules.base import Rule, State, Tensors, working_dtype

EXCLUDED = {"Optimizer", "LBFGS", "SparseAdam"}
"""The base class, one that needs a closure, and one that needs sparse gradients."""


class TorchOptim(Rule):
    """An optimizer class, or the `torch.optim` class of that name, as a pure rule: rebuilt at every step.

    Slow, neither vmap-able nor differentiable, but the reference implementation itself. As a pure rule it keeps what
    the optimizer's state holds in tensors; `lopt.inner.evaluation` steps the optimizer itself, whatever it holds.

    Raises: ConfigError for a name that is not there, options or parameters that it refuses, and a class that needs
        more than gradients for a step (a closure, second derivatives).
    """

    def __init__(self, optimizer: str | type[torch.optim.Optimizer], **options: Any) -> None:
        super().__init__()
        self.optimizer = optimizer_class(optimizer) if isinstance(optimizer, str) else optimizer
        self.options = options
        # Both refuse what will not do now, not after hours of comparing.
        self.takes = self._what_it_takes()
        self._try_step()

    def build(self, params: Mapping[str, torch.nn.Parameter], graph: ParameterGraph) -> torch.optim.Optimizer:
        """The optimizer itself, for use in an ordinary training loop.

        Of those for hidden matrices, one that takes matrices alone (`torch.optim.Muon`) has AdamW at the same learning
        rate for the rest, and one with an AdamW of its own (`use_muon` in its groups) keeps its own ratio of the rates.
        """
        if self.takes == "all":
            return self._made(list(params.values()))
        hidden = {name for name in params if is_hidden_matrix(graph, name)}
        if self.takes == "matrices":
            hidden = {name for name in hidden if params[name].dim() == 2}
        matrices = [p for name, p in params.items() if name in hidden]
        others = [p for name, p in params.items() if name not in hidden]
        if self.takes == "flagged":
            return self._made(self._flagged(matrices, others))
        if not others:
            return self._made(matrices)
        # From a matrix of no network, where the network has none: the rate is the optimizer's in any case.
        optimizer = self._made(matrices or [torch.nn.Parameter(torch.zeros(1, 1))])
        return WithAdamW(optimizer, others)

    def _what_it_takes(self) -> Literal["all", "matrices", "flagged"]:
        matrix, vector = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((1, 1), (1,)))
        try:
            self._made([matrix])
        except ConfigError as error:
            try:
                self._made(self._flagged([matrix], [vector]))
            except ConfigError:
                raise error from None
            return "flagged"
        try:
            self._made([vector])
        except ConfigError:
            return "matrices"
        return "all"

    def _try_step(self) -> None:
        matrix = torch.nn.Parameter(torch.ones(2, 2))
        matrix.grad = torch.ones(2, 2)
        optimizer = self._made(self._flagged([matrix], []) if self.takes == "flagged" else [matrix])
        try:
            optimizer.step()
        except Exception as error:
            name = self.optimizer.__name__
            raise ConfigError(
                f"{name}: expected an optimizer that steps by gradients alone, found {type(error).__name__} in its"
                f" step: {error}"
            ) from error

    def _flagged(self, matrices: list[torch.nn.Parameter], others: list[torch.nn.Parameter]) -> list[Any]:
        usual = {n: p.default for n, p in signature(self.optimizer).parameters.items()}
        rate = {}
        if "adamw_lr" in usual and "adamw_lr" not in self.options:
            rate = {"lr": self.options.get("lr", usual["lr"]) * usual["adamw_lr"] / usual["lr"]}
        groups: list[dict[str, Any]] = [
            {"params": matrices, "use_muon": True},
            {"params": others, "use_muon": False, **rate},
        ]
        return [group for group in groups if group["params"]]

    def _made(self, params: list[Any]) -> torch.optim.Optimizer:
        try:
            return self.optimizer(params, **self.options)
        except (TypeError, ValueError, RuntimeError) as error:
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
        optimizer = self.build(copies, graph)
        for name, copy in copies.items():
            # Copies of gradient and state, too: optimizers write to both, and a rule leaves what it is given alone.
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
        for part in self.parts:
            part.state = self.state  # one for both, so that what is put into it reaches them

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
