"""Schedules: factors on a step as functions of how much of the run is over.

Shapes: B parameters (tensors).
"""

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


def over(steps: Tensor, horizon: Tensor) -> Tensor:
    """(B,) how much of a known horizon is over before a step, from 0 to 1."""
    return ((steps - 1) / horizon.clamp(min=1)).clamp(max=1)


def annealing(
    steps: Tensor,
    horizon: Tensor,
    warm_up: Tensor | float = 0.0,
    fade: float = 0.0,
    power: Tensor | float = 1.0,
) -> Tensor:
    """(B,) factor on the step.

    Where the horizon is unknown (0): 1, or with `fade` 1 / sqrt(1 + t / fade) after t steps, the first fifth of them
    linearly from 0. Where it is known: half a cosine up from 0.04 over its first `warm_up`, and half a cosine down to
    0.01 at its end (one cycle, Smith & Topin 2019, arXiv 1708.07120), the latter to a `power`.
    """
    fraction = over(steps, horizon)
    factor = _half_cosine(((fraction - warm_up) / (1 - warm_up)).clamp(min=0), 0.01)
    if isinstance(power, Tensor) or power != 1:
        factor = factor**power
    if isinstance(warm_up, Tensor) or warm_up > 0:
        factor = factor * _half_cosine((1 - fraction / warm_up).clamp(min=0), 0.04)
    unknown = torch.rsqrt(1 + (steps - 1) / fade) * (5 * steps / fade).clamp(max=1) if fade else 1.0
    return torch.where(horizon > 0, factor, unknown)


def settling(steps: Tensor, horizon: Tensor) -> Tensor:
    """(B,) 8 / T exp(-8 t / T), which sums to about 1 over a horizon T; taken as 320 where it is unknown."""
    rate = 8 / torch.where(horizon > 0, horizon, 320.0)
    return rate * torch.exp(-rate * steps)


def decay_share(steps: Tensor, horizon: Tensor, half: float = 0.0) -> Tensor:
    """(B,) T / (T + half), the share of the weight decay that acts with a horizon T; t steps for T where it is unknown.

    Short runs end before a network knows its data by heart, and decay costs them steps; in long ones it is what holds.
    """
    length = torch.where(horizon > 0, horizon, steps)
    return length / (length + half)


def _half_cosine(done: Tensor, end: float) -> Tensor:
    """From 1 at 0 to `end` at 1."""
    return end + (1 - end) * 0.5 * (1 + torch.cos(math.pi * done))
