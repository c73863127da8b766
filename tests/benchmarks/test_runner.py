"""The benchmark runner: nothing is run twice, a search goes on where it stopped, the report is made of the log."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.runner.benchmark as runner
from benchmarks import graphs
from benchmarks.__main__ import others
from benchmarks.runner.benchmark import Benchmark, Case, Worker, fingerprint, score
from benchmarks.runner.command import NAMES, chosen, find_benchmark
from benchmarks.runner.command import report as make_report
from benchmarks.runner.log import Log, key_of
from benchmarks.runner.report import with_section
from benchmarks.runner.search import Search, neighbourhood, search_of
from benchmarks.runner.summary import failed, smooth, steps_to, summarise
from lopt import make_rule
from lopt.cli import main
from lopt.comparison.tuning import Trial, find_baseline, grid
from lopt.inner.evaluation import train_networks
from lopt.rules import LearnedRule
from meta_tasks import make_task

STEPS = 30
TINY = Benchmark(
    name="tiny",
    title="Tiny",
    protocol="A perceptron on digits.",
    cases={"a": Case(("mlp", {"widths": (4,), "batch_size": 8}), STEPS)},
    baselines=("adamw", "schedule_free_adamw"),
    rules=(),
    rates=3,
    test_seeds=(101, 102),
)


def rule() -> LearnedRule:
    made = make_rule("axisnet", width=4, neuron_width=4, layers=1)
    assert isinstance(made, LearnedRule)
    return made


RULE = rule()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A finished log."""
    log = Log(tmp_path_factory.mktemp("home") / "results" / "tiny")
    worker = Worker(TINY, log, label=False)
    worker.test("mine", RULE, "a")
    for name in TINY.baselines:
        worker.tune_and_test(name, "a")
    return log


# --- the search


def follow(search: Search, score_of: Any) -> list[Trial]:
    trials: list[Trial] = []
    while settings := search.next(trials):
        trials += [Trial(lr, schedule, score_of(lr, schedule)) for lr, schedule in settings]
    return trials


def distance(best: float) -> Any:
    return lambda lr, schedule: abs(math.log10(lr / best))


def test_a_search_is_nine_cosines_then_two_schedules_at_three_rates() -> None:
    trials = follow(search_of("adam"), distance(3e-3))
    assert [t.schedule for t in trials] == ["cosine"] * 9 + ["constant"] * 3 + ["one_cycle"] * 3
    assert trials[0].lr == pytest.approx(3e-5)
    assert trials[8].lr == pytest.approx(3e-1)
    assert {t.lr for t in trials[9:]} == {9.5e-4, 3e-3, 9.5e-3}


@pytest.mark.parametrize(("best", "added"), [(1e3, [0.95, 3.0]), (1e-9, [9.5e-6, 3e-6]), (0.3, [0.95])])
def test_a_search_goes_beyond_an_edge_twice_at_most(best: float, added: list[float]) -> None:
    trials = [t for t in follow(search_of("adam"), distance(best)) if t.schedule == "cosine"]
    assert [t.lr for t in trials[9:]] == pytest.approx(added[: len(trials) - 9])
    assert len(trials) == (10 if best == 0.3 else 11)


def test_schedule_free_has_no_schedule_to_search() -> None:
    trials = follow(search_of("schedule_free_adamw"), distance(1e-2))
    assert [t.schedule for t in trials] == ["constant"] * 9


def test_a_search_where_everything_diverges_ends() -> None:
    assert len(follow(search_of("sgd"), lambda lr, schedule: math.inf)) <= 11 + 6


def test_neighbourhood_at_an_end() -> None:
    trials = [Trial(lr, "cosine", s) for lr, s in ((1.0, 0.0), (2.0, 1.0), (3.0, 2.0))]
    assert neighbourhood(trials) == [1.0, 2.0]


# --- the log


