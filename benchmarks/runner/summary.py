"""From a benchmark's log to its summary: a pure function, which tables and pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.runner.benchmark import Benchmark, Case, score
from benchmarks.runner.log import Record, canonical, key_of
from lopt.comparison.figures import finite

TARGET = "adamw"
"""Steps and time are counted to the final loss of this baseline, tuned."""

WINDOW = 3
"""Points of a logged curve (each a fiftieth of the run) that a loss is averaged over before it counts as reached."""

UNMOVED = 0.95
"""A network has learned nothing if the last point of its logged curve is above that many times the first."""

ORIGINS = ("commit", "cpu", "threads", "torch", "python")
"""What a summary tells of the provenance of its runs: every value that occurs."""


def summarise(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """JSON-able: for each task the entries of the optimizers that were tested on it, and where they come from."""
    tasks = {name: _task(benchmark, name, case, records) for name, case in benchmark.cases.items()}
    tasks = {name: task for name, task in tasks.items() if task["entries"] or task["unfinished"]}
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "protocol": " ".join(benchmark.protocol.split()),
        "test_seeds": list(benchmark.test_seeds),
        "tuning_seeds": list(benchmark.tuning_seeds),
        "tasks": tasks,
        "provenance": _provenance(records),
    }


def smooth(curve: Mapping[str, Any]) -> list[float | None]:
    """Median over the seeds of the logged curve's mean over the last `WINDOW` points; None where that diverged.

    Networks that fit their data perfectly have single losses that say little. And one network that learns nothing
    would make any other optimizer look fast beside the mean. Shapes: B points -> B - WINDOW + 1
    """
    rows = [[math.inf if x is None else x for x in row] for row in curve["train_loss"]]
    ends = range(WINDOW, len(rows[0]) + 1)
    return [finite(median(sum(row[end - WINDOW : end]) / WINDOW for row in rows)) for end in ends]


def failed(figures: Mapping[str, Any]) -> int:
    """How many networks diverged or learned nothing: their loss ended above `UNMOVED` times what it began with."""
    ends = [(row[0], row[-1]) for row in figures["curve"]["train_loss"]]
    unmoved = sum(None not in (first, last) and last > UNMOVED * first for first, last in ends)
    return max(figures["diverged"], sum(None in pair for pair in ends) + unmoved)


def steps_to(curve: Mapping[str, Any], target: float, steps: int) -> int | None:
    """After how many steps the smoothed curve is at most `target`, if it ever is."""
    points = smooth(curve)
    for number, value in enumerate(points, WINDOW):
        if value is not None and value <= target * (1 + 1e-6):
            return round(number * steps / (len(points) + WINDOW - 1))
    return None


def _task(benchmark: Benchmark, name: str, case: Case, records: Sequence[Record]) -> dict[str, Any]:
    own = [r for r in records if r["task"] == name and _is_of(r, benchmark, case)]
    optimizers = list(dict.fromkeys(record["optimizer"] for record in own))
    # The newest test of each: a rule that was trained anew takes the place of its forerunner.
    tests = {record["optimizer"]: record for record in own if record["purpose"] == "test"}
    target = smooth(tests[TARGET]["figures"]["curve"])[-1] if TARGET in tests else None
    entries = {n: _entry(test, [r for r in own if r["optimizer"] == n], target) for n, test in tests.items()}
    return {
        "spec": [case.spec[0], dict(case.spec[1])],
        "steps": case.steps,
        "target": {"of": TARGET, "train_loss": target},
        "entries": dict(sorted(entries.items(), key=lambda item: _rank(item[1]))),
        "unfinished": [optimizer for optimizer in optimizers if optimizer not in tests],
    }


def _is_of(record: Record, benchmark: Benchmark, case: Case) -> bool:
    """Whether a record is of the task and the seeds that the protocol has now."""
    tuning = benchmark.tuning_seeds
    seeds = {"tune": (tuning[:1], tuning[1:]), "test": (benchmark.test_seeds,), "time": ((),)}
    now = {"spec": case.spec, "steps": case.steps}
    return tuple(record["seeds"]) in seeds[record["purpose"]] and canonical(now) == canonical(
        {name: record[name] for name in now}
    )


def _entry(test: Record, own: Sequence[Record], target: float | None) -> dict[str, Any]:
    trials = {key_of(r): r for r in own if r["purpose"] == "tune"}
    found, time = test["figures"], _step_time(test, own)
    return {
        "kind": "rule" if test["digest"] else "baseline",
        "digest": test["digest"],
        "lr": test["lr"],
        "schedule": test["schedule"],
        "at_edge": _at_edge(test, trials.values()),
        "trials": [_trial(record) for record in trials.values()],
        "ms_per_step": time["optimizer_ms"],
        "compiled_ms_per_step": time.get("compiled_ms"),
        "gradient_ms_per_step": time["gradient_ms"],
        "steps_to_target": None if target is None else steps_to(found["curve"], target, test["steps"]),
        "failed": failed(found),
        **{key: value for key, value in found.items() if key != "steps"},
    }


def _step_time(test: Record, own: Sequence[Record]) -> Mapping[str, float]:
    """What a step of the tested setting costs: by its newest timing with a compiled step, or the test's own."""
    same = ("digest", "lr", "schedule")
    timings = [r for r in own if r["purpose"] == "time" and all(r[name] == test[name] for name in same)]
    step_time: Mapping[str, float] = (timings[-1] if timings else test)["step_time"]
    return step_time


def _at_edge(test: Record, trials: Iterable[Record]) -> bool:
    rates = [trial["lr"] for trial in trials]
    return bool(rates) and test["lr"] in (min(rates), max(rates))


def _trial(record: Record) -> dict[str, Any]:
    return {**{key: record[key] for key in ("lr", "schedule", "seeds")}, "score": finite(score(record))}


def _rank(entry: Mapping[str, Any]) -> float:
    """Best first: by test accuracy where there is one, else by test loss; those that diverged last."""
    key, sign = ("test_accuracy", -1) if "test_accuracy" in entry else ("test_loss", 1)
    mean = entry[key]["mean"]
    return float("inf") if mean is None or entry["diverged"] else sign * mean


def _provenance(records: Sequence[Record]) -> dict[str, Any]:
    """Everything that the runs were made with, and how long they took in all."""
    origins = [record["provenance"] for record in records]
    return {
        "runs": len(records),
        "hours": round(sum(record["seconds"] for record in records) / 3600, 2),
        "first": min((origin["time"] for origin in origins), default=None),
        "last": max((origin["time"] for origin in origins), default=None),
        **{key: sorted({str(origin[key]) for origin in origins}) for key in ORIGINS},
    }
