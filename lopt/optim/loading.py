"""A saved state, looked at as a whole before anything of it is taken over."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.optim.averages import TRAINED
from lopt.optim.loss_guard import LossGuard
from lopt.optim.matching import unwrapped
from lopt.optim.sharding import local
from lopt.optim.step import check_options, said
from lopt.rules.base import OWN, Rule, State

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
"""What state may be kept in, whatever the rule begins with: the next step makes it the rule's."""

Group = Mapping[str, Any]
States = Iterable[tuple[Tensor, Mapping[str, Any]]]


def check_form(saved: Mapping[str, Any], groups: Sequence[Group], defaults: Group) -> None:
    """Raise a `ConfigError` for what no optimizer with these groups has saved, whatever its rule."""
    for key, kind in (("param_groups", list), ("state", dict)):
        fits = isinstance(saved.get(key), (kind, tuple) if kind is list else kind)
        _check(fits, key, f"a {kind.__name__}", saved.get(key, "nothing"))
    loaded = saved["param_groups"]
    for number, group in enumerate(loaded):
        _check(isinstance(group, dict), f"param_groups.{number}", "a dict", group)
        keys = group.get("params", "nothing")
        fits = isinstance(keys, (list, tuple)) and all(isinstance(key, Hashable) for key in keys)
        _check(fits, f"param_groups.{number}.params", "a list of numbers", keys)
        check_options({**defaults, **group}, f"state_dict.param_groups.{number}.", saved=True)
    expected, found = ([len(group["params"]) for group in each] for each in (groups, loaded))
    if found != expected:
        # In torch's own words, which others may look for.
        many = "has a different number of parameter groups"
        size = "contains a parameter group that doesn't match the size of optimizer's group"
        wrong = many if len(found) != len(expected) else size
        raise ConfigError(
            f"loaded state dict {wrong}: expected groups of {said(expected)} parameters, found {said(found)}"
        )
    keys = [key for group in loaded for key in group["params"]]
    _check(len(set(keys)) == len(keys), "param_groups", "each parameter once", keys)
    for number, (own, group) in enumerate(zip(groups, loaded, strict=True)):
        _check_order(own.get("param_names"), group.get("param_names"), f"param_groups.{number}.param_names")
    strangers = {
        key for key in saved["state"].keys() - set(keys) if not _is_wrappers(key, saved["state"][key])
    }
    _check(not strangers, "state", f"parameters of the groups, {said(keys)}", next(iter(strangers), None))
    for key, state in saved["state"].items():
        _check(key not in keys or isinstance(state, dict), f"state.{_short(key)}", "a dict", state)
    skipped = saved.get("skipped_steps", 0)
    count = skipped.item() if isinstance(skipped, Tensor) and _is_one(skipped) else skipped
    fits = isinstance(count, int) and 0 <= count < 2**63
    _check(fits, "skipped_steps", "a whole number from 0", skipped)
    if "loss_guard" in saved:
        LossGuard.of(saved["loss_guard"])


def _is_wrappers(key: object, value: object) -> bool:
    """Whether it may be what a wrapper keeps of no parameter, under a word; not what a rule has kept of a lost one."""
    return isinstance(key, str) and not (isinstance(value, dict) and len(value.keys() & OWN) > 1)


def _check_order(own: object, saved: object, place: str) -> None:
    """Names, where both sides have them, may differ as those of other wrappers do, but not in their order alone."""
    if saved is None:
        return
    _check(
        isinstance(saved, list) and all(isinstance(name, str) for name in saved),
        place,
        "a list of names",
        saved,
    )
    if own and isinstance(own, list) and isinstance(saved, list):
        here, there = ([unwrapped(name) for name in names] for names in (own, saved))
        moved = [pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]]
        if moved and sorted(here) == sorted(there):
            _check(False, place, f"{moved[0][0]!r} at its place (params are matched by order)", moved[0][1])


def check_tensors(states: States, names: Mapping[int, str]) -> None:
    """Raise a `ConfigError` unless all that a rule has saved are tensors, and all tensors plain ones with values."""
    for position, (p, state) in enumerate(states):
        for key, value in state.items():
            fits = _is_plain(value, p) if isinstance(value, Tensor) else key not in OWN
            place = f"state.{names.get(id(p), position)}.{_short(key)}"
            _check(fits, place, "a dense tensor with values", value)