def test_a_finished_benchmark_runs_nothing(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    before = log.records()
    monkeypatch.setattr(runner, "perform", lambda *_: pytest.fail("ran again"))
    worker = Worker(TINY, log, label=False)
    worker.test("mine", RULE, "a")
    for name in TINY.baselines:
        worker.tune_and_test(name, "a")
    assert log.records() == before


def _lines_of(log: Log, optimizer: str) -> list[str]:
    lines = log.path.read_text().splitlines(keepends=True)
    return [line for line in lines if json.loads(line)["optimizer"] == optimizer]


def test_a_stopped_search_goes_on_where_it_was(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _lines_of(log, "adamw")
    short = Log(tmp_path)
    # Four whole lines, and one that a kill cut short.
    short.path.write_text("".join(lines[:4]) + lines[4][:50])
    done = []
    perform = runner.perform
    monkeypatch.setattr(runner, "perform", lambda run, *rest: done.append(run.key) or perform(run, *rest))
    Worker(TINY, short, label=False).tune_and_test("adamw", "a")
    assert done == [key_of(json.loads(line)) for line in lines[4:]]
    figures = [[r["figures"] for r in found.records() if r["optimizer"] == "adamw"] for found in (short, log)]
    assert figures[0] == figures[1]


def test_a_damaged_line_is_no_run(log: Log, tmp_path: Path) -> None:
    damaged = Log(tmp_path)
    damaged.path.write_bytes(b'{"task": "a\xff\xfe\x00\x93\n' + log.path.read_bytes() + b"[1]\n{")
    assert damaged.records() == log.records()
    damaged.add(log.records()[0])
    assert len(damaged.records()) == len(log.records()) + 1


def test_graphs_keep_their_rows_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graphs, "RESULTS", tmp_path / "results/graphs.json")
    graphs._store({"rows": [1]})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        graphs._store({"rows": [1, 2]})
    assert graphs._stored() == {"rows": [1]}


def test_a_compiled_step_is_timed_where_the_benchmark_asks_for_it(log: Log, tmp_path: Path) -> None:
    """In a run of its own, which a log without it gets later; it is no test."""
    asked = replace(TINY, compiled=True)
    found = Log(tmp_path)
    found.path.write_text("".join(_lines_of(log, "adamw")))
    before = summarise(asked, found.records())["tasks"]["a"]["entries"]["adamw"]
    for _ in range(2):
        Worker(asked, found, label=False).tune_and_test("adamw", "a")
    (timing,) = (r for r in found.records() if r not in log.records())
    assert timing["purpose"] == "time"
    assert set(timing["step_time"]) == {"optimizer_ms", "gradient_ms", "compiled_ms"}
    after = summarise(asked, found.records())["tasks"]["a"]["entries"]["adamw"]
    assert before["compiled_ms_per_step"] is None
    assert after["compiled_ms_per_step"] == timing["step_time"]["compiled_ms"]
    assert after["test_accuracy"] == before["test_accuracy"]


def test_steps_are_timed_anew_and_side_by_side(log: Log, tmp_path: Path) -> None:
    found = Log(tmp_path)
    found.path.write_text(log.path.read_text())
    Worker(TINY, found, label=False).time_in_turns([*TINY.baselines, "sgd"], {}, "a")
    timings = [record for record in found.records() if record["purpose"] == "time"]
    assert sorted(record["optimizer"] for record in timings) == sorted(TINY.baselines)  # sgd was not tested
    assert len({record["step_time"]["gradient_ms"] for record in timings}) == 1
    entries = summarise(TINY, found.records())["tasks"]["a"]["entries"]
    for record in timings:
        assert entries[record["optimizer"]]["ms_per_step"] == record["step_time"]["optimizer_ms"]


def test_a_task_or_rule_that_changed_is_run_anew(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    known = log.by_key()
    worker = Worker(TINY, log, label=False)
    other = replace(TINY, cases={"a": Case(("mlp", {"widths": (5,), "batch_size": 8}), STEPS)})
    setting = next((r["lr"], r["schedule"]) for r in known.values() if r["optimizer"] == "adamw")
    assert worker.run("adamw", "a", "tune", setting, (1,)).key in known
    assert Worker(other, log).run("adamw", "a", "tune", setting, (1,)).key not in known
    first, second = rule(), rule()
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)


def test_records_hold_what_plain_training_gives(log: Log) -> None:
    record = next(r for r in log.records() if r["optimizer"] == "adamw" and r["purpose"] == "test")
    task = make_task(*TINY.cases["a"].spec)
    adamw = find_baseline("adamw").make(record["lr"]).on(task.graph)
    curves = train_networks(adamw, task, (101, 102), STEPS, schedule=record["schedule"], splits=("test",))
    found = record["figures"]
    assert found["test_accuracy"]["values"] == pytest.approx(
        curves.metrics["test"]["accuracy"].tolist(), rel=1e-5
    )
    assert found["mean_train_loss"]["values"] == pytest.approx(curves.mean_loss.tolist(), rel=1e-5)
    assert {"commit", "cpu", "threads", "torch", "time", "command"} <= set(record["provenance"])


def test_tuning_sees_no_test_example_and_no_test_seed(log: Log) -> None:
    for record in log.records():
        figures = set(record["figures"])
        if record["purpose"] == "tune":
            assert record["seeds"] in ([1], [2, 3])
            assert not any(name.startswith("test") for name in figures)
        else:
            assert record["seeds"] == [101, 102]


def test_the_test_run_has_the_finalist_with_the_best_mean(log: Log) -> None:
    for name in TINY.baselines:
        own = [r for r in log.records() if r["optimizer"] == name]
        first = {(r["lr"], r["schedule"]): score(r) for r in own if r["seeds"] == [1]}
        again = {(r["lr"], r["schedule"]): score(r) for r in own if r["seeds"] == [2, 3]}
        assert set(again) == set(sorted(first, key=lambda setting: first[setting])[:3])
        best = min(again, key=lambda setting: first[setting] + 2 * again[setting])
        (test,) = (r for r in own if r["purpose"] == "test")
        assert (test["lr"], test["schedule"]) == best


def test_a_setting_that_a_single_seed_likes_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def trial(self: Worker, name: str, case: str, setting: Any, seeds: tuple[int, ...]) -> Trial:
        lr, schedule = setting
        dead = lr > 0.05 and seeds != (1,)  # the highest rate is the best on seed 1, and dies on the others
        return Trial(lr, schedule, 0.0 if dead or schedule != "cosine" else -1 - lr)

    monkeypatch.setattr(Worker, "_trial", trial)
    assert Worker(TINY, Log(tmp_path), label=False).tune("adamw", "a").lr == 0.03


def test_a_case_near_another_is_tuned_around_its_best_setting(tmp_path: Path) -> None:
    spec = TINY.cases["a"].spec
    near = replace(
        TINY, cases={**TINY.cases, "b": Case((spec[0], {**spec[1], "widths": (6,)}), STEPS, near="a")}
    )
    found = Log(tmp_path)
    Worker(near, found, label=False).tune_and_test("adamw", "b")
    tried = {c: [r for r in found.records() if r["task"] == c and r["purpose"] == "tune"] for c in ("a", "b")}
    best = Worker(near, found, label=False).tune("adamw", "a")
    assert len(tried["a"]) >= 3 + 4 + 3
    assert {r["schedule"] for r in tried["b"]} == {best.schedule}
    assert [r["lr"] for r in tried["b"]][:3] == grid(best.lr, 3)
    assert len(tried["b"]) <= 3 + 2 + 3
    # Tuned there, tested here alone.
    assert [r["task"] for r in found.records() if r["purpose"] == "test"] == ["b"]


# --- summary and report


def test_the_summary_is_of_the_newest_test(log: Log) -> None:
    records = log.records()
    old = next(r for r in records if r["optimizer"] == "mine")
    new = {**old, "digest": "other", "provenance": {**old["provenance"], "time": "9999"}}
    entries = summarise(TINY, [*records, new])["tasks"]["a"]["entries"]
    assert entries["mine"]["digest"] == "other"
    assert set(entries) == {"mine", *TINY.baselines}


def test_the_summary_says_what_is_not_finished(log: Log) -> None:
    records = [r for r in log.records() if not (r["optimizer"] == "adamw" and r["purpose"] == "test")]
    found = summarise(TINY, records)["tasks"]["a"]
    assert found["unfinished"] == ["adamw"]
    assert "adamw" not in found["entries"]
    assert found["target"]["train_loss"] is None


def test_a_baseline_reaches_its_own_final_loss_at_the_end_or_before(log: Log) -> None:
    entry = summarise(TINY, log.records())["tasks"]["a"]["entries"]["adamw"]
    assert 0 < entry["steps_to_target"] <= STEPS


def test_steps_to() -> None:
    curve = {"train_loss": [[4.0, 2.0, 3.0, 1.0], [4.0, 4.0, 3.0, 1.0]]}
    # Means over the seeds 4, 3, 3, 1; over three points 10/3 after 300 steps and 7/3 after 400.
    assert smooth(curve) == pytest.approx([10 / 3, 7 / 3])
    assert [steps_to(curve, target, 400) for target in (4.0, 10 / 3, 2.5, 2.3)] == [300, 300, 400, None]


def test_what_most_seeds_do_counts() -> None:
    rows = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0], [4.0, 4.0, 4.0, 4.0]]
    assert smooth({"train_loss": rows}) == [3.0, 2.0]
    assert smooth({"train_loss": [*rows[:2], [4.0, 4.0, 4.0, None]]}) == [3.0, 2.0]
    curve = {"train_loss": [rows[0], [4.0, 4.0, 4.0, None], [4.0, 4.0, 4.0, None]]}
    assert smooth(curve) == [4.0, None]
    assert steps_to(curve, 2.0, 400) is None


