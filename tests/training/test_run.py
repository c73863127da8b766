"""Meta-training from Python: what a run gives, where its folder lies, and who may train into it."""

from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import lopt
from lopt import config as configs
from lopt.cli import main
from lopt.errors import ConfigError, RunFolderError
from lopt.runs.history import History
from lopt.runs.lock import held
from lopt.training import Run, train
from lopt.training.run_config import RunConfig

TINY: dict[str, Any] = {
    "name": "tiny",
    "tasks": [{"family": "quadratic", "options": {"dimension": [3, 4]}}],
    "validation": ["quadratic"],
    "rule": {"options": {"width": 4, "neuron_width": 4, "layers": 1}},
    "meta": {
        "steps": 4, "networks": 2, "cohorts": 2, "truncation": 3, "longest_horizon": 20, "validate_every": 2,
        "validation_steps": 4, "validation_networks": 1, "checkpoint_every": 2,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lopt.training.trainer.draw_training", lambda *_: None)


def bits(rule: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in rule.state_dict().items()}


def test_a_run_is_typed_printed_and_drawn() -> None:
    given = copy.deepcopy(TINY)
    run = train(TINY, {"out": "here"})
    assert given == TINY
    assert isinstance(run, Run)
    assert (run.folder, run.step, run.finished) == (Path("here"), 4, True)
    ((task, scores),) = run.validation.items()
    assert [step for step, _ in scores] == [0, 2, 4]
    assert run.best == min(score for _, score in scores)
    assert bits(run.best_rule) == bits(lopt.load_rule("here"))
    assert isinstance(run.rule, lopt.rules.LearnedRule)
    lines = str(run).splitlines()
    assert lines[0].startswith("| validation, mean log relative loss |")
    assert lines[2].startswith(f"| {task} ")
    assert f"best validation score: {run.best:.4f}" in lines[-1]
    figure = run.plot()
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO())
    assert [axes.has_data() for axes in figure.axes] == [True] * 3


def test_mapping_object_file_and_command_line_are_one_run() -> None:
    Path("tiny.yaml").write_text(configs.dump(TINY))
    whole = configs.from_mapping(RunConfig, TINY, "test")
    runs = [train(c, {"out": f"{k}"}) for k, c in enumerate((TINY, whole, "tiny.yaml", Path("tiny.yaml")))]
    assert main(["train", "tiny.yaml", "--out", "4"]) == 0
    rules = [bits(run.best_rule) for run in runs] + [bits(lopt.load_rule("4"))]
    assert all(rule == rules[0] for rule in rules)


def test_a_folder_with_a_run_is_kept_unless_it_is_to_go_on() -> None:
    first = train(TINY)
    with pytest.raises(ConfigError, match="runs/tiny: holds a run already"):
        train(TINY)
    assert bits(train(TINY, resume=True).best_rule) == bits(first.best_rule)
    with pytest.raises(ConfigError, match=r"holds a run of another config, which differs in meta\.networks"):
        train(TINY, {"meta.networks": 3}, resume=True)


def test_resume_begins_where_there_is_nothing() -> None:
    assert train(TINY, resume=True).finished


def test_a_restart_by_torchrun_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tiny.yaml").write_text(configs.dump(TINY))
    assert main(["train", "tiny.yaml"]) == 0
    assert main(["train", "tiny.yaml"]) == 2
    assert main(["train", "tiny.yaml", "--resume", "auto"]) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train", "tiny.yaml"]) == 0
    assert main(["train", "tiny.yaml", "--resume", "never"]) == 2


def test_home_and_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert train(TINY, {"out": "~/run"}).folder == tmp_path / "home" / "run"
    assert main(["resume", "~/run"]) == main(["watch", "~/run"]) == 0
    assert not Path("~").exists()
    for name in ("..", ".", "", "a/b", "a\\b", "a\0"):
        with pytest.raises(ConfigError, match="name: expected a name for the run's folder"):
            train(TINY | {"name": name})
    for out in ("~nobody-of-this-name/run", "a\0b"):
        with pytest.raises(ConfigError, match="expected a path"):
            train(TINY, {"out": out})
    assert not Path("runs").exists()


def test_one_process_trains_into_a_folder() -> None:
    with (
        held(Path("runs/tiny")),
        pytest.raises(RunFolderError, match=f"found process {os.getpid()} of .* at it; let it end"),
    ):
        train(TINY)
    assert train(TINY).finished  # what the lock's file says of an owner that has gone holds nobody up


def test_a_damaged_log_does_not_hold_up_a_run() -> None:
    whole = train(TINY, {"out": "whole"})
    train(TINY, {"out": "parts"})
    log = Path("parts/metrics.jsonl")
    damage = [b'{"step": 3, "outer_lo\xff\xfe\x00\x93', b"\x00" * 40, b"[" * 100_000, b'{"step": true}', b"7"]
    log.write_bytes(log.read_bytes() + b"\n".join(damage))
    assert main(["watch", "parts"]) == 0
    train(TINY, {"out": "parts"}, resume=True)
    assert History.read(Path("parts")).names("") == whole.history.names("")
    assert len(log.read_bytes().splitlines()) == len(whole.history.records)


@pytest.mark.parametrize("other", ["x", None, [1], True, 10**400, {"steps": [0], "losses": {"a": 1}}])
def test_a_log_that_was_edited_by_hand_is_read(other: object) -> None:
    whole = train(TINY, {"out": "edited"})
    log = Path("edited/metrics.jsonl")
    lines = log.read_text().splitlines()
    odd = [
        {key: value if key == "step" else other for key, value in json.loads(line).items()} for line in lines
    ]
    log.write_text("\n".join([*lines, *map(json.dumps, odd), '{"step": -5, "outer_loss": 1.0}']))
    figures = History.read(Path("edited"))
    assert {name: figures.values(name) for name in figures.names("outer") + ["curves"]} == {
        name: whole.history.values(name) for name in whole.history.names("outer") + ["curves"]
    }
    assert main(["watch", "edited"]) == 0
    assert main(["report", "edited"]) == 0
    Path("edited/rule.safetensors").unlink()
    assert "rule.safetensors is gone" in str(train(TINY, {"out": "edited"}, resume=True))


COUNTS = (
    "steps", "cohorts", "networks", "cohort_turns", "truncation", "validate_every", "validation_steps",
    "validation_networks", "checkpoint_every",
)  # fmt: skip


@pytest.mark.parametrize("estimator", ["backprop", "pes"])
@pytest.mark.parametrize("count", [*COUNTS, "all"])
def test_every_count_at_one(count: str, estimator: str) -> None:
    ones = {f"meta.{name}": 1 for name in (COUNTS if count == "all" else (count,))}
    horizons = {"meta.shortest_horizon": 1, "meta.longest_horizon": 1} if count == "all" else {}
    run = train(TINY, {"meta.estimator": estimator, **ones, **horizons})
    assert run.finished
    assert bits(
        train(TINY, {"meta.estimator": estimator, **ones, **horizons}, resume=True).best_rule
    ) == bits(run.best_rule)


def test_zero_where_it_is_allowed() -> None:
    zeros = {"meta.warmup": 0, "meta.ema": 0, "meta.known_horizon": 0, "seed": 0}
    assert train(TINY, zeros).finished


def test_a_run_begins_with_a_rule_and_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first validation is that of the given rule; once begun, its file may be gone."""
    first = train(TINY, {"out": "first", "meta.learning_rate": 0.1})
    lopt.save_rule(first.rule, "given.safetensors")
    config = {**TINY, "start": "given.safetensors"}
    whole = train(config, {"out": "whole"})
    ((_, fresh),) = first.validation.items()
    ((_, scores),) = whole.validation.items()
    assert scores[0][1] == pytest.approx(fresh[-1][1])
    assert scores[0][1] != pytest.approx(fresh[0][1], abs=1e-6)
    train(config, {"out": "parts"}, hours=0.0)
    Path("given.safetensors").unlink()
    parts = train(config, {"out": "parts"}, resume=True)
    assert (parts.finished, bits(parts.rule)) == (True, bits(whole.rule))


def test_a_rule_of_another_kind_is_no_start() -> None:
    lopt.save_rule(train(TINY, {"out": "first", "rule.rate": 0.02}).rule, "given.safetensors")
    with pytest.raises(
        ConfigError, match=r"start: expected a rule as the section `rule` .*rate: 0.005, found 0.02"
    ):
        train(TINY, {"out": "second", "start": "given.safetensors"})


def test_what_is_lowered_chooses() -> None:
    """A run that lowers final losses is validated by the last steps alone."""
    scores = {}
    for kind in ("mean", "final"):
        steps = {"meta.validation_steps": 30, "meta.steps": 1, "meta.outer_loss": kind}
        run = train(TINY, {"out": kind, **steps})
        scores[kind] = run.history.series("validation")[0][1]
    assert scores["final"] < scores["mean"]
