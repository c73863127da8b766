"""Comparisons: the figures are those of single runs, test seeds stay fresh, the report can be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lopt.comparison.compare import compare, evaluate
from lopt.comparison.figures import drawn, figures, statistic, steps_to
from lopt.comparison.report import plot_curves, render_table, smoothed, write_results
from lopt.comparison.tuning import Budget, find_baseline
from lopt.errors import ConfigError
from lopt.inner.evaluation import Curves, train_networks
from lopt.rules.classical import SGD, Adam
from lopt.tables import aligned
from tests.toy_tasks import Quadratic, TwoMoons

STEPS = 40
SEEDS = [11, 12, 13]
BUDGET = Budget(learning_rates=3, seeds=(1, 2), steps=STEPS, extend=0)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    rules = {"first": Adam(0.03), "wild": SGD(1e30)}
    return compare(rules, TwoMoons(), baselines=("sgd", "adam"), steps=STEPS, seeds=SEEDS, budget=BUDGET)


@pytest.mark.parametrize(("horizon", "steps"), [("horizon", STEPS), ("long_horizon", 3 * STEPS)])
def test_figures_are_those_of_single_runs_with_the_tuned_setting(
    results: dict[str, Any], horizon: str, steps: int
) -> None:
    task = TwoMoons()
    tuned = results["tuned"]["adam"]
    for name, rule, schedule in (
        ("first", Adam(0.03), "constant"),
        ("adam", find_baseline("adam").make(tuned["lr"]), tuned["schedule"]),
    ):
        curves = train_networks(rule.on(task.graph), task, SEEDS, steps, schedule=schedule, splits=("test",))
        found = results["entries"][name][horizon]
        assert found["steps"] == steps
        assert found["mean_train_loss"]["mean"] == pytest.approx(curves.train_loss.mean().item(), rel=1e-4)
        assert found["final_train_loss"]["values"] == pytest.approx(curves.final_loss.tolist(), rel=1e-4)
        accuracy = curves.final_metric("test", "accuracy")
        assert found["test_accuracy"]["std"] == pytest.approx(accuracy.std().item(), abs=1e-3)


def test_summary(results: dict[str, Any]) -> None:
    summary, entries = results["summary"], results["entries"]
    losses = {name: entries[name]["horizon"]["mean_train_loss"]["mean"] for name in ("sgd", "adam")}
    assert (
        summary["best_baseline"]["name"] == results["best_baseline"] == min(losses, key=lambda n: losses[n])
    )
    for key, name in (("learned", "first"), ("best_baseline", results["best_baseline"])):
        found = summary[key]
        assert found["mean_train_loss"] == entries[name]["horizon"]["mean_train_loss"]["mean"]
        assert found["final_train_loss"] == entries[name]["horizon"]["final_train_loss"]["mean"]
        assert 0.5 < found["test_accuracy"] <= 1
        assert found["ms_per_step"] > 0
    long = summary["long_horizon"]
    assert long["learned_final_train_loss"] == entries["first"]["long_horizon"]["final_train_loss"]["mean"]
    assert long["diverged"] is False


def test_divergence_is_a_figure(results: dict[str, Any]) -> None:
    wild = results["entries"]["wild"]["horizon"]
    assert wild["diverged"] == 3
    assert wild["mean_train_loss"] == {"mean": None, "std": None, "values": [None] * 3}
    assert wild["steps_to_baseline"] is None


def test_best_baseline_reaches_its_own_final_loss(results: dict[str, Any]) -> None:
    for horizon in ("horizon", "long_horizon"):
        found = results["entries"][results["best_baseline"]][horizon]
        assert 0 < found["steps_to_baseline"] <= found["steps"]


def test_is_json_with_provenance(results: dict[str, Any], tmp_path: Path) -> None:
    write_results(results, tmp_path / "deep" / "results.json")
    loaded = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert loaded == results
    assert loaded["seeds"] == SEEDS
    assert loaded["tuned"]["adam"]["budget"]["seeds"] == [1, 2]
    assert len(loaded["tuned"]["adam"]["trials"]) == 6
    assert {"command", "commit", "cpu", "cpus", "torch", "python"} <= set(loaded["provenance"])
    assert str(Path.cwd()) not in json.dumps(loaded["provenance"])


def test_table_shows_every_entry_at_both_horizons(results: dict[str, Any]) -> None:
    text = render_table(results)
    assert "two_moons, 40 steps" in text
    assert "two_moons, 120 steps" in text
    for name, entry in results["entries"].items():
        (line, long_line) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
        mean = entry["horizon"]["mean_train_loss"]["mean"]
        assert ("diverged" if mean is None else f"{mean:.4g} ±") in line
        assert "3 of 3" in long_line if name == "wild" else "0 of 3" in long_line
    tables = text.split("\n\n")[1::2]
    assert all(len({len(line) for line in table.splitlines()}) == 1 for table in tables)


def test_aligned() -> None:
    assert aligned(["name", "bb"], [["x", "10"]]) == "| name | bb |\n| :--- | -: |\n| x    | 10 |"


def test_plot(results: dict[str, Any], tmp_path: Path) -> None:
    plot_curves([results], tmp_path / "curves.png")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_smoothed() -> None:
    line = np.arange(10.0)[None]
    assert np.array_equal(smoothed(line, 1), line)
    assert np.allclose(smoothed(line, 3)[:, 1:-1], line[:, 1:-1])
    assert smoothed(line, 4).shape == (1, 10)
    assert smoothed(line, 3)[0, 0] == pytest.approx(1 / 3)


def test_steps_to() -> None:
    loss = torch.linspace(10, 1, 100).repeat(2, 1)
    mean_of_window = loss[0].unfold(0, 20, 1).mean(1)
    assert steps_to(loss, mean_of_window[30].item()) == 50
    assert steps_to(loss, 0.5) is None
    assert steps_to(loss, math.inf) is None, "a run that diverged has no loss to come down to"
    assert steps_to(loss, math.nan) is None
    assert steps_to(loss.index_fill(0, torch.tensor([1]), math.inf), 5.0) is None


def test_drawn_keeps_the_mean() -> None:
    loss = torch.rand(2, 500)
    curve = drawn(loss)
    assert len(curve["steps"]) == 200
    assert curve["steps"] == sorted(curve["steps"])
    short = drawn(loss[:, :7])
    assert short["steps"] == [0, 1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(torch.tensor(short["train_loss"]), loss[:, :7])


def test_statistic_of_one_value_has_no_deviation() -> None:
    assert statistic(torch.tensor([2.0])) == {"mean": 2.0, "std": None, "values": [2.0]}


def test_figures_without_accuracy() -> None:
    curves = Curves(torch.ones(2, 5), torch.tensor([False, False]), {}, torch.tensor([5]))
    assert "test_accuracy" not in figures(curves)


def test_evaluate_one_rule_without_accuracy() -> None:
    found = evaluate(SGD(0.5), Quadratic(), steps=20, seeds=[1, 2], progress=False)
    assert found["task"] == "quadratic"
    assert found["test_loss"]["mean"] < 0.2
    assert found["ms_per_step"] > 0


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        ({}, {}, "at least one rule"),
        ({"adam": SGD()}, {}, "both a rule and a baseline"),
        ({"x": SGD()}, {"seeds": [2, 3]}, r"tuning does not see, found \[2\]"),
        ({"x": SGD()}, {"baselines": ["nope"]}, "nope"),
    ],
)
def test_bad_input(rules: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(rules, Quadratic(), budget=BUDGET, steps=STEPS, **options)
