"""What `benchmarks.sharding` counts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.sharding import Case, Meter, beside_one, run


def test_the_meter_counts_what_lives_at_the_same_time():
    known = torch.ones(1000)
    with Meter([known]) as meter:
        known += 1
        first = known * 2
        view = first[:10]
        del first
        assert meter.live == 4000
        del view
        second = torch.cat([known, known])
        third = second + 1
        del second, third
    assert (meter.live, meter.peak, meter.messages) == (0, 16_000, 0)


def test_ranks_are_compared_with_one_process_whichever_came_first():
    sizes = {"model_bytes": 1, "state_bytes": 2, "temporary_bytes": 1, "losses": [1.0]}
    four, one = ({"rule": "adamw", "fused": False, "ranks": ranks, **sizes} for ranks in (4, 1))
    beside_one(rows := [four, one])
    assert [row["of_one"] for row in rows] == [1, 1]


def test_a_rule_is_compared_with_muon_in_the_same_round():
    sizes = {"model_bytes": 1, "state_bytes": 2, "temporary_bytes": 1, "losses": [1.0]}
    rounds = {"muon": [1.0, 10.0, 2.0], "lopt-small": [2.0, 20.0, 3.0]}
    beside_one(
        rows := [
            {"rule": rule, "fused": False, "ranks": 4, "processor_rounds": ms, "wall_rounds": ms, **sizes}
            for rule, ms in rounds.items()
        ]
    )
    assert [(row["times_muon"], row["wall_times_muon"]) for row in rows] == [(1, 1), (2, 2)]


@pytest.mark.slow
def test_two_ranks_follow_one_with_half_of_its_state():
    (one,), (two,) = (run(ranks, "gpt-1M", [Case("lopt-small", False)], rounds=1) for ranks in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["state_bytes"] < 0.51 * one["state_bytes"]
    assert one["sent_bytes"] == 0 < two["sent_bytes"]
