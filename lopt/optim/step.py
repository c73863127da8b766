"""The tensor work of an optimizer's step, and the checks of what it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopt.errors import ConfigError, GradientError
from lopt.optim.sharding import is_sharded
from lopt.rules.base import State

DECAY_RATE = 1e-3
"""The learning rate that `weight_decay` is relative to: AdamW's default."""

SMALL = 1 << 14
"""Scalars of a tensor below which copying it costs less than a call."""

KEPT = 1 << 24
"""Bytes of a block that is freed so that a step's temporaries stay: up to 20 rows of 2^18 scalars are held at once."""

_MISSING = object()

OF_ALL = {"rule", "graph", "total_steps", "loss_guard", "state_dtype"}
"""Options that no parameter group has one of its own of, as it would of AdamW's."""

SAID = 300
"""Characters of a value that a message shows."""


def all_finite(grads: list[Tensor]) -> Tensor:
    """() bool. Extremes carry NaN along and cannot overflow."""
    device = grads[0].device
    grads = [grad for grad in grads if grad.numel()]
    if not grads:
        return torch.ones((), dtype=torch.bool, device=device)
    extremes = (
        torch._foreach_norm(grads, math.inf)
        if grads[0].is_cuda
        else [x for g in grads for x in torch.aminmax(g)]
    )
    return torch.stack([extreme.to(device) for extreme in extremes]).isfinite().all()


def is_finite(tensors: list[Tensor]) -> bool:
    """Whether all entries are. Sums take half the time and carry NaN and infinity along; one may overflow by itself.

    Small tensors are copied to one place, which costs less than two calls for each.
    """
    small: list[Tensor] = []
    summed: list[Tensor] = []
    for tensor in tensors:
        (small if tensor.numel() < SMALL else summed).append(tensor)
    if small:
        summed.append(torch._C._nn.flatten_dense_tensors(small))
    return math.isfinite(sum(tensor.sum().item() for tensor in summed)) or bool(all_finite(tensors))


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next step, up to 32 MiB of it.

    glibc gives back what is free at its heap's end above twice the largest block that it has seen freed. Where that
    was small, all that a step holds was mapped anew in each, with page faults that took a third of its time. Of a block
    that nobody writes to, no memory is ever there; other C libraries are not impressed.
    """
    torch.empty(KEPT, dtype=torch.uint8, device="cpu")


def nonfinite_as_zero(tensor: Tensor) -> Tensor:
    """A copy in which what is not finite is 0, so that no statistic over the tensor hears of it."""
    return tensor.nan_to_num(0.0, 0.0, 0.0)


def of_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """What a rule may have kept; wrappers of an optimizer put other things beside it."""
    if {*map(type, state.values())} == {Tensor}:
        return state
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def chosen(gate: Tensor, new: State, old: State) -> State:
    """The new state where the gate is open, else the old one, or zero where there was none."""
    return {
        name: {key: _chosen(gate, value, old[name].get(key)) for key, value in state.items()}
        for name, state in new.items()
    }


def _chosen(gate: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    return new if new is old else torch.where(gate, new, 0 if old is None else old)


def owned(value: Tensor) -> Tensor:
    """The tensor, contiguous and in memory of its own; shards have theirs already."""
    if is_sharded(value):
        return value
    # What was made in inference mode cannot be written outside of it.
    own = (
        not value.is_inference() and value.untyped_storage().nbytes() == value.numel() * value.element_size()
    )
    return value if own and value.is_contiguous() else value.clone(memory_format=torch.contiguous_format)


def write(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each second tensor into its first one."""
    pairs = [(old, new) for old, new in pairs if new is not old]
    if pairs:
        torch._foreach_copy_([old for old, _ in pairs], [new for _, new in pairs])


