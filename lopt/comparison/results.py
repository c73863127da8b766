"""What a comparison finds on one task: typed, as JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lopt.comparison.figures import Figures
from lopt.comparison.tuning import Tuned

HORIZONS = ("horizon", "long_horizon")


@dataclass(frozen=True)
class Entry:
    """A rule or baseline on one task."""

    kind: Literal["rule", "baseline"]
    horizon: Figures
    long_horizon: Figures
    ms_per_step: float
    gradient_ms_per_step: float
    """Forward and backward pass of the same network."""
    lr: float | None = None
    """As tuned; None for a rule, which runs as it is."""
    schedule: str | None = None
    at_edge: bool = False
    """Whether a better learning rate may lie beyond those that were tried."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Entry:
        return cls(**{**record, **{name: Figures.read(record[name]) for name in HORIZONS}})

    def record(self) -> dict[str, Any]:
        tuned = {"lr": self.lr, "schedule": self.schedule, "at_edge": self.at_edge}
        times = {"ms_per_step": self.ms_per_step, "gradient_ms_per_step": self.gradient_ms_per_step}
        own = {"kind": self.kind, **(tuned if self.kind == "baseline" else {}), **times}
        return {**own, "horizon": self.horizon.record(), "long_horizon": self.long_horizon.record()}


@dataclass(frozen=True)
class TaskComparison:
    """Rules and baselines on one task."""

    task: str
    steps: int
    long_steps: int
    seeds: tuple[int, ...]
    tuned: dict[str, Tuned]
    entries: dict[str, Entry]
    """The rules first, then the baselines, each as it was tuned on this task, then any at a fixed setting."""
    best_baseline: str | None
    """The lowest mean training loss at the shorter horizon."""

    def record(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "steps": self.steps,
            "long_steps": self.long_steps,
            "seeds": list(self.seeds),
            "tuned": {name: found.record() for name, found in self.tuned.items()},
            "entries": {name: entry.record() for name, entry in self.entries.items()},
            "best_baseline": self.best_baseline,
            "summary": self.summary(),
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> TaskComparison:
        own = {name: record[name] for name in ("task", "steps", "long_steps", "best_baseline")}
        tuned = {name: Tuned.read(found) for name, found in record["tuned"].items()}
        entries = {name: Entry.read(found) for name, found in record["entries"].items()}
        return cls(**own, seeds=tuple(record["seeds"]), tuned=tuned, entries=entries)

    def summary(self) -> dict[str, Any]:
        """The first rule ("learned") beside the best baseline, in means over the seeds."""
        learned = next(iter(self.entries))
        baseline = self.entries[self.best_baseline] if self.best_baseline else None
        long = self.entries[learned].long_horizon
        return {
            "learned": _summary_of(learned, self.entries[learned]),
            "best_baseline": _summary_of(self.best_baseline, baseline) if baseline else None,
            "long_horizon": {
                "steps": long.steps,
                "learned_final_train_loss": long.final_train_loss.mean,
                "best_baseline_final_train_loss": baseline and baseline.long_horizon.final_train_loss.mean,
                "diverged": long.diverged > 0,
            },
        }


def _summary_of(name: str | None, entry: Entry) -> dict[str, Any]:
    figures = entry.horizon
    losses = {key: getattr(figures, key).mean for key in ("mean_train_loss", "final_train_loss")}
    metrics = {
        key: figures.metrics[key].mean if key in figures.metrics else None
        for key in ("test_loss", "test_accuracy")
    }
    return {
        "name": name,
        **losses,
        **metrics,
        "steps_to_baseline": figures.steps_to_baseline,
        "ms_per_step": entry.ms_per_step,
        "diverged": figures.diverged > 0,
    }
