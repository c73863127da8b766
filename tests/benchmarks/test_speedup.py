"""Speed-ups over tuned AdamW: arithmetic that can be done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.runner.speedup import geometric_mean, overview, ratio


def entry(steps: int | None, ms: float = 0.0, gradient_ms: float = 1.0) -> dict[str, Any]:
    return {"steps_to_target": steps, "ms_per_step": ms, "gradient_ms_per_step": gradient_ms, "failed": 0}


def task(**entries: dict[str, Any]) -> dict[str, Any]:
    return {"steps": 1000, "entries": entries}


def test_ratio_of_steps_and_of_time() -> None:
    found = task(adamw=entry(1000, ms=0.5), fast=entry(250, ms=2.0))
    # A step costs 1 + 0.5 gradients with AdamW and 1 + 2 with the other.
    assert ratio(found["entries"]["fast"], found) == {"reached": True, "steps": 4.0, "time": 2.0}
    assert ratio(found["entries"]["adamw"], found) == {"reached": True, "steps": 1.0, "time": 1.0}


def test_a_slow_gradient_in_one_measurement_is_no_advantage() -> None:
    quiet = task(adamw=entry(1000, ms=1.0), other=entry(500, ms=1.0))
    busy = task(adamw=entry(1000, ms=1.0), other=entry(500, ms=3.0, gradient_ms=3.0))
    assert ratio(quiet["entries"]["other"], quiet) == ratio(busy["entries"]["other"], busy)


def test_the_faster_of_eager_and_compiled_counts() -> None:
    slower, faster = ({**entry(500, ms=3.0), "compiled_ms_per_step": ms} for ms in (4.0, 1.0))
    found = task(adamw=entry(1000, ms=1.0), slower=slower, faster=faster)
    assert ratio(slower, found)["time"] == 1.0
    assert ratio(faster, found)["time"] == 2.0


def test_not_reached_is_a_bound_from_above() -> None:
    found = task(adamw=entry(980), slow=entry(None))
    assert ratio(found["entries"]["slow"], found) == {"reached": False, "steps": 0.98, "time": 0.98}


def test_geometric_mean_and_its_interval() -> None:
    found = geometric_mean([1.0, 4.0])
    # Logarithms 0 and log 4: mean log 2, deviation log 4 / sqrt 2; t of one degree of freedom at 97.5 % is 12.7062.
    margin = 12.7062 * math.log(4) / 2
    assert found["mean"] == pytest.approx(2.0)
    assert found["low"] == pytest.approx(2 * math.exp(-margin), rel=1e-4)
    assert found["high"] == pytest.approx(2 * math.exp(margin), rel=1e-4)
    assert geometric_mean([3.0]) == {"mean": pytest.approx(3.0), "low": None, "high": None}


def test_overview_ranks_marks_bounds_and_leaves_out_tasks_without_adamw() -> None:
    tasks = {
        "one": task(adamw=entry(1000), fast=entry(500), slow=entry(None)),
        "two": task(adamw=entry(1000), fast=entry(250), slow=entry(900)),
        "alone": task(fast=entry(10)),
        "adamw diverged": task(adamw=entry(None), fast=entry(None)),
    }
    figures, text = overview({"tasks": tasks})
    assert list(figures) == ["fast", "slow", "adamw"]
    assert set(figures["fast"]["tasks"]) == {"one", "two"}
    assert figures["fast"]["steps"]["mean"] == pytest.approx(math.sqrt(8))
    assert figures["slow"]["reached"] == 1
    (row,) = [line for line in text.splitlines() if line.startswith("| slow")]
    assert "<1.05" in row
    assert "<1.00" in row
    assert "1 of 2" in row