def warn_of_nonfinite(states: States, names: Mapping[int, str]) -> None:
    """One warning for all numbers in saved tensors that are not finite."""
    counts = {
        f"state.{names.get(id(p), position)}.{key}": int((~torch.isfinite(local(value))).sum())
        for position, (p, state) in enumerate(states)
        for key, value in state.items()
        if isinstance(value, Tensor) and not value.is_meta
    }
    bad = [place for place, count in counts.items() if count]
    if bad:
        others = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        warnings.warn(
            f"state_dict.{bad[0]}{others}: expected finite numbers, found {sum(counts.values())} that are not; a step"
            " that they would spoil takes them as 0, or is skipped",
            stacklevel=6,
        )


def check_states(
    rule: Rule,
    graph: ParameterGraph,
    states: Mapping[str, tuple[Tensor, Mapping[str, Any]]],
    total_steps: float | None,
) -> None:
    """Raise a `ConfigError` unless all have the keys, shapes and kinds of numbers that the rule's own state has.

    What wrappers have put beside it is none of the rule's business; torch's optimizers know no names of their own.
    """
    params = {
        name: torch.empty(graph.parameters[name].shape, dtype=p.dtype, device="meta")
        for name, (p, _) in states.items()
    }
    if not params:
        return
    fresh, floats = _layout(rule, graph.subset(params), params, total_steps)
    for name, (p, state) in states.items():
        if floats and not state.keys().isdisjoint(fresh[name]):
            state = {
                key: value for key, value in state.items() if key in OWN | fresh[name].keys() | {TRAINED}
            }
        expected, found, shape = _shapes(fresh[name]), _shapes(state), tuple(params[name].shape)
        if TRAINED in state:
            expected[TRAINED] = shape
        if found != expected:
            raise ConfigError(
                f"state_dict: expected this rule's {expected} for {name!r} of {shape}, found {said(found)}; load the"
                " state of the same optimizer, and delete that of a parameter that has another shape than before"
            )
        check_tensors([(p, state)], {id(p): name})
        for key, value in state.items():
            like = params[name] if key == TRAINED else fresh[name][key]
            place = f"state.{name}.{key}"
            same = value.dtype == like.dtype or {value.dtype, like.dtype} <= floats
            _check(same, place, str(like.dtype), value)
            # Beside a tensor with axes, scalars are counts and horizons in all rules.
            if like.dim() == 0 < len(shape) and not value.is_meta:
                _check(0 <= float(value) < math.inf, place, "a number from 0", float(value))


def _layout(
    rule: Rule, graph: ParameterGraph, params: Mapping[str, Tensor], total_steps: float | None
) -> tuple[State, set[torch.dtype]]:
    """The state that a rule begins with, and what its numbers may be kept in.

    A rule that begins with none, such as `TorchOptim`, shows it after a first step, and wants it exactly so.
    """
    fresh = rule.init(graph, params, total_steps)
    if any(fresh.values()):
        return fresh, FLOATS
    zeros = {name: torch.zeros_like(p, device="cpu") for name, p in params.items()}
    return rule(graph, zeros, fresh, zeros)[1], set()


def _is_plain(value: Tensor, p: Tensor) -> bool:
    dense = value.layout is torch.strided and not value.is_nested and not value.is_quantized
    return dense and (p.is_meta or not value.is_meta)


def _is_one(value: Tensor) -> bool:
    return value.numel() == 1 and value.layout is torch.strided and not value.is_meta


def _short(key: object) -> str:
    return said(key)[:50].strip("'")


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _short(key): tuple(value.shape)
        if isinstance(value, Tensor) and not value.is_nested
        else type(value).__name__
        for key, value in state.items()
    }


def _check(fits: object, place: str, expected: str, found: object) -> None:
    if not fits:
        raise ConfigError(
            f"state_dict.{place}: expected {expected}, found {said(found)}; load the state of the same optimizer"
        )
