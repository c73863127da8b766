"""Tuning a baseline's learning rate and schedule, within a stated budget.

Shapes: L learning rates, S schedules, N seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lopt.comparison.figures import finite
from lopt.config import Count, Settings, Several, to_mapping
from lopt.errors import ConfigError
from lopt.inner.evaluation import Curves, train_networks
from lopt.inner.task import Task
from lopt.rules.base import Rule
from lopt.rules.classical import CLASSICAL, SGD, ClassicalRule, TorchOptim
from lopt.rules.classical.torch_optim import optimizer_class

Criterion = Callable[[Curves], Tensor]
"""(T,) scores of T networks, the lower the better; inf or nan for one that diverged."""


def mean_train_loss(curves: Curves) -> Tensor:
    """Mean training loss over the run."""
    return curves.mean_loss


def final_train_loss(curves: Curves) -> Tensor:
    """Mean training loss over the last 20 steps."""
    return curves.final_loss


def validation_loss(curves: Curves) -> Tensor:
    """Loss on the validation split at the end of the run."""
    return curves.metrics["validation"]["loss"]


CRITERIA: dict[str, Criterion] = {f.__name__: f for f in (mean_train_loss, final_train_loss, validation_loss)}
"""What a baseline can be tuned for, by name."""


Seed = Annotated[int, Field(ge=0, lt=2**62)]
"""Networks are drawn from twice of it."""
Seeds = Annotated[Several[Seed], Field(min_length=1)]


class Budget(Settings):
    """What the tuning of one baseline may cost: every learning rate with every schedule on every seed.

    Raises `ConfigError` for a value that is not allowed.
    """

    learning_rates: Annotated[int, Field(ge=1, le=100)] = 7
    """How many learning rates, half a decade apart, around the baseline's usual one."""
    schedules: Annotated[Several[Literal["constant", "cosine", "one_cycle"]], Field(min_length=1)] = (
        "constant",
        "cosine",
    )
    """Out of `lopt.numerics.schedules.SCHEDULES`."""
    seeds: Seeds = (1, 2, 3)
    """Validation seeds; a comparison's test seeds must be others."""
    steps: Count = 300
    criterion: Literal["mean_train_loss", "final_train_loss", "validation_loss"] = "mean_train_loss"
    """One of `CRITERIA`."""
    extend: Annotated[int, Field(ge=0, le=100)] = 2
    """How many more learning rates may be tried beyond an end of the grid where the best one lies."""


@dataclass(frozen=True)
class Trial:
    """One setting and its score."""

    lr: float
    schedule: str
    score: float
    """Mean over the seeds; inf if any of them diverged."""


@dataclass(frozen=True)
class Tuned:
    """The best setting found, and all that were tried."""

    lr: float
    schedule: str
    at_edge: bool
    """Whether the best learning rate is the lowest or highest tried, so that a better one may lie beyond."""
    trials: tuple[Trial, ...]
    budget: Budget

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Tuned:
        """Out of a results file, where a score that is not finite is None."""
        own = {name: record[name] for name in ("lr", "schedule", "at_edge")}
        trials = [
            Trial(t["lr"], t["schedule"], math.inf if t["score"] is None else t["score"])
            for t in record["trials"]
        ]
        return cls(**own, trials=tuple(trials), budget=Budget(**record["budget"]))

    def record(self) -> dict[str, Any]:
        """The inverse of `read`."""
        own = {"lr": self.lr, "schedule": self.schedule, "at_edge": self.at_edge}
        trials = [{**asdict(trial), "score": finite(trial.score)} for trial in self.trials]
        return {**own, "trials": trials, "budget": to_mapping(self.budget)}


@dataclass(frozen=True)
class Baseline:
    """A rule as a function of its learning rate, and where to look for the best one."""

    make: Callable[[float], Rule]
    centre: float
    """The middle of the grid of learning rates."""


BASELINES: dict[str, Baseline] = {
    "sgd": Baseline(lambda lr: SGD(lr, momentum=0.9), 1e-1),
    "adam": Baseline(CLASSICAL["adam"], 3e-3),
    "adamw": Baseline(CLASSICAL["adamw"], 3e-3),
    "adafactor": Baseline(CLASSICAL["adafactor"], 3e-2),
    "lion": Baseline(CLASSICAL["lion"], 3e-4),
    "muon": Baseline(CLASSICAL["muon"], 1e-2),
    "normuon": Baseline(CLASSICAL["normuon"], 1e-2),
    "soap_muon": Baseline(CLASSICAL["soap_muon"], 1e-2),
    "schedule_free_adamw": Baseline(CLASSICAL["schedule_free_adamw"], 1e-2),
}
"""The baselines by name; "sgd" has momentum 0.9."""


