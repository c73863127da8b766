"""Comparisons: the figures are those of single runs, test seeds stay fresh, the report can be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lopt
from lopt.comparison import Comparison, TaskComparison, compare, evaluate
from lopt.comparison.figures import DrawnCurve, Figures, Statistic, steps_to
from lopt.comparison.protocol import FIXED
from lopt.comparison.report import curves_figure, smoothed
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
def comparison() -> Comparison:
    rules = {"first": Adam(0.03), "wild": SGD(1e30)}
    return compare(rules, [TwoMoons()], ("sgd", "adam"), steps=STEPS, seeds=SEEDS, budget=BUDGET)


@pytest.fixture(scope="module")
def results(comparison: Comparison) -> TaskComparison:
    (only,) = comparison.tasks
    return only


def mean(statistic: Statistic) -> float:
    assert statistic.mean is not None
    return statistic.mean


@pytest.mark.parametrize(("horizon", "steps"), [("horizon", STEPS), ("long_horizon", 3 * STEPS)])
def test_figures_are_those_of_single_runs_with_the_tuned_setting(
    results: TaskComparison, horizon: str, steps: int
) -> None:
    task = TwoMoons()
    tuned = results.tuned["adam"]
    for name, rule, schedule in (
        ("first", Adam(0.03), "constant"),
        ("adam", find_baseline("adam").make(tuned.lr), tuned.schedule),
    ):
        curves = train_networks(rule.on(task.graph), task, SEEDS, steps, schedule=schedule, splits=("test",))
        figures: Figures = getattr(results.entries[name], horizon)
        assert figures.steps == steps
        assert mean(figures.mean_train_loss) == pytest.approx(curves.train_loss.mean().item(), rel=1e-4)
        assert figures.final_train_loss.values == pytest.approx(curves.final_loss.tolist(), rel=1e-4)
        accuracy = curves.metrics["test"]["accuracy"]
        assert figures.metrics["test_accuracy"].std == pytest.approx(accuracy.std().item(), abs=1e-3)


def test_summary(results: TaskComparison) -> None:
    summary, entries = results.summary(), results.entries
    losses = {name: mean(entries[name].horizon.mean_train_loss) for name in ("sgd", "adam")}
    assert summary["best_baseline"]["name"] == results.best_baseline == min(losses, key=lambda n: losses[n])
    for key, name in (("learned", "first"), ("best_baseline", results.best_baseline)):
        assert name is not None
        found = summary[key]
        assert found["mean_train_loss"] == entries[name].horizon.mean_train_loss.mean
        assert found["final_train_loss"] == entries[name].horizon.final_train_loss.mean
        assert 0.5 < found["test_accuracy"] <= 1
        assert found["ms_per_step"] > 0
    long = summary["long_horizon"]
    assert long["learned_final_train_loss"] == entries["first"].long_horizon.final_train_loss.mean
    assert long["diverged"] is False


def test_divergence_is_a_figure(results: TaskComparison) -> None:
    wild = results.entries["wild"].horizon
    assert wild.diverged == 3
    assert wild.mean_train_loss == Statistic(None, None, (None,) * 3)
    assert wild.steps_to_baseline is None


def test_best_baseline_reaches_its_own_final_loss(results: TaskComparison) -> None:
    assert results.best_baseline is not None
    entry = results.entries[results.best_baseline]
    for figures in (entry.horizon, entry.long_horizon):
        assert figures.steps_to_baseline is not None
        assert 0 < figures.steps_to_baseline <= figures.steps


def test_json_round_trip_with_provenance(comparison: Comparison, tmp_path: Path) -> None:
    comparison.write(tmp_path / "deep" / "results.json")
    loaded = json.loads((tmp_path / "deep" / "results.json").read_text())
    again = Comparison.read(tmp_path / "deep" / "results.json")
    assert again.record() == loaded == comparison.record()
    assert str(again) == str(comparison)
    assert loaded["seeds"] == SEEDS
    assert loaded["tuned"]["adam"]["budget"]["seeds"] == [1, 2]
    assert len(loaded["tuned"]["adam"]["trials"]) == 6
    assert {"mean_train_loss", "test_loss", "test_accuracy", "curve"} <= set(
        loaded["entries"]["adam"]["horizon"]
    )
    assert {"command", "commit", "cpu", "cpus", "torch", "python"} <= set(loaded["provenance"])
    assert str(Path.cwd()) not in json.dumps(loaded["provenance"])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda text: text[:-100], "the JSON of a comparison, found a file that is damaged or another"),
        (lambda _: "[" * 5000, "the JSON of a comparison"),
        (lambda _: "3", "the record of a comparison"),
        (lambda _: '{"name": "another"}', "found nothing under 'task'"),
        (lambda text: text.replace('"entries": {', '"entries": {}, "more": {'), "the record of a comparison"),
        (
            lambda text: text.replace('"diverged": 0', '"diverged": "none"'),
            "diverged: expected a whole number",
        ),
        (lambda text: text.replace('"long_steps": 120', '"long_steps": "120"'), "a value of another type"),
        (lambda text: text.replace('"ms_per_step"', '"ms"'), "ms"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_error(
    comparison: Comparison, tmp_path: Path, damage: Callable[[str], str], found: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(damage(json.dumps(comparison.record())))
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: expected .*{re.escape(found)}"):
        Comparison.read(path)


def test_table_shows_every_entry_at_both_horizons(comparison: Comparison, results: TaskComparison) -> None:
    text = str(comparison)
    assert "two_moons, 40 steps" in text
    assert "two_moons, 120 steps" in text
    for name, entry in results.entries.items():
        (line, long_line) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
        loss = entry.horizon.mean_train_loss.mean
        assert ("diverged" if loss is None else f"{loss:.4g} ±") in line
        assert "3 of 3" in long_line if name == "wild" else "0 of 3" in long_line
    tables = text.split("\n\n")[1::2]
    assert all(len({len(line) for line in table.splitlines()}) == 1 for table in tables)


def test_several_tasks_have_baselines_at_one_setting_too(tmp_path: Path) -> None:
    tasks = [TwoMoons(), Quadratic()]
    found = compare({"x": SGD(0.1)}, tasks, ["sgd"], steps=20, seeds=[7], budget=BUDGET.but(steps=20))
    assert [task.task for task in found.tasks] == ["two_moons", "quadratic"]
    scores = [{(t.lr, t.schedule): t.score for t in task.tuned["sgd"].trials} for task in found.tasks]
    product = {s: scores[0][s] * scores[1][s] for s in scores[0]}
    for task in found.tasks:
        fixed = task.entries["sgd" + FIXED]
        assert product[fixed.lr, fixed.schedule] == min(product.values())  # type: ignore[index]
    found.write(tmp_path / "r.json")
    assert Comparison.read(tmp_path / "r.json").record() == found.record()
    assert found.record()["summary"]["learned"]["name"] == "x"
    assert len(found.plot().axes) == 4


def test_rules_and_tasks_by_name() -> None:
    found = compare(["lopt-small"], ["quadratic"], [], steps=2, seeds=[7], progress=False)
    assert list(found.tasks[0].entries) == ["lopt-small"]
    assert found.tasks[0].best_baseline is None


@pytest.mark.parametrize(
    "name",
    [
        "torch.optim.NAdam",
        "torch.optim.Muon",
        "tests.comparison.stranger.Counting",
        "tests.comparison.stranger.Flagged",
        "pytorch_optimizer.SOAP",
        "pytorch_optimizer.NorMuon",
        "pytorch_optimizer.ScheduleFreeAdamW",
    ],
)
def test_any_optimizer_by_its_dotted_name(name: str) -> None:
    """Also one that takes matrices alone, one that remembers more than tensors, and one that wants flags."""
    pytest.importorskip(name.partition(".")[0])
    found = compare({"x": SGD(0.1)}, [TwoMoons()], [name], steps=20, seeds=[7], budget=BUDGET.but(steps=20))
    entry = found.tasks[0].entries[name]
    assert entry.horizon.diverged == 0
    first, *_, last = entry.horizon.curve.train_loss[0]
    assert first is not None
    assert last is not None
    assert last < first


@pytest.mark.parametrize("name", ["torch.optim.Adamm", "no_such_package.SOAP", "os.path", "torch.optim."])
def test_an_optimizer_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=r"baseline: expected one of sgd.*found " + re.escape(repr(name))):
        find_baseline(name)


def test_aligned() -> None:
    assert aligned(["name", "bb"], [["x", "10"]]) == "| name | bb |\n| :--- | -: |\n| x    | 10 |"


def test_plot(comparison: Comparison, tmp_path: Path) -> None:
    comparison.plot().savefig(tmp_path / "curves.png")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


def test_no_two_of_many_lines_look_alike(results: TaskComparison) -> None:
    entry = next(iter(results.entries.values()))
    many = replace(results, entries={f"rule {number}": entry for number in range(31)})
    lines = curves_figure([many]).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 31


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
    curve = DrawnCurve.of(loss)
    assert len(curve.steps) == 200
    assert curve.steps == tuple(sorted(curve.steps))
    short = DrawnCurve.of(loss[:, :7])
    assert short.steps == (0, 1, 2, 3, 4, 5, 6)
    torch.testing.assert_close(torch.tensor(short.train_loss), loss[:, :7])


def test_statistic_of_one_value_has_no_deviation() -> None:
    assert Statistic.of(torch.tensor([2.0])) == Statistic(2.0, None, (2.0,))


def test_figures_without_accuracy() -> None:
    curves = Curves(torch.ones(2, 5), torch.tensor([False, False]), {})
    assert "test_accuracy" not in Figures.of(curves).metrics


def test_evaluate_one_rule_without_accuracy() -> None:
    found = evaluate(SGD(0.5), Quadratic(), steps=20, seeds=[1, 2], progress=False)
    assert found.task == "quadratic"
    assert mean(found.figures.metrics["test_loss"]) < 0.2
    assert found.record()["test_loss"]["mean"] == found.figures.metrics["test_loss"].mean
    assert found.ms_per_step > 0


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        ({}, {}, "at least one rule"),
        ({"adam": SGD()}, {}, "both a rule and a baseline"),
        ({"x": SGD()}, {"seeds": [2, 3]}, r"tuning does not see, found \[2\]"),
        ({"x": SGD()}, {"baselines": ["nope"]}, "nope"),
        ({"x": SGD()}, {"seeds": []}, "seeds: expected at least 1 of them"),
        ({"x": SGD()}, {"seeds": [101.5]}, "seeds.0: expected a whole number, found 101.5"),
        ({"x": SGD()}, {"seeds": [2**63]}, "seeds.0: expected a number below"),
        ({"x": SGD()}, {"long_factor": 0}, "long_factor: expected a number at least 1, found 0"),
        ({"x": SGD()}, {"long_factor": 1.5}, "long_factor: expected a whole number, found 1.5"),
        ([SGD()], {}, 'rules: expected names or paths, found SGD; write {"NAME": rule}'),
        ({"x": 3}, {}, "rules: expected names or paths, found int"),
    ],
)
def test_bad_input(rules: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(rules, [Quadratic()], budget=BUDGET, steps=STEPS, **options)


@pytest.mark.parametrize("steps", [0, -1, 5.0, "5"])
def test_steps_are_whole_numbers(steps: Any) -> None:
    with pytest.raises(ConfigError, match="steps: expected a"):
        compare({"x": SGD()}, [Quadratic()], [], steps=steps)
    with pytest.raises(ConfigError, match="steps: expected a"):
        evaluate(SGD(), Quadratic(), steps=steps)


def test_seeds_of_numpy_and_rules_by_path(tmp_path: Path) -> None:
    lopt.save_rule(lopt.load_rule("lopt-small"), tmp_path / "mine.safetensors")
    for seeds in (np.arange(7, 9), list(np.arange(7, 9)), range(7, 9)):
        found = compare(
            [tmp_path / "mine.safetensors"], ["quadratic"], [], steps=2, seeds=seeds, progress=False
        )
        assert found.tasks[0].seeds == (7, 8)
        json.dumps(found.record())


@pytest.mark.parametrize(
    ("rules", "tasks", "options", "message"),
    [
        (
            "lopt-small",
            ["quadratic"],
            {},
            r"rules: expected several, found 'lopt-small'; write \['lopt-small'\]",
        ),
        (["lopt-small"], "quadratic", {}, "tasks: expected several, found 'quadratic'"),
        (["lopt-small"], TwoMoons(), {}, "tasks: expected several"),
        (["lopt-small"], [3], {}, "tasks: expected tasks or their names, found 3"),
        (["lopt-small"], ["quadratic"], {"baselines": "adam"}, "baselines: expected several, found 'adam'"),
        (
            ["lopt-small"],
            ["quadratic"],
            {"baselines": [torch.optim.Adam]},
            "baseline: expected a name, found <class",
        ),
        (["lopt-small"], ["quadratic"], {"seeds": 3}, "seeds: expected a list, found 3"),
    ],
)
def test_one_in_place_of_several_is_told(rules: Any, tasks: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(rules, tasks, **options)


@pytest.mark.parametrize(
    ("rule", "task", "options", "message"),
    [
        ("lopt-small", TwoMoons(), {}, "expected a rule, found 'lopt-small'"),
        (Adam(0.03), "quadratic", {}, "expected a task, found 'quadratic'"),
        (Adam(0.03), TwoMoons(), {"steps": 0}, "steps: expected a number at least 1, found 0"),
        (Adam(0.03), TwoMoons(), {"seeds": []}, "seeds: expected at least 1 of them"),
        (Adam(0.03), TwoMoons(), {"seeds": 3}, "seeds: expected a list, found 3"),
    ],
)
def test_what_cannot_be_evaluated_is_told(rule: Any, task: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(rule, task, **options)
