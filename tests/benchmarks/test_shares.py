"""Shares of a rule: the ends are the fresh rule and itself, and runs are not done twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import shares
from lopt.rules import LearnedRule, load_rule, make_rule, save_rule
from lopt.rules.base import Tensors
from meta_tasks import make_task

CONFIG = """
name: two
tasks:
  - {family: quadratic, options: {dimension: 4}}
  - {family: tabular, options: {dataset: wine, widths: [6]}}
validation: [{family: quadratic}]
"""


def found() -> LearnedRule:
    """A rule that meta-training has moved, by chance, in everything."""
    torch.manual_seed(1)
    rule = make_rule("tensor_mlp", width=4, constants=("second_decay", "vector_rate"))
    assert isinstance(rule, LearnedRule)
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return rule


def step(rule: LearnedRule) -> Tensors:
    task = make_task("tabular", {"dataset": "wine", "widths": [6]})
    params = {name: p[0] for name, p in task.init(1, torch.Generator().manual_seed(0)).items()}
    bound = rule.on(task.graph)
    grads = {name: torch.cos(17 * p) for name, p in params.items()}
    return bound.delta(grads, bound.init(params, 10.0), params)[0]


def test_the_ends_are_the_fresh_rule_and_the_rule_itself() -> None:
    for name, delta in step(shares.with_share(found(), 1.0)).items():
        assert torch.equal(delta, step(found())[name])
    for name, delta in step(shares.with_share(found(), 0.0)).items():
        assert torch.equal(delta, step(LearnedRule(found().config))[name])
        assert not torch.equal(delta, step(found())[name])


def test_runs_are_kept_and_told_beside_the_fresh_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_rule(found(), tmp_path / "rule.safetensors")
    (tmp_path / "two.yaml").write_text(CONFIG)
    monkeypatch.setattr(shares, "OUT", tmp_path / "shares.json")
    command = (
        f"shares {tmp_path}/rule.safetensors --config {tmp_path}/two.yaml --shares 0 1 --steps 4 --networks 2"
    )
    monkeypatch.setattr(sys, "argv", [*command.split(), "--keep", "0.5", f"{tmp_path}/half.safetensors"])
    shares.main()
    rows = json.loads((tmp_path / "shares.json").read_text())["rows"]
    assert [row["share"] for row in rows] == [0.0, 1.0] * 2, (
        "share 0 is the same run wherever it is asked for"
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].count("+0.000 ± 0.000") == 3
    assert "0, 0, 0" in lines[2]
    gaps = [
        sum(after["final"]) / 2 - sum(before["final"]) / 2
        for before, after in zip(rows[::2], rows[1::2], strict=True)
    ]
    assert f"{sum(gaps) / 2:+.3f} ± " in lines[3].split("|")[3]
    monkeypatch.setattr(shares, "train_networks", None)
    shares.main()
    half = load_rule(tmp_path / "half.safetensors")
    wanted = (found().log_rate + LearnedRule(found().config).log_rate) / 2
    torch.testing.assert_close(half.log_rate, wanted)
