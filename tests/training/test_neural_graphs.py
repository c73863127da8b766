"""configs/neural_graphs.yaml: every metanet of the paper, two outer steps on digits, from the config as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lopt import config as configs
from lopt.rules import LearnedRule, load_rule
from lopt.training import train
from lopt.training.estimators import Greedy
from lopt.training.outer_optimizer import OuterOptimizer
from lopt.training.run_config import RunConfig

CONFIG = Path(__file__).parents[2] / "configs" / "neural_graphs.yaml"

METANETS: dict[str, Any] = {
    "mlp": {"name": "mlp", "width": 64, "layers": 2},
    "tensor_lstm": {"name": "tensor_lstm", "width": 32, "scalar_layers": 1},
    "ng_gnn": {"name": "ng_gnn", "width": 8, "layers": 2, "positions": True, "scalar_layers": 2},
    "ng_t": {
        "name": "ng_t", "node_width": 8, "edge_width": 8, "attention_width": 8, "heads": 4, "positions": True,
        "scalar_layers": 2,
    },
    "nfn": {"name": "nfn", "width": 8, "depth": 3, "positions": True, "scalar_layers": 2},
}  # fmt: skip
"""Those of the paper; the graph ones narrower."""

SMALL = {
    "tasks.0.options.dataset": "digits",
    "tasks.0.options.widths": [[4, 6]],
    "tasks.0.options.batch_size": 8,
    "validation": [{"family": "cnn", "options": {"dataset": "digits", "widths": [4, 6], "batch_size": 8}}],
    "meta.steps": 2,
    "meta.truncation": 3,
    "meta.shortest_horizon": 3,
    "meta.longest_horizon": 3,
    "meta.validation_steps": 4,
}


@pytest.mark.parametrize("metanet", METANETS)
def test_two_outer_steps(metanet: str, tmp_path: Path) -> None:
    run = train(CONFIG, {**SMALL, "rule.metanet": METANETS[metanet], "out": str(tmp_path / "run")})
    assert run.finished
    fresh = LearnedRule(run.config.rule)
    assert set(run.rule.state_dict()) == set(fresh.state_dict())
    records = [record for record in run.history.records if "outer_loss" in record]
    assert [record["restarts"] for record in records] == [1, 2], (
        "a life from fresh weights in each outer step"
    )
    assert [record["inner_steps"] for record in records] == [3, 6]
    assert all(record["gradient_norm"] > 0 for record in records)
    assert records[0]["learning_rate"] == pytest.approx(3e-4)
    assert records[1]["learning_rate"] == pytest.approx(1.5e-4), "half a cosine over two steps"
    assert isinstance(load_rule(tmp_path / "run"), LearnedRule)


def test_what_the_protocol_asks_for() -> None:
    config = configs.load(RunConfig, CONFIG)
    rule = LearnedRule(config.rule)
    assert sum(p.numel() for p in rule.parameters()) == 14 * 64 + 64 + 64 * 64 + 64 + 2 * 64 + 2
    assert isinstance(config.meta.make_estimator(), Greedy)
    assert config.meta.truncation == config.meta.longest_life // config.meta.cohort_turns == 100


def test_outer_steps_are_those_of_torch_with_a_cosine() -> None:
    """Beside `torch.optim.Adam` with a decay, its default moments and `CosineAnnealingLR`, nothing clipped."""
    config = configs.load(RunConfig, CONFIG, {"meta.steps": 5})
    torch.manual_seed(0)
    ours, theirs = LearnedRule(config.rule), LearnedRule(config.rule)
    theirs.load_state_dict(ours.state_dict())
    outer = OuterOptimizer(ours, config.meta)
    adam = torch.optim.Adam(theirs.parameters(), lr=3e-4, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=5)
    for step in range(5):
        gradient = {name: 10.0 * torch.randn_like(p) for name, p in ours.named_parameters()}
        for name, p in theirs.named_parameters():
            p.grad = gradient[name].clone()
        outer.apply(gradient, step)
        adam.step()
        schedule.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(outer.average, dict(ours.named_parameters()), rtol=0, atol=0)
