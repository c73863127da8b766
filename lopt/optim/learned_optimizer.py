"""The `torch.optim` face of a rule: it gathers gradients and state, lets the rule decide and applies the result."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler
from torch.optim import Optimizer

from lopt.errors import ConfigError, GraphError
from lopt.graph import ParameterGraph
from lopt.graph.first_forward import FirstForwardGraph
from lopt.optim import averages
from lopt.optim.loading import check_form, check_states, check_tensors, warn_of_nonfinite
from lopt.optim.loss_guard import LossGuard, base_of, mean_over_ranks
from lopt.optim.matching import Binding, labels_of
from lopt.optim.sharding import gathered, is_sharded, laid_out, local, sharded_like, shards_of
from lopt.optim.skips import IN_A_ROW, Skips, is_told, warn_of
from lopt.optim.step import (
    all_finite,
    apply,
    check,
    check_gradient,
    check_group,
    chosen,
    is_finite,
    keep_freed_memory,
    nonfinite_as_zero,
    number,
    of_tensors,
    owned,
    without_autocast,
    write,
)
from lopt.rules.base import BoundRule, Decision, Rule, State
from lopt.rules.learned import LearnedRule
from lopt.rules.shards import Shards

LEFT_AT_ADAMS = 0.01
"""Learning rates up to here are one meant for another optimizer, most often AdamW's 1e-3."""

MAX_PLANS = 8
"""How many sets of parameters with gradients are remembered at once: a plan may hold an index for every scalar."""

AT_ONCE = 1 << 20
"""Scalars of which state is made at once, unless one tensor has more."""

_Key = tuple[bool, tuple[tuple[int, torch.device, torch.layout], ...]]


