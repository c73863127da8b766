"""What a step costs: how rounds become one row."""

from __future__ import annotations

from typing import Any

from benchmarks.step_time import lowest


def row(adam: float, rule: float) -> dict[str, Any]:
    times = {"adam, foreach": adam, "muon": 2 * adam, "lopt-base": rule}
    return {
        "network": "n",
        "parameters": 1000,
        "optimizers": {
            name: {"ms": ms, "processor_ms": 2 * ms, "state_bytes_per_parameter": 8.0}
            for name, ms in times.items()
        },
    }


def test_of_several_rounds_each_optimizer_keeps_its_lowest_time() -> None:
    found = lowest([row(1.0, 9.0), row(0.5, 20.0), row(2.0, 8.0)])
    assert found["rounds"] == 3
    assert found["optimizers"]["adam, foreach"]["ms"] == 0.5
    rule = found["optimizers"]["lopt-base"]
    assert (rule["ms"], rule["processor_ms"], rule["state_bytes_per_parameter"]) == (8.0, 16.0, 8.0)
    assert rule["nanoseconds_per_parameter"] == 16_000
    assert rule["times_adam"] == 16.0
    assert rule["times_muon"] == 8.0
