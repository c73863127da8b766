"""From the curves of N networks to figures, and figures to JSON and back.

Shapes: N networks (seeds), B points of a drawn curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lopt.inner.evaluation import FINAL_STEPS, Curves

CURVE_POINTS = 200
"""A drawn curve holds at most that many points unless told, each the mean over a stretch of the run."""


@dataclass(frozen=True)
class Statistic:
    """A figure of N networks. What is not finite is None, as JSON has no infinity."""

    mean: float | None
    """None if any network diverged: no figure leaves one out."""
    std: float | None
    """Of one sample, so None for a single value."""
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, values: Tensor) -> Statistic:
        """That of (N,) values."""
        deviation = values.std().item() if len(values) > 1 else math.nan
        return cls(finite(values.mean().item()), finite(deviation), tuple(map(finite, values.tolist())))

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Statistic:
        return cls(record["mean"], record["std"], tuple(record["values"]))

    def __str__(self) -> str:
        if self.mean is None:
            return "diverged"
        return f"{self.mean:.4g}" + ("" if self.std is None else f" ± {self.std:.2g}")


@dataclass(frozen=True)
class DrawnCurve:
    """Training losses to draw: B means over stretches of the run, with the step in the middle of each."""

    steps: tuple[float, ...]
    train_loss: tuple[tuple[float | None, ...], ...]
    """(N, B)."""

    @classmethod
    def of(cls, train_loss: Tensor, points: int = CURVE_POINTS) -> DrawnCurve:
        """That of (N, steps) losses."""
        stretches = torch.arange(train_loss.shape[1]).tensor_split(min(points, train_loss.shape[1]))
        means = torch.stack([train_loss[:, stretch].mean(1) for stretch in stretches], 1)
        middles = tuple(stretch.double().mean().item() for stretch in stretches)
        return cls(middles, tuple(tuple(map(finite, row)) for row in means.tolist()))

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> DrawnCurve:
        return cls(tuple(record["steps"]), tuple(map(tuple, record["train_loss"])))


@dataclass(frozen=True)
class Figures:
    """What came of training N networks."""

    steps: int
    mean_train_loss: Statistic
    """Over the run."""
    final_train_loss: Statistic
    """Over the last 20 steps."""
    metrics: dict[str, Statistic]
    """At the end of the run, by split and name: "test_loss", "test_accuracy"."""
    steps_to_baseline: int | None
    """After how many steps the mean curve came down to the best baseline's final loss, if it ever did."""
    diverged: int
    """How many networks."""
    curve: DrawnCurve

    @classmethod
    def of(cls, curves: Curves, target: float | None = None, points: int = CURVE_POINTS) -> Figures:
        """Those of the curves; `target` is the final loss that `steps_to_baseline` is counted to."""
        return cls(
            curves.train_loss.shape[1],
            Statistic.of(curves.mean_loss),
            Statistic.of(curves.final_loss),
            {
                f"{split}_{name}": Statistic.of(values)
                for split, metrics in curves.metrics.items()
                for name, values in metrics.items()
            },
            None if target is None else steps_to(curves.train_loss, target),
            int(curves.diverged.sum()),
            DrawnCurve.of(curves.train_loss, points),
        )

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Figures:
        """The inverse of `record`."""
        own = {field.name for field in fields(cls)}
        return cls(
            record["steps"],
            Statistic.read(record["mean_train_loss"]),
            Statistic.read(record["final_train_loss"]),
            {name: Statistic.read(figure) for name, figure in record.items() if name not in own},
            record["steps_to_baseline"],
            record["diverged"],
            DrawnCurve.read(record["curve"]),
        )

    def record(self) -> dict[str, Any]:
        """JSON-able: the metrics stand beside the other figures."""
        record = as_json(asdict(self))
        metrics = record.pop("metrics")
        return {**record, **metrics}

    @property
    def networks(self) -> int:
        return len(self.mean_train_loss.values)


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


def finite(value: float) -> float | None:
    """The value, or None if it is not finite."""
    return value if math.isfinite(value) else None


def as_json(value: Any) -> Any:
    """Trees with lists in place of tuples and None in place of what is not finite."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return finite(value) if isinstance(value, float) else value
