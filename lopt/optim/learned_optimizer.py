"""The `torch.optim` face of a rule: it gathers gradients and state, lets the rule decide and applies the result."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler
from torch.optim import Optimizer

from lopt.errors import ConfigError, GraphError
from lopt.graph import ParameterGraph
from lopt.graph.first_forward import FirstForwardGraph
from lopt.optim.loss_guard import LossGuard, base_of, mean_over_ranks
from lopt.optim.matching import Entry, Naming
from lopt.optim.sharding import gathered, is_sharded, sharded_like
from lopt.optim.step import all_finite, apply, check, check_gradient, check_group, chosen, owned
from lopt.rules.base import BoundRule, Rule, State

_Key = tuple[bool, tuple[tuple[int, int, torch.device], ...]]


class LearnedOptimizer(Optimizer):
    """Trains the parameters with a learned (or classical) rule; used as `torch.optim.AdamW` is.

    One step is

        p <- (1 - lr * 1e-3 * weight_decay) p + lr * delta,    delta = rule(gradients, state, parameters)

    where the rule sees all parameters with a gradient at once, exactly as in meta-training. `lr` multiplies what
    the rule decides, so 1.0 is right and schedulers work on it. `weight_decay` is decoupled and means what it
    means to AdamW at its default learning rate of 1e-3; it comes on top of what a rule decays by itself. Gradients
    are never modified. A step with a gradient that is not finite changes nothing and is counted in
    `skipped_steps`.

    Args:
        params: parameters, named parameters or parameter groups. A group may have its own lr, weight_decay and
            maximize.
        rule: a `lopt.rules.Rule`, the name of one that ships with lopt, or the path of a rule file.
        graph: the model's `ParameterGraph`, or `lopt.trace_on_first_forward(model)`. Without one the axes of all
            tensors stay untied. Parameters are matched by name where they have names, else by shape and order;
            those added by a later `add_param_group` may lie outside the graph and stay untied.
        lr: multiplies every step; a number or a one-element tensor.
        weight_decay: see above.
        total_steps: the planned number of steps, for rules that anneal; each parameter counts from its first gradient.
        maximize: ascend instead of descending.
        loss_guard: let the rule's base optimizer take over while the training loss rises. Needs the losses: pass a
            closure to `step`, or call `observe(loss)` before it. `guard` tells who is in charge, and for how long.

    Raises `GraphError` if parameters and graph do not fit, `ConfigError` for a value out of range, and, in `step`,
    `GradientError` for sparse gradients.
    """

    def __init__(
        self,
        params: Any,
        *,
        rule: Rule | str | os.PathLike[str] = "lopt-base",
        graph: ParameterGraph | FirstForwardGraph | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        total_steps: float | None = None,
        maximize: bool = False,
        loss_guard: bool = False,
    ) -> None:
        fits = total_steps is None or 0 < total_steps < math.inf
        check(fits, "total_steps", "a number above 0 or None", total_steps)
        self._naming: Naming | None = None
        self._calls: dict[_Key, list[_Call]] = {}
        self._rules: dict[tuple[torch.device, bool], Rule] = {}
        self._skipped = torch.zeros((), dtype=torch.int64)
        self.guard = LossGuard() if loss_guard else None
        self._observed = False
        self._given_graph = graph
        self.total_steps = total_steps
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        self.rule = _frozen_copy(rule)
        self._first_groups = len(self.param_groups)
        if not isinstance(graph, FirstForwardGraph):
            self._naming = self._find_names()

    @property
    def graph(self) -> ParameterGraph | None:
        """The graph in use, with whatever was added to it; None before the first forward pass has given it."""
        return None if self._naming is None else self._naming.graph

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient was not finite."""
        return int(self._skipped)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those that the graph does not hold are tied to nothing."""
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            if self._naming is not None:
                number = len(self.param_groups) - 1
                self._naming = self._naming.add(_entries(self.param_groups[-1]), number)
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; `closure`, if given, recomputes the gradients and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.observe(loss)
        if self.guard is not None:
            told = self._observed or self._makes_state()
            check(told, "loss_guard", "a closure, or observe(loss) before each step", "neither")
            self._observed = False
        with torch.no_grad():
            if torch.compiler.is_compiling() and not self._is_bound():
                self._uncompiled_step()
            else:
                self._step()
        return loss

    def observe(self, loss: float | Tensor) -> None:
        """Tell the loss guard, if there is one, the training loss (to be minimised) before a step."""
        if self.guard is not None:
            self.guard.observe(mean_over_ranks(loss))
            self._observed = True

    def _makes_state(self) -> bool:
        """Whether a step only makes state: before loading, torch.distributed.checkpoint does one with an lr of 0."""
        return not self.state and all(float(group["lr"]) == 0 for group in self.param_groups)

    @_disable_dynamo
    def _uncompiled_step(self) -> None:
        """The first step of its kind: what it makes anew would cut the compiled one into pieces for good.

        It leaves state in the memory layout of compiled steps, or else the next one would be compiled twice.
        """
        self._step()
        self._untangle()

    def _step(self) -> None:
        calls = self._plan()
        if not calls:
            return
        inputs = [[gathered(p.grad) for p in call.params] for call in calls]  # type: ignore[arg-type]
        finite = all_finite([g for grads in inputs for g in grads])
        if finite.device != self._skipped.device:
            self._skipped = self._skipped.to(finite.device)
        self._skipped += ~finite
        # Elsewhere than on the CPU, asking for the value would stall the device: there a skipped step is a step of
        # size zero that keeps the old state.
        gate = finite if finite.device.type != "cpu" or torch.compiler.is_compiling() else None
        if gate is None and not finite:
            return
        for call, grads in zip(calls, inputs, strict=True):
            self._run(
                call, grads, None if gate is None else gate.to(call.params[0].device, non_blocking=True)
            )

    def _run(self, call: _Call, grads: list[Tensor], gate: Tensor | None) -> None:
        """Let the rule act on the parameters of one device."""
        old = self._states(call)
        params = dict(zip(call.names, map(gathered, call.params), strict=True))
        for part in call.parts:
            if self.param_groups[part.group]["maximize"]:
                for i in part.indices:
                    grads[i] = -grads[i]
        with torch.autocast(call.params[0].device.type, enabled=False):
            deltas, new = call.bound.delta(dict(zip(call.names, grads, strict=True)), old, params)
        if gate is not None:
            deltas = {name: torch.where(gate, delta, 0) for name, delta in deltas.items()}
            new = chosen(gate, new, old)
        self._remember(call, new)
        for part in call.parts:
            apply(
                [call.params[i] for i in part.indices],
                [deltas[call.names[i]] for i in part.indices],
                self.param_groups[part.group],
                gate,
            )

    def _states(self, call: _Call) -> State:
        """The state of every parameter of a call, made for those that have none."""
        states = dict(zip(call.names, (self.state[p] for p in call.params), strict=True))
        if not all(states.values()):
            states.update(self._first_states(call, [name for name, state in states.items() if not state]))
        if call.sharded:
            return {n: {key: gathered(value) for key, value in state.items()} for n, state in states.items()}
        return states

    @_disable_dynamo
    def _first_states(self, call: _Call, names: list[str]) -> State:
        owners = dict(zip(call.names, call.params, strict=True))
        params = {name: gathered(owners[name]) for name in names}
        return call.bound.rule.init(call.bound.graph.subset(names), params, self.total_steps)

    def _remember(self, call: _Call, new: State) -> None:
        owners = list(zip(call.names, call.params, strict=True))
        if call.params[0].is_cuda and torch.cuda.is_current_stream_capturing():
            # A CUDA graph replays on the memory it was captured with.
            pairs = [(self.state[p][key], value) for name, p in owners for key, value in new[name].items()]
            torch._foreach_copy_([old for old, _ in pairs], [value for _, value in pairs])
            return
        for name, p in owners:
            state = new[name]
            self.state[p] = {k: sharded_like(t, p) for k, t in state.items()} if call.sharded else state
        if len(self.state) > len(owners):
            self._untangle()

    @_disable_dynamo
    def _untangle(self) -> None:
        """Give every state memory of its own.

        A step's new states are views of a few tensors. Where steps differ in their parameters, a single state that
        is not replaced would keep the memory of all its step.
        """
        for p, state in self.state.items():
            self.state[p] = {key: owned(value) for key, value in state.items()}

    def _plan(self) -> list[_Call]:
        """The rule bound to the parameters that have a gradient now, one call for each device."""
        if self._naming is None:
            naming = self._find_names()
            self._check_states(naming, [(p, self.state.get(p, {})) for p in self._params()])
            self._naming = naming
        params = self._params()
        base, active = key = self._key(params)
        for i, _, _ in active:
            check_gradient(self._naming.names[i], params[i].grad)
        if key not in self._calls:
            self._calls[key] = self._bind(self._naming, base, active)
        return self._calls[key]

    def _params(self) -> list[Any]:
        """Every parameter, group after group."""
        return [p for group in self.param_groups for p in group["params"]]

    def _key(self, params: Sequence[Tensor]) -> _Key:
        """What a plan depends on: whether the guard has fallen back, and which parameters have a gradient."""
        active = [(i, id(p), p.device) for i, p in enumerate(params) if p.grad is not None and p.numel() > 0]
        return self.guard is not None and self.guard.fallback, tuple(active)

    def _is_bound(self) -> bool:
        """Whether there has been a step of the kind that is to be done now."""
        return self._naming is not None and self._key(self._params()) in self._calls

    @_disable_dynamo
    def _bind(
        self, naming: Naming, base: bool, active: Sequence[tuple[int, int, torch.device]]
    ) -> list[_Call]:
        owners = [(p, number) for number, group in enumerate(self.param_groups) for p in group["params"]]
        calls = []
        for device in dict.fromkeys(device for _, _, device in active):
            here = {naming.names[i]: owners[i] for i, _, d in active if d == device}
            whole = here.keys() == naming.graph.parameters.keys()
            graph = naming.graph if whole else naming.graph.subset(here)
            names = list(graph.parameters)
            params, groups = zip(*(here[name] for name in names), strict=True)
            bound, sharded = self._rule_on(device, base).on(graph), any(map(is_sharded, params))
            calls.append(_Call(bound, names, list(params), _parts(groups), sharded))
        if len(self._calls) >= MAX_PLANS:
            self._calls.clear()
        return calls

    def _rule_on(self, device: torch.device, base: bool = False) -> Rule:
        """The rule or its base optimizer where the parameters are."""
        if (device, base) not in self._rules:
            rule = base_of(self.rule) if base else self.rule
            there = all(t.device == device for t in [*rule.parameters(), *rule.buffers()])
            self._rules[device, base] = rule if there else copy.deepcopy(rule).to(device)
        return self._rules[device, base]

    def _find_names(self) -> Naming:
        graph = self._given_graph
        if isinstance(graph, FirstForwardGraph):
            if graph.graph is None:
                raise GraphError(
                    "expected a forward pass of the model given to trace_on_first_forward before the first step,"
                    " found none; call the model itself, or pass a ParameterGraph"
                )
            self._given_graph = graph = graph.graph
        groups = [_entries(group) for group in self.param_groups]
        naming = Naming.of(groups[: self._first_groups], graph)
        for number, group in enumerate(groups[self._first_groups :], self._first_groups):
            naming = naming.add(group, number)
        return naming

    def state_dict(self) -> dict[str, Any]:
        """As for every torch optimizer, and the count of skipped steps and what the loss guard has seen.

        `torch.distributed.checkpoint.state_dict` takes over what every torch optimizer has, and these two begin anew.
        """
        guard = {} if self.guard is None else {"loss_guard": asdict(self.guard)}
        return {**super().state_dict(), "skipped_steps": self.skipped_steps, **guard}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every torch optimizer, except that state keeps its dtype; it moves to the parameters' devices.

        Raises `ConfigError`, before anything changes, for the state of another rule.
        """
        final: dict[str, Any] = {}
        hooks = (
            self.register_load_state_dict_pre_hook(lambda _, loaded: self._check_loaded(final, loaded)),
            self.register_load_state_dict_post_hook(lambda _: self._load_exactly(final), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_loaded(self, final: dict[str, Any], loaded: dict[str, Any]) -> None:
        """Keep what is loaded after all hooks of the user, if it fits the rule."""
        final.update(loaded)
        sizes = [
            [len(group["params"]) for group in groups]
            for groups in (loaded["param_groups"], self.param_groups)
        ]
        # Torch refuses other groups itself; without names yet, the first step checks what was loaded.
        if self._naming is not None and sizes[0] == sizes[1]:
            self._check_states(self._naming, self._loaded_states(loaded))

    def _check_states(self, naming: Naming, states: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """Raise a `ConfigError` unless all that are not empty have the keys and shapes that the rule starts with."""
        saved = {name: state for name, (_, state) in zip(naming.names, states, strict=False) if state}
        shapes = {name: naming.graph.parameters[name].shape for name in saved}
        meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        if not meta:
            return
        fresh = self.rule.init(naming.graph.subset(meta), meta, self.total_steps)
        for name, state in saved.items():
            expected, found = _shapes(fresh[name]), _shapes(state)
            # A rule that starts with nothing, such as `TorchOptim`, makes its state in the first step.
            fits = not expected or found == expected
            check(fits, "state_dict", f"this rule's {expected} for {shapes[name]}", found)

    def _loaded_states(self, state_dict: Mapping[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        return [(p, state_dict["state"].get(key, {})) for key, p in zip(keys, self._params(), strict=False)]

    def _load_exactly(self, state_dict: Mapping[str, Any]) -> None:
        """torch casts loaded state to the dtype of its parameter; put in what was saved instead."""
        for p, saved in self._loaded_states(state_dict):
            if saved:
                self.state[p] = {
                    key: value.to(p.device, copy=True) if isinstance(value, Tensor) else value
                    for key, value in saved.items()
                }
        self._skipped = torch.tensor(state_dict.get("skipped_steps", 0), dtype=torch.int64)
        if self.guard is not None and "loss_guard" in state_dict:
            self.guard = LossGuard(**state_dict["loss_guard"])

    def __getstate__(self) -> dict[str, Any]:
        own = (
            "rule",
            "total_steps",
            "_given_graph",
            "_first_groups",
            "_naming",
            "_skipped",
            "guard",
            "_observed",
        )
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._calls, self._rules = {}, {}


MAX_PLANS = 64
"""How many sets of parameters with gradients are remembered at once."""


@dataclass(frozen=True)
class _Part:
    """The parameters of a call that belong to one parameter group."""

    group: int
    indices: list[int]


@dataclass(frozen=True)
class _Call:
    """The rule bound to some of the parameters, in the order of its graph."""

    bound: BoundRule
    names: list[str]
    params: list[Tensor]
    parts: list[_Part]
    sharded: bool


def _parts(groups: Sequence[int]) -> list[_Part]:
    return [_Part(group, [i for i, g in enumerate(groups) if g == group]) for group in dict.fromkeys(groups)]


def _entries(group: Mapping[str, Any]) -> list[Entry]:
    names = group.get("param_names", [None] * len(group["params"]))
    return list(zip(names, group["params"], strict=True))


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        for key, value in state.items()
    }


def _frozen_copy(rule: Rule | str | os.PathLike[str]) -> Rule:
    """The rule for this optimizer alone: nothing outside can move or train it."""
    if isinstance(rule, (str, os.PathLike)):
        from lopt.rules.io import load_rule

        rule = load_rule(rule)
    if not isinstance(rule, Rule):
        raise ConfigError(f"rule: expected a Rule, or the name or path of one, found {type(rule).__name__}")
    return copy.deepcopy(rule).requires_grad_(False).eval()
