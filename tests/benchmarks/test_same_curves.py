"""The comparison of two commits' runs tells the first difference, and only what is one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.same_curves import ESTIMATORS, Outcome, first_difference


def outcome(rule: float = 1.0, **figures: Any) -> Outcome:
    rows = [
        {"step": 0, "validation": 0.5},
        {"step": 1, "outer_loss": 0.25, "gradient_norm": math.nan} | figures,
    ]
    return {name: (rows, {"rate": torch.tensor([0.0, rule])}) for name in ESTIMATORS}


def test_equal_runs_and_a_new_figure_are_no_difference() -> None:
    assert first_difference(outcome(), outcome()) is None
    assert first_difference(outcome(), outcome(new_gauge=3.0)) is None


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (outcome(outer_loss=0.2500001), "backprop, outer step 1: outer_loss is 0.25 and 0.2500001"),
        (outcome(rule=1.5), "backprop: rate of the rule differs by up to 0.5"),
        ({**outcome(), "pes": ([], {})}, "pes: 2 and 0 records logged"),
    ],
)
def test_the_first_difference_is_told(other: Outcome, told: str) -> None:
    assert first_difference(outcome(), other) == told
