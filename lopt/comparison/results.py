"""The results of a comparison: typed, as text, as a picture, as JSON and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from lopt.comparison.figures import Figures, as_json
from lopt.comparison.report import curves_figure, table
from lopt.comparison.tuning import Tuned
from lopt.files import user_path, write_atomically

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
            "tuned": {name: as_json(asdict(found)) for name, found in self.tuned.items()},
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


@dataclass(frozen=True)
class Comparison:
    """Rules and baselines on one or several tasks. Prints as tables."""

    tasks: tuple[TaskComparison, ...]
    provenance: dict[str, Any]

    def __str__(self) -> str:
        return "\n\n".join(table(task, horizon) for task in self.tasks for horizon in HORIZONS)

    def plot(self) -> Figure:
        """Training loss over steps: a row for each task, a panel for each horizon."""
        return curves_figure(self.tasks)

    def alone(self) -> list[Comparison]:
        """Each task by itself."""
        return [replace(self, tasks=(task,)) for task in self.tasks]

    def record(self) -> dict[str, Any]:
        """JSON-able: that of the task if there is one, else a summary over the tasks and each of them."""
        records = [task.record() for task in self.tasks]
        if len(records) == 1:
            return {**records[0], "provenance": self.provenance}
        total = {"summary": averaged([record["summary"] for record in records])}
        return {**total, "tasks": records, "provenance": self.provenance}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Comparison:
        """The inverse of `record`; also of older files, in which each task has a provenance of its own."""
        records: Sequence[Mapping[str, Any]] = record.get("tasks", [record])
        provenance = record.get("provenance", records[0].get("provenance", {}))
        return cls(tuple(map(TaskComparison.read, records)), provenance)

    def write(self, path: str | os.PathLike[str]) -> None:
        """As JSON, atomically."""
        write_atomically(
            user_path(path), json.dumps(self.record(), indent=1, allow_nan=False).encode() + b"\n"
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Comparison:
        """What `write` wrote."""
        return cls.from_record(json.loads(Path(user_path(path)).read_text(encoding="utf-8")))


def averaged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary out of several of the same form: means of numbers, "or" of flags, other values joined."""
    return {key: _averaged([summary[key] for summary in summaries]) for key in summaries[0]}


def _averaged(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Mapping):
        return averaged(values)
    if isinstance(values[0], bool):
        return any(values)
    if isinstance(values[0], (int, float)):
        return sum(values) / len(values)
    return ", ".join(dict.fromkeys(values))


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
