"""The ceiling: its search goes downhill, and its table compares the same networks."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import ceiling
from meta_tasks import make_task


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "STEPS", 5)


def test_vectors_are_compared_on_the_same_networks() -> None:
    task = make_task("tabular", {"dataset": "wine", "widths": [8]})
    logs = torch.tensor(ceiling.final_log_losses(task, [{}, {"rate": 0.0}, {"rate": -50.0}], 3))
    assert torch.equal(logs[0], logs[1])
    assert (logs[2] > logs[0]).all(), "without steps nothing is learned"
    found = {"vectors": {"base": {}, "same": {}, "none": {}}, "log_loss": {"wine": logs.tolist()}}
    lines = ceiling.table(found).splitlines()
    assert lines[3] == "| same | +0.000 ± 0.000 | +0.000 ± 0.000 |"
    gaps = logs[2] - logs[0]
    assert f"{gaps.mean():+.3f} ± {1.96 * gaps.std() / math.sqrt(3):.3f}" in lines[4]


def test_a_generation_raises_a_rate_that_is_far_too_low() -> None:
    rule = ceiling.moved_by({"rate": -4.0})
    rule.metanet.requires_grad_(False)
    before = {name: p.clone() for name, p in rule.metanet.named_parameters()}
    start = rule.log_rate.item()
    ceiling.descend(rule, {"wine": make_task("tabular", {"dataset": "wine", "widths": [8]})}, 32, 0, 0.2)
    assert rule.log_rate.item() > start
    assert all(torch.equal(p, before[name]) for name, p in rule.metanet.named_parameters())
    again = ceiling.base()
    ceiling.load(again, ceiling.vector(rule))
    assert ceiling.named(again) == ceiling.named(rule)
    assert ceiling.vector(ceiling.moved_by(ceiling.named(rule))) == pytest.approx(
        ceiling.vector(rule), abs=1e-6
    )
