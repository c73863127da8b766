"""Learning rate schedules: the factor on the learning rate as a function of the fraction of the run that is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lopt.errors import ConfigError


def constant(done: Tensor) -> Tensor:
    """1."""
    return torch.ones_like(done)


def cosine(done: Tensor) -> Tensor:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + torch.cos(math.pi * done))


def one_cycle(done: Tensor) -> Tensor:
    """From 1/25 to 1 over the first 0.3 of the run, then to 0, both along half a cosine (Smith and Topin 2019)."""
    rise = 0.04 + 0.96 * (1 - cosine((done / 0.3).clamp(max=1)))
    return torch.where(done < 0.3, rise, cosine((done - 0.3) / 0.7))


SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {f.__name__: f for f in (constant, cosine, one_cycle)}
"""Schedules by name."""


def learning_rates(lr: Tensor | float, schedule: str | Sequence[str], count: int, steps: int) -> Tensor:
    """(count, steps): the learning rate of each network at each step; `lr` and `schedule` are shared or (count,)."""
    names = [schedule] * count if isinstance(schedule, str) else list(schedule)
    unknown = sorted(set(names) - set(SCHEDULES))
    if unknown:
        raise ConfigError(f"schedule: expected one of {', '.join(SCHEDULES)}, found {unknown[0]!r}")
    done = torch.arange(steps, dtype=torch.float64) / max(steps, 1)
    factors = {name: SCHEDULES[name](done) for name in set(names)}
    table = torch.stack([factors[name] for name in names])
    return (torch.as_tensor(lr, dtype=torch.float64).expand(count)[:, None] * table).float()