class LearnedOptimizer(Optimizer):
    """Trains the parameters with a learned (or classical) rule; used as `torch.optim.AdamW` is.

    One step is

        p <- (1 - lr * 1e-3 * weight_decay) p + lr * delta,    delta = rule(gradients, state, parameters)

    where the rule sees all parameters with a gradient at once, exactly as in meta-training. `lr` multiplies what
    the rule decides, so 1.0 is right and schedulers work on it. `weight_decay` is decoupled and means what it
    means to AdamW at its default learning rate of 1e-3; it comes on top of what a rule decays by itself. Gradients
    are never modified. A step with a gradient that is not finite changes nothing and is counted in
    `skipped_steps`; ten in a row are told of. Weights that are not finite stay so, and harm no others.

    Names follow the parameters themselves: groups may change as those of every torch optimizer, by
    `add_param_group` or by hand, and tensors in them may be replaced. What the graph does not know stays untied.

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
        fused: run what a learned rule does with large tensors as kernels that are compiled in the first step, once for
            all sizes, in about 10 seconds of one core; from the compiler's cache on disk in fewer. Without a compiler
            it warns and goes on without.
        state_dtype: torch.bfloat16 keeps a learned rule's momenta and second moments in 16 bits, half the memory,
            stochastically rounded (`lopt.numerics.rounding`); steps are computed in float32 all the same.

    Raises `GraphError` if parameters and graph do not fit, `ConfigError` for a value out of range or a parameter given
    twice, and, in `step`, `GradientError` for sparse gradients.
    """

    @torch.inference_mode(False)  # tensors made in it could not be written to by a step outside
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
        fused: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if total_steps is not None:
            expected = "a number above 0 or None"
            total_steps = number("total_steps", expected, total_steps)
            check(0 < total_steps < math.inf, "total_steps", expected, total_steps)
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            raise ConfigError(
                "expected tensors with values, found an active FakeTensorMode, in which no rule can be loaded: make the"
                " optimizer outside of it"
            )
        # Before the constructor of torch, which calls add_param_group. Trainers wrap an optimizer in objects that copy
        # its __dict__: what changes later is changed in place, so that they see it, too.
        self._binding: Binding | None = None
        self._plans: dict[_Key, list[_Call]] = {}
        self._rules: dict[tuple[torch.device, bool], Rule] = {}
        self._skips = Skips()
        self._unchecked = True
        self.guard = LossGuard() if loss_guard else None
        self.total_steps = total_steps
        self._options = {
            "rule": rule,
            "graph": graph,
            "total_steps": total_steps,
            "loss_guard": loss_guard,
            "state_dtype": state_dtype,
        }
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        self.rule = _frozen_copy(rule)
        self.rule.fused = fused
        if state_dtype is not None:
            _keep_state_in(self.rule, state_dtype)
        expected = "a ParameterGraph, trace_on_first_forward(model) or None"
        known = graph is None or isinstance(graph, (ParameterGraph, FirstForwardGraph))
        check(known, "graph", expected, type(graph).__name__)
        self._given_graph = graph
        self._first = self._params()
        """What has to be in the graph: the parameters that were there from the beginning."""
        if not isinstance(graph, FirstForwardGraph):
            self._follow()
        if 0 < max(group["lr"] for group in self.param_groups) <= LEFT_AT_ADAMS:
            warnings.warn(
                f"lr: expected about 1, found {lr!r}; it multiplies what the rule decides, and is no learning rate of"
                " AdamW's: leave it out for full steps",
                stacklevel=3,
            )

    @property
    def graph(self) -> ParameterGraph | None:
        """The graph in use, with whatever was added to it; None before the first forward pass has given it."""
        if self._binding is not None:
            self._follow()
        return None if self._binding is None else self._binding.graph

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient, or what the rule made of it, was not finite."""
        return int(self._skips.total)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those that the graph does not hold are tied to nothing."""
        if not isinstance(param_group.get("params"), (Tensor, set, type(None))):
            param_group["params"] = list(param_group["params"])  # it may be a generator, and is read twice
        labels = labels_of(param_group, self.param_groups)
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1], labels, self._options)
        except ValueError:
            self.param_groups.pop()
            raise
        if self._binding is not None:
            self._follow()

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
            told = self.guard.told or self._makes_state()
            check(told, "loss_guard", "a closure, or observe(loss) before each step", "neither")
            self.guard.told = False
        with torch.no_grad():
            if torch.compiler.is_compiling() and not self._compiles():
                self._uncompiled_step()
            else:
                self._step()
        return loss

    def observe(self, loss: float | Tensor | None) -> None:
        """Tell the loss guard, if there is one, the training loss (to be minimised) before a step.

        None is a batch that has no loss: nothing is learned from it about the rule.
        """
        if self.guard is not None:
            shared = mean_over_ranks(loss)
            if shared is not None:
                self.guard.observe(shared)
            self.guard.told = True

    @_disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As for every torch optimizer; warns of many skipped steps where the steps themselves could not."""
        in_a_row = self._skips.poll()
        if in_a_row >= IN_A_ROW:
            warn_of(in_a_row, self._nonfinite())
        super().zero_grad(set_to_none)

    def eval(self) -> None:
        """Put averaged weights in the place of the trained ones, to evaluate or save; nothing if the rule has none.

        For rules that train at one point and average at another ("schedule-free"). Call `train` before the next step.
        """
        if self._binding is not None and averages.has_averages(self.rule):
            self._follow()
            with torch.no_grad():
                averages.put_in(self.rule, self._binding.named(), self.param_groups, self.state)

    def train(self) -> None:
        """Put the trained weights back, bit for bit; nothing if they are in place."""
        with torch.no_grad():
            averages.take_out(self.state)

    def _makes_state(self) -> bool:
        """Whether a step only makes state: before loading, torch.distributed.checkpoint does one with an lr of 0."""
        return not self.state and all(float(group["lr"]) == 0 for group in self.param_groups)

    def _compiles(self) -> bool:
        """Not the first step of its kind: what that makes anew would cut the compiled one into pieces for good.

        Nor one over the rows of a rank: most of its time is in collectives and matrix products.
        """
        params = self._params()
        key = self._key(params)
        return self._is_bound(params, key) and all(call.shards is None for call in self._plans[key])

    @_disable_dynamo
    def _uncompiled_step(self) -> None:
        self._step()

    def _step(self) -> None:
        params = self._params()
        calls = self._plan(params)
        if not calls:
            return
        if averages.has_averages(self.rule):
            averages.check_taken_out(self.state)
        inputs = [call.all_seen([params[i].grad for i in call.indices]) for call in calls]
        flat = [grad for grads in inputs for grad in grads]
        # Elsewhere than on the CPU, asking for a value would stall the device: there a skipped step is a step of size
        # zero that keeps the old state, and whether all is finite a tensor.
        asks = not torch.compiler.is_compiling() and all(grad.device.type == "cpu" for grad in flat)
        finite: Any = is_finite(flat) if asks else all_finite(flat)
        for call in calls:
            finite = call.agreed(finite)
        decisions = []
        if not asks or finite:
            for call, grads in zip(calls, inputs, strict=True):
                decision, fits = self._decide(call, params, grads, asks)
                decisions.append(decision)
                finite = finite and fits if asks else finite & fits.to(finite.device)
        self._skips.count(finite)
        if asks and not finite:
            in_a_row = int(self._skips.in_a_row)
            if is_told(in_a_row):
                warn_of(in_a_row, self._nonfinite())
            return
        for call, decision in zip(calls, decisions, strict=True):
            gate = None if asks else finite.to(params[call.indices[0]].device, non_blocking=True)
            self._apply(call, params, decision, gate)

    def _decide(
        self, call: _Call, params: Sequence[Tensor], grads: list[Tensor], asks: bool
    ) -> tuple[Decision, Any]:
        """What the rule wants for the parameters of one device, and () whether all is finite.

        Weights that are not finite are shown to the rule as 0, so that they spoil no statistic over a tensor or the
        network; so is state that it has tripped over.
        """
        old, owners = self._states(call, params), [params[i] for i in call.indices]
        values = dict(zip(call.names, call.all_seen(owners), strict=True))
        for position, group in enumerate(call.groups):
            if self.param_groups[group]["maximize"]:
                grads[position] = -grads[position]
        named = dict(zip(call.names, grads, strict=True))
        if not asks or not is_finite(list(values.values())):
            values = {name: nonfinite_as_zero(value) for name, value in values.items()}
        with without_autocast(owners[0].device):
            decision = call.bound.decide(named, old, values, call.shards)
            fits: Any = call.agreed((is_finite if asks else all_finite)(decision.checked))
            if asks and not fits:
                old = {
                    name: {key: nonfinite_as_zero(value) for key, value in state.items()}
                    for name, state in old.items()
                }
                decision = call.bound.decide(named, old, values, call.shards)
                fits = call.agreed(is_finite(decision.checked))
        return decision, fits

    def _apply(self, call: _Call, params: Sequence[Tensor], decision: Decision, gate: Tensor | None) -> None:
        """Move the parameters of one device and write their next state; a closed gate leaves all as it is."""
        positions = {name: position for position, name in enumerate(call.names)}
        old = {} if gate is None else self._states(call, params)
        with without_autocast(params[call.indices[0]].device):
            for deltas, new in decision.parts(gate):
                if gate is not None:
                    deltas = {name: torch.where(gate, delta, 0) for name, delta in deltas.items()}
                    new = chosen(gate, new, old)
                self._remember(call, params, new)
                by_group: dict[int, list[tuple[Tensor, Tensor]]] = {}
                for name, delta in deltas.items():
                    position = positions[name]
                    p = params[call.indices[position]]
                    by_group.setdefault(call.groups[position], []).append((local(p), call.part(delta, p)))
                for group, pairs in by_group.items():
                    apply(pairs, self.param_groups[group], gate)

    def _states(self, call: _Call, params: Sequence[Tensor]) -> State:
        """The state of every parameter of a call, made for those that have none."""
        states = {name: self.state[params[i]] for name, i in zip(call.names, call.indices, strict=True)}
        if not all(states.values()):
            self._make_states(call, params, [name for name, state in states.items() if not state])
            states = {name: self.state[params[i]] for name, i in zip(call.names, call.indices, strict=True)}
        states = {name: of_tensors(state) for name, state in states.items()}
        if call.plain:
            return states
        return {n: {key: call.seen(value) for key, value in state.items()} for n, state in states.items()}

    @_disable_dynamo
    def _make_states(self, call: _Call, params: Sequence[Tensor], names: Sequence[str]) -> None:
        owners = {name: params[i] for name, i in zip(call.names, call.indices, strict=True)}
        for some in _batches(names, [owners[name].numel() for name in names]):
            values = {name: call.seen(owners[name]) for name in some}
            made = call.bound.rule.init(call.bound.graph.subset(some), values, self.total_steps)
            for name in some:
                p = owners[name]
                self.state[p] = {key: call.kept(value, p) for key, value in made[name].items()}

    def _remember(self, call: _Call, params: Sequence[Tensor], new: State) -> None:
        """Write the next state into the memory of the old one, which others may share, as AdamW does."""
        pairs = []
        owners = dict(zip(call.names, call.indices, strict=True))
        for name, values in new.items():
            p, state = params[owners[name]], self.state[params[owners[name]]]
            for key, value in values.items():
                old = state.get(key)
                if value is old:
                    continue
                found = call.part(value, p)
                if old is None or old.dtype != found.dtype or local(old).shape != found.shape:
                    state[key] = call.kept(value, p, None if old is None else old.shape)
                else:
                    pairs.append((local(old), found))
        write(pairs)

    def _params(self) -> list[Any]:
        """Every parameter, group after group."""
        return [p for group in self.param_groups for p in group["params"]]

    @_disable_dynamo
    def _follow(self) -> None:
        """Name the parameters that the groups hold now."""
        if self._binding is None:
            graph, owners = self._traced_graph()
            self._binding = Binding(graph, self.param_groups, self._first, owners)
            self._first = []
        elif not self._binding.follow(self.param_groups, self.state):
            return
        self._plans.clear()
        self._unchecked = True

    def _traced_graph(self) -> tuple[ParameterGraph | None, dict[str, Tensor]]:
        """The graph, and the parameters that are known to be in it, by their names there."""
        graph = self._given_graph
        if not isinstance(graph, FirstForwardGraph):
            return graph, {}
        if graph.graph is None:
            raise GraphError(
                "expected a forward pass of the model given to trace_on_first_forward, with gradients, before the"
                " first step, found none; call the model itself, or pass a ParameterGraph; if torch.compile has run it"
                " before, give the compiled module to trace_on_first_forward, as compiled code calls no new hooks"
            )
        self._given_graph = graph.graph
        return graph.graph, {**graph.owners}

    def _plan(self, params: Sequence[Tensor]) -> list[_Call]:
        """The rule bound to the parameters that have a gradient now, one call for each device."""
        key = self._key(params)
        if not self._is_bound(params, key):
            self._bind(key)
        return self._plans[key]

    def _key(self, params: Sequence[Tensor]) -> _Key:
        """What a plan depends on: whether the guard has fallen back, and which parameters have what kind of gradient.

        Gradients are checked where a plan is made, so a sparse one after dense ones needs a plan of its own.
        """
        active = [
            (i, p.device, p.grad.layout) for i, p in enumerate(params) if p.grad is not None and p.numel() > 0
        ]
        return self.guard is not None and self.guard.fallback, tuple(active)

    def _is_bound(self, params: Sequence[Tensor], key: _Key) -> bool:
        """Whether there has been a step of the kind that is to be done now."""
        fits = self._binding is not None and not self._unchecked and self._binding.holds(params)
        return fits and key in self._plans

    @_disable_dynamo
    def _bind(self, key: _Key) -> None:
        """Make the plan for a step of the present kind."""
        keep_freed_memory()
        self._follow()
        assert self._binding is not None
        if self._unchecked:
            self._check_states((p, self.state.get(p, {})) for p in self._params())
            self._unchecked = False
        params, graph = self._params(), self._binding.graph
        base, active = key
        for i, _, _ in active:
            check_gradient(self._binding.names[i], params[i].grad)
        groups = [number for number, group in enumerate(self.param_groups) for _ in group["params"]]
        calls = []
        for device in dict.fromkeys(device for _, device, _ in active):
            here = {str(self._binding.names[i]): i for i, d, _ in active if d == device}
            part = graph if here.keys() == graph.parameters.keys() else graph.subset(here)
            names = list(part.parameters)
            indices = [here[name] for name in names]
            # What a rule derives from a graph is made on the CPU, whatever the default device is.
            with torch.device("cpu"):
                bound = self._rule_on(device, base).on(part)
            tensors = [tensor for i in indices for tensor in (params[i], params[i].grad)]
            shards = shards_of(part, tensors) if bound.rule.takes_shards(part) else None
            plain = not any(map(is_sharded, tensors))
            calls.append(_Call(bound, names, indices, [groups[i] for i in indices], shards, plain))
        if len(self._plans) >= MAX_PLANS:
            self._plans.pop(next(iter(self._plans)))
        self._plans[key] = calls

    def _rule_on(self, device: torch.device, base: bool = False) -> Rule:
        """The rule or its base optimizer where the parameters are."""
        if (device, base) not in self._rules:
            rule = base_of(self.rule) if base else self.rule
            there = all(t.device == device for t in [*rule.parameters(), *rule.buffers()])
            self._rules[device, base] = rule if there else copy.deepcopy(rule).to(device)
        return self._rules[device, base]

    def _nonfinite(self) -> list[str]:
        """The names of the parameters whose gradients are not finite."""
        assert self._binding is not None
        return [
            name
            for name, p in self._binding.named()
            if p.grad is not None and not torch.isfinite(gathered(p.grad)).all()
        ]

    def state_dict(self) -> dict[str, Any]:
        """As for every torch optimizer, and the count of skipped steps and what the loss guard has seen, as tensors.

        `torch.distributed.checkpoint.state_dict` takes over what every torch optimizer has, and these two begin anew.
        """
        if self._binding is not None:
            self._follow()
        guard = {} if self.guard is None else {"loss_guard": self.guard.tensors()}
        return {**super().state_dict(), "skipped_steps": self._skips.total.clone(), **guard}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every torch optimizer, except that state keeps its dtype; it moves to the parameters' devices.

        State of a run that was planned for another number of steps takes this optimizer's `total_steps`, with a
        warning. Raises `ConfigError`, before anything changes, for the state of another rule.
        """
        final: dict[str, Any] = {}
        hooks = (
            self.register_load_state_dict_pre_hook(lambda _, loaded: self._check_loaded(final, loaded)),
            self.register_load_state_dict_post_hook(lambda _: self._load_exactly(final), prepend=True),
        )
        check(isinstance(state_dict, dict), "state_dict", "a dict", state_dict)
        try:
            with torch.inference_mode(False):  # as for the constructor
                super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_loaded(self, final: dict[str, Any], loaded: dict[str, Any]) -> None:
        """Keep what is loaded after all hooks of the user, if it fits."""
        check_form(loaded, self.param_groups, self.defaults)
        states, names = self._loaded_states(loaded), {}
        # Without names yet, the first step checks whether the rule has saved this.
        if self._binding is not None:
            self._follow()
            names = {id(p): name for name, p in self._binding.named()}
            self._check_states(states)
        check_tensors(states, names)
        warn_of_nonfinite(states, names)
        final.update(loaded)

    def _check_states(self, states: Iterable[tuple[Tensor, Mapping[str, Any]]]) -> None:
        assert self._binding is not None
        names = {id(p): name for name, p in self._binding.named()}
        saved = {names[id(p)]: (p, state) for p, state in states if state and id(p) in names}
        check_states(self.rule, self._binding.graph, saved, self.total_steps)

    def _loaded_states(self, state_dict: Mapping[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        return [(p, state_dict["state"].get(key, {})) for key, p in zip(keys, self._params(), strict=True)]

    def _load_exactly(self, state_dict: Mapping[str, Any]) -> None:
        """torch casts loaded state to the dtype of its parameter; put in what was saved instead."""
        for p, saved in self._loaded_states(state_dict):
            if saved:
                self.state[p] |= {
                    key: owned(value.detach().to(p.device, copy=True))
                    for key, value in saved.items()
                    if isinstance(value, Tensor)
                }
        self._unchecked = True
        self._replan()
        self._skips.total.fill_(int(state_dict.get("skipped_steps", 0)))
        if self.guard is not None and "loss_guard" in state_dict:
            vars(self.guard).update(vars(LossGuard.of(state_dict["loss_guard"])))

    def _replan(self) -> None:
        """Let loaded state aim at this optimizer's horizon."""
        if self.total_steps is None:
            return
        states = [self.state.get(p, {}) for p in self._params()]
        horizons = [state["total_steps"] for state in states if "total_steps" in state]
        # What has another shape is refused by the first step, if the graph is not known before.
        horizons = [horizon for horizon in horizons if horizon.numel() == 1 and not horizon.is_meta]
        told = {float(horizon) for horizon in horizons} - {float(self.total_steps)}
        if told:
            for horizon in horizons:
                horizon.fill_(self.total_steps)
            warnings.warn(
                f"total_steps: the state was saved by a run planned for {max(told):g} steps (0: unknown); from here on"
                f" it is {self.total_steps:g}, as given to this optimizer",
                stacklevel=5,
            )

    def __getstate__(self) -> dict[str, Any]:
        own = (
            "rule",
            "total_steps",
            "_given_graph",
            "_first",
            "_binding",
            "_skips",
            "guard",
        )
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Groups of an older checkpoint lack the options that came later.
        for group in self.param_groups:
            for key in ("lr", "weight_decay", "maximize"):
                group.setdefault(key, self.defaults[key])
        self._plans, self._rules, self._unchecked = {}, {}, True
        self.__dict__.setdefault("_options", {})


@dataclass(frozen=True)
class _Call:
    """The rule bound to some of the parameters, in the order of its graph. It holds no tensor of theirs."""

    bound: BoundRule
    names: list[str]
    indices: list[int]
    """Of each among all parameters of the optimizer."""
    groups: list[int]
    """The parameter group of each."""
    shards: Shards | None
    """Where the rule steps the rows of this rank; else it is given whole tensors."""
    plain: bool
    """Whether nothing is sharded at all."""

    def all_seen(self, tensors: list[Tensor]) -> list[Tensor]:
        """What the rule is given of tensors."""
        return tensors if self.plain else [self.seen(tensor) for tensor in tensors]

    def seen(self, tensor: Tensor) -> Tensor:
        """What the rule is given of a tensor."""
        return gathered(tensor) if self.shards is None else local(tensor)

    def part(self, value: Tensor, p: Tensor) -> Tensor:
        """This rank's part of a value that the rule gives for a parameter."""
        return value if self.plain or self.shards is not None else local(sharded_like(value, p))

    def kept(self, value: Tensor, p: Tensor, shape: torch.Size | None = None) -> Tensor:
        """The value as state, in memory of its own; `shape` is that of the state in whose place it comes."""
        return owned(sharded_like(value, p)) if self.shards is None else laid_out(owned(value), p, shape)

    def agreed(self, finite: Any) -> Any:
        """Whether it is so on all ranks that step rows."""
        return finite if self.shards is None else self.shards.agree(finite)


def _batches(names: Sequence[str], sizes: Sequence[int]) -> list[list[str]]:
    """Rules make state in one piece of memory, of which every tensor gets a copy: not of all parameters at once."""
    batches: list[list[str]] = [[]]
    held = 0
    for name, size in zip(names, sizes, strict=True):
        if batches[-1] and held + size > AT_ONCE:
            batches.append([])
            held = 0
        batches[-1].append(name)
        held += size
    return batches


def _keep_state_in(rule: Rule, dtype: torch.dtype) -> None:
    check(dtype is torch.bfloat16, "state_dtype", "torch.bfloat16 or None", dtype)
    if not isinstance(rule, LearnedRule):
        raise ConfigError(
            f"state_dtype: expected a learned rule, found {type(rule).__name__}, whose state stays as it is"
        )
    rule.state_dtype = dtype


def _frozen_copy(rule: Rule | str | os.PathLike[str]) -> Rule:
    """The rule for this optimizer alone: nothing outside can move or train it."""
    if isinstance(rule, (str, os.PathLike)):
        from lopt.rules.io import load_rule

        rule = load_rule(rule)
    if not isinstance(rule, Rule):
        raise ConfigError(f"rule: expected a Rule, or the name or path of one, found {type(rule).__name__}")
    if any(tensor.is_meta for tensor in [*rule.parameters(), *rule.buffers()]):
        raise ConfigError(
            "rule: expected one whose tensors have values, found one on the meta device; load or make it anew"
        )
    return copy.deepcopy(rule).requires_grad_(False).eval()