USUAL = 3e-3
"""Where the search for the learning rate of any other optimizer begins, unless its class has a default of its own."""


def find_baseline(name: str) -> Baseline:
    """One of `BASELINES`, a class of `torch.optim` by its name, or any optimizer's by its dotted one.

    Raises ConfigError if there is none of that name.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"baseline: expected a name, found {name!r}; write that of the class, with its dots"
        )
    if name in BASELINES:
        return BASELINES[name]
    try:
        optimizer = optimizer_class(name)
    except ConfigError as error:
        raise ConfigError(
            f"baseline: expected one of {', '.join(BASELINES)}, of torch.optim, or a dotted name such as"
            f" torch.optim.Muon. {error}"
        ) from None
    rate = signature(optimizer).parameters.get("lr")
    default = rate.default if rate and "." in name and isinstance(rate.default, float) else USUAL
    return Baseline(lambda lr: TorchOptim(optimizer, lr=lr), default)


def grid(centre: float, count: int) -> list[float]:
    """`count` learning rates half a decade apart, around `centre`, to two digits."""
    return [_round(centre * 10 ** (0.5 * (k - (count - 1) // 2))) for k in range(count)]


def tune(baseline: Baseline, task: Task, budget: Budget, label: str = "") -> Tuned:
    """Try the whole grid on the validation seeds; extend it where the best rate lies at an end of it.

    Everything of the grid is trained under one vmap if the rule's step is linear in
    its learning rate, else learning rate by learning rate.
    """
    trials = run_trials(baseline, task, grid(baseline.centre, budget.learning_rates), budget, label)
    for _ in range(budget.extend):
        further = beyond(trials)
        if further is None:
            break
        trials += run_trials(baseline, task, [further], budget, label)
    best = min(trials, key=lambda trial: trial.score)
    return Tuned(best.lr, best.schedule, beyond(trials) is not None, tuple(sorted(trials, key=_key)), budget)


def run_trials(
    baseline: Baseline, task: Task, rates: Sequence[float], budget: Budget, label: str
) -> list[Trial]:
    """One trial for each learning rate and schedule."""
    unit = baseline.make(1.0)
    if isinstance(unit, ClassicalRule) and unit.linear_in_lr:
        return _run(unit, 1.0, task, rates, budget, label)
    return [t for lr in rates for t in _run(baseline.make(lr), lr, task, [lr], budget, label)]


def _run(
    rule: Rule,
    own_lr: float,
    task: Task,
    rates: Sequence[float],
    budget: Budget,
    label: str,
) -> list[Trial]:
    settings = [(lr, schedule) for lr in rates for schedule in budget.schedules]
    runs = [(lr, schedule, seed) for lr, schedule in settings for seed in budget.seeds]
    curves = train_networks(
        rule.on(task.graph),
        task,
        [seed for _, _, seed in runs],
        budget.steps,
        lr=torch.tensor([lr / own_lr for lr, _, _ in runs], dtype=torch.float64),
        schedule=[schedule for _, schedule, _ in runs],
        total_steps=budget.steps,
        label=label,
    )
    scores = CRITERIA[budget.criterion](curves).nan_to_num(nan=math.inf, posinf=math.inf)
    means = scores.where(~curves.diverged, math.inf).reshape(len(settings), -1).mean(1)
    return [
        Trial(lr, schedule, score) for (lr, schedule), score in zip(settings, means.tolist(), strict=True)
    ]


def beyond(trials: Sequence[Trial]) -> float | None:
    """The next learning rate beyond the end of the grid where the best one lies; None if it lies inside."""
    best = min(trials, key=lambda trial: trial.score).lr
    rates = [trial.lr for trial in trials]
    if best == min(rates):
        return _round(best / 10**0.5)
    return _round(best * 10**0.5) if best == max(rates) else None


def _round(lr: float) -> float:
    return float(f"{lr:.2g}")


def _key(trial: Trial) -> tuple[str, float]:
    return trial.schedule, trial.lr