def apply(pairs: Sequence[tuple[Tensor, Tensor]], group: Mapping[str, Any], gate: Tensor | None) -> None:
    """p <- (1 - lr * 1e-3 * weight_decay) p + lr * delta, in place."""
    lr, decay = group["lr"], DECAY_RATE * group["weight_decay"]
    # Schedulers may have put in a numpy number, which the operations below do not take.
    lr = lr.reshape(()) if isinstance(lr, Tensor) else float(lr)
    params, steps = [p for p, _ in pairs], [delta for _, delta in pairs]
    if decay:
        keep = 1 - lr * decay
        torch._foreach_mul_(params, keep if gate is None else torch.where(gate, keep, 1.0))
    if isinstance(lr, Tensor):
        steps, lr = list(torch._foreach_mul(steps, lr)), 1.0
    torch._foreach_add_(params, steps, alpha=lr)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """No lower precision around a step; devices without values (meta) know none."""
    known = torch.amp.is_autocast_available(device.type)
    lowers = known and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if lowers else nullcontext()


def check(valid: object, name: str, expected: str, found: object) -> None:
    if not valid:
        raise ConfigError(f"{name}: expected {expected}, found {said(found)}")


def said(value: object) -> str:
    """A value in one short line, whatever it holds."""
    if isinstance(value, Tensor):
        kind = "nested" if value.is_nested else f"{tuple(value.shape)}, {str(value.layout)[6:]}"
        return f"a tensor ({value.dtype}, {kind}, on {value.device})"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print thousands of digits
        text = f"a large {type(value).__name__}"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= SAID else text[: SAID - 3] + "..."


def number(name: str, expected: str, value: Any) -> float:
    """Python's own number for one of Python's or numpy's, or for an array of one."""
    array = np.asarray(value if isinstance(value, (int, float, np.generic, np.ndarray)) else None)
    check(array.size == 1 and array.dtype.kind in "biuf", name, expected, value)
    return float(array.item())


def check_options(group: dict[str, Any], place: str = "", saved: bool = False) -> None:
    """Raise a `ConfigError` for a group's option out of range; numpy's numbers become Python's.

    A saved lr may be below 0: schedules leave it there that run past their end.
    """
    for key in ("lr", "weight_decay"):
        value, name = group[key], place + key
        if isinstance(value, Tensor):
            fits = value.numel() == 1 and not value.is_complex() and not value.is_meta
            check(fits, name, "a number or a one-element tensor", value)
        else:
            group[key] = number(name, "a number or a one-element tensor", value)
        if saved and key == "lr":
            check(math.isfinite(group[key]), name, "a finite number", group[key])
        else:
            check(0 <= group[key] < math.inf, name, "a number from 0", group[key])
    maximize = group["maximize"]
    check(isinstance(maximize, (bool, int, np.bool_)), place + "maximize", "true or false", maximize)


def check_group(group: dict[str, Any], names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for what a group must not hold.

    `given` are the options of the whole optimizer. ZeroRedundancyOptimizer puts them into each group, too: out again.
    """
    for key in OF_ALL & group.keys():
        value, same = group.pop(key), given.get(key, _MISSING)
        if not (value is same or (isinstance(value, (str, int, float)) and value == same)):
            raise ConfigError(
                f"{key}: expected it for the whole optimizer, found it in a parameter group, where it has no effect;"
                " pass it to LearnedOptimizer"
            )
    check_options(group)
    for name, p in zip(names, group["params"], strict=True):
        if p.requires_grad and not (p.is_floating_point() and p.dtype.itemsize > 1):
            advice = (
                "train its real and imaginary part as one real parameter (torch.view_as_real)"
                if p.is_complex()
                else "train a copy in bfloat16"  # torch computes nothing in 8 bits
            )
            raise ConfigError(
                f"params: {name!r}: expected real floating-point tensors of 16 bits or more, found {p.dtype}; {advice},"
                " or set requires_grad=False"
            )


def check_gradient(name: str | None, grad: Tensor) -> None:
    if grad.layout is not torch.strided:
        raise GradientError(
            f"parameter {name!r}: expected a dense gradient, found a sparse one ({grad.layout}); build its layer with"
            " sparse=False, or train it with torch.optim.SparseAdam"
        )
    if not grad.is_floating_point():
        raise GradientError(
            f"parameter {name!r}: expected a real floating-point gradient, found {grad.dtype}; train its real and"
            " imaginary part as one real parameter (torch.view_as_real)"
        )
