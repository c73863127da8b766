"""From a benchmark's log to its summary: a pure function, which tables and pictures are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.runner.benchmark import Benchmark, Case, score
from benchmarks.runner.log import Record, canonical, key_of
from lopt.meta.figures import finite

TARGET = "adamw"
"""Steps and time are counted to the final loss of this baseline, tuned."""

WINDOW = 3
"""Points of a logged curve (each a fiftieth of the run) that a loss is averaged over before it counts as reached."""

ORIGINS = ("commit", "cpu", "threads", "torch", "python")
"""What a summary tells of the provenance of its runs: every value that occurs."""


def summarise(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """JSON-able: for each task the entries of the optimizers that were tested on it, and where they come from."""
    tasks = {name: _task(benchmark, name, case, records) for name, case in benchmark.cases.items()}
    tasks = {name: found for name, found in tasks.items() if found["entries"] or found["unfinished"]}
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
    """The logged curve's mean over the seeds and the last `WINDOW` points; None where a seed has diverged.

    Networks that fit their data perfectly have single losses that say little. Shapes: B points -> B - WINDOW + 1
    """
    columns = list(zip(*curve["train_loss"], strict=True))
    windows = [columns[end - WINDOW : end] for end in range(WINDOW, len(columns) + 1)]
    values = [[x for column in window for x in column] for window in windows]
    return [None if None in found else sum(found) / len(found) for found in values]


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
    seeds = (tuning[:1], tuning[1:]) if record["purpose"] == "tune" else (benchmark.test_seeds,)
    now = {"spec": case.spec, "steps": case.steps}
    return tuple(record["seeds"]) in seeds and canonical(now) == canonical(
        {name: record[name] for name in now}
    )


def _entry(test: Record, own: Sequence[Record], target: float | None) -> dict[str, Any]:
    trials = {key_of(r): r for r in own if r["purpose"] == "tune"}
    found, time = test["figures"], test["step_time"]
    return {
        "kind": "rule" if test["digest"] else "baseline",
        "digest": test["digest"],
        "lr": test["lr"],
        "schedule": test["schedule"],
        "at_edge": _at_edge(test, trials.values()),
        "trials": [_trial(record) for record in trials.values()],
        "ms_per_step": time["optimizer_ms"],
        "gradient_ms_per_step": time["gradient_ms"],
        "steps_to_target": None if target is None else steps_to(found["curve"], target, test["steps"]),
        **{key: value for key, value in found.items() if key != "steps"},
    }


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