def test_failed_counts_networks_that_diverged_or_learned_nothing() -> None:
    curves = [[2.3, 1.0], [2.3, 2.302], [2.3, None], [2.3, 7.0], [2.3, 2.1]]
    assert failed({"curve": {"train_loss": curves}, "diverged": 2}) == 3
    assert failed({"curve": {"train_loss": curves[:1]}, "diverged": 1}) == 1


def test_report_is_a_function_of_the_log(log: Log) -> None:
    home = log.folder.parents[1]
    make_report(TINY, log, home)
    first = {path: path.read_bytes() for path in (home / "REPORT.md", home / "results" / "tiny.json")}
    make_report(TINY, log, home)
    assert {path: path.read_bytes() for path in first} == first
    text = (home / "REPORT.md").read_text()
    for words in ("**mine**", "adamw", "schedule_free_adamw", "test accuracy, %", "images/tiny.png"):
        assert words in text
    assert (home / "images" / "tiny.png").stat().st_size > 10_000


def test_sections_are_replaced_and_added() -> None:
    text = with_section(with_section("# Head\n", "one", "first"), "two", "second")
    again = with_section(text, "one", "third")
    assert "first" not in again
    assert again.index("third") < again.index("second")
    assert with_section(again, "one", "third") == again


# --- the command


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_a_quick_version_of_its_own_name(name: str) -> None:
    full, quick = (find_benchmark(name, quick) for quick in (False, True))
    assert full.name == quick.name == name
    for benchmark in (full, quick):
        assert not set(benchmark.tuning_seeds) & set(benchmark.test_seeds)
        for baseline in benchmark.baselines:
            find_baseline(baseline)


