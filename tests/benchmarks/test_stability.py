"""The long runs in short: a spike of the learning rate, and what counts as a failure."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import stability


@pytest.mark.slow
@pytest.mark.parametrize("network", list(stability.NETWORKS))
def test_a_spike_leaves_finite_weights(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "SPIKE_EVERY", 300)
    row = stability.run(network, "lopt-base", 800)
    assert row["not_finite"] == row["skipped"] == 0
    assert stability.failures(row) == []


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ({}, 0),
        ({"not_finite": 1}, 1),
        ({"longest_above_twice_best": 500}, 0),
        ({"longest_above_twice_best": 501}, 1),
    ],
)
def test_failures(changed: dict[str, Any], count: int) -> None:
    row = {"not_finite": 0, "longest_above_twice_best": 0, **changed}
    assert len(stability.failures(row)) == count


def test_the_control_is_trained_at_the_better_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "RATES", (1e-6, 1e-2))
    monkeypatch.setattr(stability, "TUNING_STEPS", 150)
    assert stability.run("mlp", stability.CONTROL, 120)["rate"] == 1e-2
