"""The interface of every update rule, learned or classical: a pure pair `init` / `update` on dicts of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.rules.shards import Shards

Tensors = Mapping[str, Tensor]
"""Parameters, gradients or updates, keyed by parameter name."""

State = dict[str, dict[str, Tensor]]
"""For each parameter name its state tensors by key; every entry is a tensor, so that states stack and vmap."""


class Decision(NamedTuple):
    """A step that is decided, but not yet made."""

    checked: list[Tensor]
    """What has to be finite for the step to be."""
    parts: Callable[[Tensor | None], Iterator[tuple[Tensors, State]]]
    """The deltas and next states of all parameters, some at a time, once; where a gate, () bool, is given and false,
    neither is worth anything but for state that is written in place."""


OWN = {
    *("step", "total_steps", "pace", "momenta", "memory", "second", "momentum", "m", "u", "v", "weight_sum"),
    *(
        "rows",
        "rows_moment",
        "rows_root",
        "rows_basis",
        "columns",
        "columns_moment",
        "columns_root",
        "columns_basis",
    ),
}
"""Under what lopt's rules keep state. Wrappers of an optimizer put what is theirs beside it under other names."""


class Rule(nn.Module, ABC):
    """An update rule. Its parameters are the meta-parameters; classical rules have none.

    A rule works on any network: `rule.on(graph)` binds it to one and gives the pure functions.
    """

    fused: bool = False
    """Whether `decide` may run compiled kernels, if the rule has any."""

    @abstractmethod
    def init(
        self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
    ) -> State:
        """The state before the first step.

        `total_steps` is the planned number of steps, for rules that anneal; None if unknown.
        """

    @abstractmethod
    def forward(
        self, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors
    ) -> tuple[Tensors, State]:
        """One step: the *deltas* to add to the parameters, and the next state. Pure; no input is modified."""

    def decide(
        self,
        graph: ParameterGraph,
        grads: Tensors,
        state: State,
        params: Tensors,
        shards: Shards | None = None,
    ) -> Decision:
        """`forward`, for a user's step, which needs no derivative and as little memory as can be.

        Once its parts are asked for, tensors of `state` may be written in place; those come back as they are. With
        `shards` all tensors are the rows that this rank holds, in and out, and every rank decides at the same time.
        """
        deltas, next_state = self(graph, grads, state, params)
        return Decision(list(deltas.values()), lambda gate: iter([(deltas, next_state)]))

    def takes_shards(self, graph: ParameterGraph) -> bool:
        """Whether `init` and `decide` can do with a rank's rows of each tensor; else they are given all of it."""
        return False

    def evaluation_params(self, params: Tensors, state: State, lr: Tensor | float = 1.0) -> Tensors:
        """The parameters to evaluate the network at, for rules that train at one point and average at another."""
        return params

    def hastened(self, meta_parameters: Tensors, log_factors: Tensor) -> dict[str, Tensor]:
        """Meta-parameters of T such rules (T, *shape), with base rates e^x times as high, x (T,)."""
        raise NotImplementedError(f"{type(self).__name__} has no base rate")

    def on(self, graph: ParameterGraph, meta_parameters: Tensors | None = None) -> BoundRule:
        """This rule on one network, optionally with other meta-parameters than its own."""
        if not isinstance(graph, ParameterGraph):
            raise GraphError(f"graph: expected a ParameterGraph, found {type(graph).__name__}")
        return BoundRule(self, graph, meta_parameters)


@dataclass(frozen=True)
class BoundRule:
    """A rule on one network: the pure pair (`init`, `update`), vmap-able and differentiable."""

    rule: Rule
    graph: ParameterGraph
    meta_parameters: Tensors | None = None

    def init(self, params: Tensors, total_steps: Tensor | float | None = None) -> State:
        """The state before the first step."""
        self._check("params", params)
        return self.rule.init(self.graph, params, total_steps)

    def delta(self, grads: Tensors, state: State, params: Tensors) -> tuple[Tensors, State]:
        """What one step adds to each parameter, in float32 or wider, and the next state."""
        for what, given in (("grads", grads), ("state", state), ("params", params)):
            self._check(what, given)
        args = (self.graph, grads, state, params)
        if self.meta_parameters is None:
            return self.rule(*args)
        return torch.func.functional_call(self.rule, dict(self.meta_parameters), args)

    def _check(self, what: str, given: Mapping[str, object]) -> None:
        missing = next((name for name in self.graph.parameters if name not in given), None)
        if missing is not None:
            raise GraphError(
                f"{what}: expected those of all parameters of the graph, found none of {missing!r}; for some of them"
                " bind the rule to graph.subset(names)"
            )

    def decide(self, grads: Tensors, state: State, params: Tensors, shards: Shards | None = None) -> Decision:
        """The step of the rule's own meta-parameters, still to be made."""
        return self.rule.decide(self.graph, grads, state, params, shards)

    def update(
        self, grads: Tensors, state: State, params: Tensors, lr: Tensor | float = 1.0
    ) -> tuple[dict[str, Tensor], State]:
        """One step: params + lr * delta, in the parameters' own dtype, and the next state."""
        deltas, state = self.delta(grads, state, params)
        return {name: (p + lr * deltas[name]).to(p.dtype) for name, p in params.items()}, state


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """What is computed and remembered together: float64 if any of it is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
