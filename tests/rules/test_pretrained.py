"""What ships with the package: it trains networks of kinds that its forerunners failed on."""

from __future__ import annotations

from typing import Any

import pytest

import lopt
from lopt.inner.evaluation import train_networks
from lopt.rules import LearnedRule, pretrained_names
from meta_tasks import make_task

CASES: dict[str, tuple[str, dict[str, Any], int, float, float]] = {
    # The first lopt-base ended at five times AdamW's loss: its steps were longer than the weights.
    "siren": ("siren", {"widths": (24, 24, 24)}, 200, 3e-3, 3.0),
    "autoencoder": ("autoencoder", {"widths": (48,), "code": 8}, 150, 1e-2, 1.0),
}
"""Family, spec, steps, a good learning rate of AdamW with a one-cycle schedule, and how many times its loss will do."""


@pytest.mark.parametrize("shipped", pretrained_names())
@pytest.mark.parametrize("name", CASES)
def test_it_ends_near_adamw_or_below(name: str, shipped: str) -> None:
    family, spec, steps, lr, factor = CASES[name]
    task, seeds = make_task(family, spec), (1, 2)
    rule, adamw = lopt.load_rule(shipped), lopt.make_rule("adamw", lr=1.0)
    ours = train_networks(rule.on(task.graph), task, seeds, steps, total_steps=steps, splits=())
    theirs = train_networks(adamw.on(task.graph), task, seeds, steps, lr=lr, schedule="one_cycle", splits=())
    assert not ours.diverged.any()
    assert ours.final_loss.mean() < factor * theirs.final_loss.mean()


def test_lopt_base_decays_weights_and_so_learns_less_by_heart() -> None:
    """Few data with false labels: without its decay the same rule has half as much loss again on held-out data."""
    options = {
        "dataset": "digits",
        "widths": (32, 32),
        "batch_size": 32,
        "data_fraction": 0.2,
        "label_noise": 0.1,
    }
    task, steps, shipped = make_task("mlp", options), 800, lopt.load_rule("lopt-base")
    without = LearnedRule(shipped.config.but(weight_decay=1e-9))
    without.load_state_dict(shipped.state_dict())
    held_out = [
        train_networks(rule.on(task.graph), task, (1, 2), steps, total_steps=steps, splits=("validation",))
        .metrics["validation"]["loss"]
        .mean()
        for rule in (shipped, without)
    ]
    assert held_out[0] < 0.85 * held_out[1], held_out
