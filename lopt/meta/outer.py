"""Outer losses: from the losses of an unroll to the one number that meta-training lowers.

Shapes: K inner steps, T networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIMIT = 3.0
"""Relative losses above this have diverged: they count as the limit and give no gradient."""


def relative(losses: Tensor, initial: Tensor) -> Tensor:
    """losses / initial, (K, T) / (T,), cut at `LIMIT`, so that tasks of different scales weigh alike."""
    ratio = losses / initial.clamp(min=1e-8)
    return torch.where(ratio < LIMIT, ratio, torch.full_like(ratio, LIMIT))


def mean(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) mean relative loss over the unroll."""
    return relative(losses, initial).mean(0)


def log(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) mean log relative loss: a factor gained counts the same early and late in training."""
    return torch.log(relative(losses, initial) + 1e-3).mean(0)


def final(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) relative loss after the last step alone."""
    return relative(losses[-1:], initial).mean(0)


OUTER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {f.__name__: f for f in (mean, log, final)}
"""Each maps losses (K, T) and the initial losses (T,) to one value for each network."""
