"""The tensor work of an optimizer's step, and the checks of what it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.errors import ConfigError, GradientError
from lopt.optim.sharding import is_sharded, local, sharded_like
from lopt.rules.base import State

DECAY_RATE = 1e-3
"""The learning rate that `weight_decay` is relative to: AdamW's default."""


def all_finite(grads: list[Tensor]) -> Tensor:
    """() bool. Extremes carry NaN along and cannot overflow."""
    device = grads[0].device
    extremes = (
        torch._foreach_norm(grads, math.inf)
        if grads[0].is_cuda
        else [x for g in grads for x in torch.aminmax(g)]
    )
    return torch.stack([extreme.to(device) for extreme in extremes]).isfinite().all()


def chosen(gate: Tensor, new: State, old: State) -> State:
    """The new state where the gate is open, else the old one, or zero where there was none."""
    return {
        name: {key: _chosen(gate, value, old[name].get(key)) for key, value in state.items()}
        for name, state in new.items()
    }


def _chosen(gate: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    return new if new is old else torch.where(gate, new, 0 if old is None else old)


def owned(value: Tensor) -> Tensor:
    """The tensor, copied if it is a view of a larger one; shards are copies already."""
    whole = is_sharded(value) or value.untyped_storage().nbytes() <= value.numel() * value.element_size()
    return value if whole else value.clone(memory_format=torch.contiguous_format)


def apply(
    params: Sequence[Tensor], deltas: Sequence[Tensor], group: Mapping[str, Any], gate: Tensor | None
) -> None:
    """p <- (1 - lr * 1e-3 * weight_decay) p + lr * delta, in place, on this process's part of every tensor."""
    lr, decay = group["lr"], DECAY_RATE * group["weight_decay"]
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    steps = [local(sharded_like(delta, p)) for p, delta in zip(params, deltas, strict=True)]
    locals_ = [local(p) for p in params]
    if decay:
        keep = 1 - lr * decay
        torch._foreach_mul_(locals_, keep if gate is None else torch.where(gate, keep, 1.0))
    if isinstance(lr, Tensor):
        steps, lr = list(torch._foreach_mul(steps, lr)), 1.0
    torch._foreach_add_(locals_, steps, alpha=lr)


def check(valid: object, name: str, expected: str, found: object) -> None:
    if not valid:
        raise ConfigError(f"{name}: expected {expected}, found {found!r}")


def check_group(group: Mapping[str, Any]) -> None:
    lr = group["lr"]
    check(not isinstance(lr, Tensor) or lr.numel() == 1, "lr", "a number or a one-element tensor", lr)
    check(lr >= 0, "lr", "a number from 0", lr)
    check(group["weight_decay"] >= 0, "weight_decay", "a number from 0", group["weight_decay"])
    for p in group["params"]:
        check(p.is_floating_point(), "params", "real floating-point tensors", p.dtype)


def check_gradient(name: str, grad: Tensor) -> None:
    if grad.layout is not torch.strided:
        raise GradientError(
            f"parameter {name!r}: expected a dense gradient, found a sparse one ({grad.layout}); build its layer with"
            " sparse=False, or train it with torch.optim.SparseAdam"
        )
