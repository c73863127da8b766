"""From the curves of N networks to JSON-able figures.

Shapes: N networks (seeds), B points of a drawn curve.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lopt.inner.evaluation import FINAL_STEPS, Curves

CURVE_POINTS = 200
"""A drawn curve holds at most that many points unless told, each the mean over a stretch of the run."""


def figures(curves: Curves, target: float | None = None, points: int = CURVE_POINTS) -> dict[str, Any]:
    """Statistics over the networks: losses over the run and at its end, metrics, divergence, and a curve to draw.

    With a `target`, "steps_to_baseline" is how many steps it takes the mean curve to come down to it, if it does.
    A network that diverged makes the mean None: no figure leaves it out.
    """
    metrics = {
        f"{split}_{name}": statistic(values[:, -1])
        for split, found in curves.metrics.items()
        for name, values in found.items()
    }
    return {
        "steps": curves.train_loss.shape[1],
        "mean_train_loss": statistic(curves.mean_loss),
        "final_train_loss": statistic(curves.final_loss),
        **metrics,
        "steps_to_baseline": None if target is None else steps_to(curves.train_loss, target),
        "diverged": int(curves.diverged.sum()),
        "curve": drawn(curves.train_loss, points),
    }


def statistic(values: Tensor) -> dict[str, Any]:
    """Mean and standard deviation (of one sample, so None for a single value) of (N,) values, and the values."""
    deviation = values.std().item() if len(values) > 1 else math.nan
    return {
        "mean": finite(values.mean().item()),
        "std": finite(deviation),
        "values": [finite(value) for value in values.tolist()],
    }


def steps_to(train_loss: Tensor, target: float) -> int | None:
    """(N, steps) -> after how many steps the mean over networks and the last 20 steps is at most `target`.

    None if it never is, or if the target is that of a run that diverged.
    """
    if not math.isfinite(target):
        return None
    mean = train_loss.double().mean(0)
    window = min(FINAL_STEPS, len(mean))
    reached = (mean.unfold(0, window, 1).mean(1) <= target * (1 + 1e-6)).nonzero()
    return int(reached[0]) + window if len(reached) else None


def drawn(train_loss: Tensor, points: int = CURVE_POINTS) -> dict[str, Any]:
    """(N, steps) -> the curve as B means over stretches of the run, with the step in the middle of each."""
    stretches = torch.arange(train_loss.shape[1]).tensor_split(min(points, train_loss.shape[1]))
    means = torch.stack([train_loss[:, stretch].mean(1) for stretch in stretches], 1)
    return {
        "steps": [stretch.double().mean().item() for stretch in stretches],
        "train_loss": [[finite(value) for value in row] for row in means.tolist()],
    }


def finite(value: float) -> float | None:
    """The value, or None if it is not finite: JSON has no infinity."""
    return value if math.isfinite(value) else None