def test_chosen_keeps_the_benchmarks_order() -> None:
    assert chosen(["c", "a"], ["a", "b", "c"], "task") == ["a", "c"]
    assert chosen(None, ["a", "b"], "task") == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "there is no benchmark 'nothing'; there are neural_graphs, families"),
        (
            ["neural_graphs", "--only", "adm"],
            "there is no optimizer 'adm' in this benchmark; there are lopt-base",
        ),
        (["neural_graphs", "--tasks", "fm"], "there is no task 'fm' in this benchmark; there are fm-16"),
        (["neural_graphs", "--report", "--out", "EMPTY"], "expected runs to report, found none"),
        (["neural_graphs", "--only", "adam"], "FashionMNIST is missing"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOPT_DATA", raising=False)
    assert main(["benchmark", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_graphs_without_their_libraries_are_refused_before_rows_are_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.graphs.run", lambda names: pytest.fail("worked"))
    monkeypatch.setattr("benchmarks.graphs.find_spec", lambda library: None if library == "timm" else library)
    for argv, message in (
        (["MLP"], "found no timm: benchmarks/graphs_env.sh makes an environment that has them"),
        (["--render"], "found no timm: benchmarks/graphs_env.sh"),
        (["bort"], "there is no architecture or library 'bort'"),
    ):
        assert main(["benchmark", "graphs", *argv]) == 2
        assert message in capsys.readouterr().err


def test_every_benchmark_is_told_of_and_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark"]) == 0
    listed = capsys.readouterr().out
    for name in (*NAMES, *others()):
        assert name in listed
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", name, "--help"])
        assert stop.value.code == 0
        assert f"benchmarks {name}" in capsys.readouterr().out or name in NAMES
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", name, "--nope"])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("lopt: error: ")
        assert error.count("\n") == 1


def test_the_report_s_place_is_tried_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.runner.command.work", lambda *_: pytest.fail("worked"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert main(["benchmark", "families", "--quick", "--out", "~/file"]) == 2
    assert f"{tmp_path}/file: expected a folder, found a file" in capsys.readouterr().err


def test_as_a_program_it_tells_mistakes_as_the_command_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "neural_graphs", "--data", str(tmp_path)]
    found = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert "FashionMNIST is missing" in found.stderr


def test_outside_a_checkout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lopt.cli.benchmark.CHECKOUT", tmp_path)
    assert main(["benchmark", "neural_graphs"]) == 2
    assert "needs a checkout" in capsys.readouterr().err
