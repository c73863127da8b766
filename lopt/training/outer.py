"""Outer losses: from the losses of an unroll to the one number that meta-training lowers.

Relative losses above `LIMIT` have diverged: they count as the limit and give no gradient, but for "plain".

Shapes: K inner steps, T networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lopt.inner.step import FLOOR, LIMIT


def relative(losses: Tensor, initial: Tensor) -> Tensor:
    """losses / initial, (K, T) / (T,), cut at `LIMIT`, so that tasks of different scales weigh alike."""
    ratio = losses / initial.clamp(min=1e-8)
    # Not clamp, which hands on what is no number: a comparison with that is false, so that it counts as the limit.
    return torch.where(ratio < LIMIT, ratio, torch.full_like(ratio, LIMIT))


def mean(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) mean relative loss over the unroll."""
    return relative(losses, initial).mean(0)


def log(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) mean log relative loss: a factor gained counts the same early and late in training."""
    return torch.log(relative(losses, initial) + FLOOR).mean(0)


def final(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) relative loss after the last step alone."""
    return relative(losses, initial)[-1]


def best(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) the lowest relative loss of the unroll: later harm is forgiven."""
    return relative(losses, initial).amin(0)


def plain(losses: Tensor, initial: Tensor) -> Tensor:
    """(T,) mean loss as it is: not cut, and tasks weigh by their scale."""
    return losses.mean(0)


OUTER_LOSSES: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (mean, log, final, best, plain)}
"""Each maps losses (K, T) and the initial losses (T,) to one value for each network."""
