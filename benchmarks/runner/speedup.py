"""How many times fewer steps, and how much less time, an optimizer takes to the final loss of tuned AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from benchmarks.runner.summary import TARGET
from lopt.tables import aligned

CONFIDENCE = 0.95


def overview(summary: Mapping[str, Any]) -> tuple[Any, str]:
    """Speed-ups of every optimizer on every task, and their geometric means over the tasks."""
    tasks = {name: record for name, record in summary["tasks"].items() if _has_target(record)}
    names = list(dict.fromkeys(name for record in tasks.values() for name in record["entries"]))
    figures = {name: of_optimizer(name, tasks) for name in names}
    ranked = dict(sorted(figures.items(), key=lambda item: -item[1]["steps"]["mean"]))
    return ranked, _text(ranked, tasks)


def _has_target(record: Mapping[str, Any]) -> bool:
    """Whether AdamW has been tested on a task, and most of its networks have come to an end."""
    return TARGET in record["entries"] and record["entries"][TARGET]["steps_to_target"] is not None


def of_optimizer(name: str, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Speed-ups over the tasks that an optimizer was tested on."""
    own = {task: record for task, record in tasks.items() if name in record["entries"]}
    ratios = {task: ratio(record["entries"][name], record) for task, record in own.items()}
    return {
        "tasks": ratios,
        "reached": sum(record["reached"] for record in ratios.values()),
        "failed": sum(record["entries"][name]["failed"] for record in own.values()),
        "steps": geometric_mean([record["steps"] for record in ratios.values()]),
        "time": geometric_mean([record["time"] for record in ratios.values()]),
    }


def ratio(entry: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """AdamW's steps, and time, to its own final loss over another optimizer's.

    An optimizer that has not come there by the end of the run counts as if it did in that step: a bound from above.
    Time is counted in gradients, which cost every optimizer the same: a step costs 1 + optimizer time / gradient
    time, both measured in turns in one process, eager or under `torch.compile`, whichever is faster.
    """
    base = record["entries"][TARGET]
    reached = entry["steps_to_target"] is not None
    steps = base["steps_to_target"] / (entry["steps_to_target"] if reached else record["steps"])
    return {"reached": reached, "steps": steps, "time": steps * _cost(base) / _cost(entry)}


def geometric_mean(values: Sequence[float]) -> dict[str, float | None]:
    """Mean of the logarithms and its confidence interval by Student's t, both as factors; no interval for one value."""
    logs = [math.log(value) for value in values]
    count, mean = len(logs), math.fsum(logs) / len(logs)
    if count < 2:
        return {"mean": math.exp(mean), "low": None, "high": None}
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / (count - 1))
    margin = float(student.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return {"mean": math.exp(mean), "low": math.exp(mean - margin), "high": math.exp(mean + margin)}


def _cost(entry: Mapping[str, Any]) -> float:
    """Of one step, in gradients."""
    steps = [entry["ms_per_step"], entry.get("compiled_ms_per_step")]
    return 1 + min(ms for ms in steps if ms is not None) / entry["gradient_ms_per_step"]


def _text(figures: Mapping[str, Any], tasks: Mapping[str, Any]) -> str:
    header = [
        "optimizer", "steps", "95 %", "time", "95 %", "tasks where it gets there", "networks failed", *tasks,
    ]  # fmt: skip
    rows = [
        [
            name,
            *(
                cell
                for key in ("steps", "time")
                for cell in _mean(figure[key], figure["reached"] < len(figure["tasks"]))
            ),
            f"{figure['reached']} of {len(figure['tasks'])}",
            str(figure["failed"]),
            *(_ratio(figure["tasks"].get(task)) for task in tasks),
        ]
        for name, figure in figures.items()
    ]
    return (
        "### Speed-up over tuned AdamW\n\n"
        "AdamW's steps (time) to its final training loss over those of each optimizer to the same loss: above 1 is"
        " faster than AdamW. Geometric mean over the tasks with a 95 % confidence interval (Student's t of the"
        " logarithms), then the speed-up in steps on each task. Time is of the processor, gradients included, with a"
        " compiled step where that is timed and faster. An optimizer that does not get there within the run"
        ' counts as if it did at the last step, marked "<": its true speed-up is lower.\n\n'
        + aligned(header, rows)
    )


def _mean(figure: Mapping[str, Any], bound: bool) -> tuple[str, str]:
    interval = "-" if figure["low"] is None else f"{figure['low']:.2f} to {figure['high']:.2f}"
    return "<" * bound + f"{figure['mean']:.2f}", interval


def _ratio(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else "<" * (not figure["reached"]) + f"{figure['steps']:.2f}"
