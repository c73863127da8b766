"""Meta-gradients network by network, so that no one of them decides for the others.

A network at the edge of stability has a second-order meta-gradient that may be larger than all others together by
orders of magnitude, and says nothing but that it is there (Metz et al. 2019, arXiv 1810.10180).
Shapes: T networks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.base import Tensors


class Combined(NamedTuple):
    """What the meta-gradients of T networks come to."""

    gradient: dict[str, Tensor]
    """By meta-parameter name; all zero if every network was dropped."""
    clipped: Tensor
    """(T,) True where the norm was above the limit."""
    dropped: Tensor
    """(T,) True where there was nothing to be learned from."""


def leaves(own: Tensors) -> dict[str, Tensor]:
    """The same meta-parameters (T, *shape) as tensors to differentiate by, for each network its own."""
    return {name: p.detach().requires_grad_() for name, p in own.items()}


def network_gradients(outer: Tensor, own: Tensors) -> dict[str, Tensor]:
    """(T, *shape): the derivative of each network's outer loss (T,) by its own meta-parameters, in one pass."""
    values = torch.autograd.grad(outer.sum(), list(own.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if value is None else value
        for (name, p), value in zip(own.items(), values, strict=True)
    }


def combined(gradients: Tensors, usable: Tensor, limit: float) -> Combined:
    """The mean over networks of their meta-gradients (T, *shape), each cut to a norm of at most `limit`.

    A network that is not `usable` (T,), or whose meta-gradient is not finite, is left out of the mean.
    """
    squares = [
        value.detach().reshape(len(usable), -1).double().square().sum(1) for value in gradients.values()
    ]
    norm = torch.stack(squares).sum(0).sqrt()
    keep = usable.to(norm.device) & norm.isfinite()
    weight = torch.where(keep, (limit / norm).clamp(max=1), 0.0) / keep.sum().clamp(min=1)
    mean = {
        # 0 times what is not finite would spoil the sum.
        name: torch.tensordot(weight.to(value), _where(keep, value), 1)
        for name, value in gradients.items()
    }
    return Combined(mean, keep & (norm > limit), ~keep)


def _where(keep: Tensor, value: Tensor) -> Tensor:
    """(T, *shape) with zeros for the networks that are not kept."""
    return torch.where(keep.reshape(-1, *[1] * (value.dim() - 1)), value, torch.zeros_like(value))
