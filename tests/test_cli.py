"""The command line in-process: exit codes, one line for each mistake, and a whole run from config to comparison."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lopt
from lopt.cli import compare, main, weights
from lopt.cli.compare import labels
from lopt.cli.train import parse_overrides
from lopt.comparison.figures import Statistic
from lopt.comparison.report import spread
from lopt.errors import ConfigError
from lopt.numerics.schedules import SCHEDULES
from lopt.training.checkpoint import load
from lopt.training.trainer import CHECKPOINT, Trainer
from lopt.weight_space.making import IMAGE_SETS
from lopt.weight_space.park import PARKS
from lopt.weight_space.sirens import RECIPES
from lopt.weight_space.tickets import TICKETS
from lopt.weight_space.zoo import ZOOS

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "tasks": [{"family": "quadratic", "options": {"dimension": [3, 4]}}],
    "validation": ["quadratic", {"family": "quadratic", "options": {"dimension": 5}}],
    "rule": {"options": {"width": 4, "neuron_width": 4, "layers": 1}},
    "meta": {
        "steps": 6, "networks": 2, "cohorts": 2, "truncation": 3, "longest_horizon": 20, "validate_every": 3,
        "validation_steps": 4, "validation_networks": 1, "checkpoint_every": 2,
    },
}  # fmt: skip

MODELS = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))

def build():
    return Net(), (torch.randn(2, 3, 8, 8),)

def one_tensor():
    return Net(), torch.randn(2, 3, 8, 8)

def keywords():
    return Net(), (), {"input": torch.randn(2, 3, 8, 8)}

model = Net()

def nothing():
    return 3

def fails():
    return undefined_name

def ends():
    raise SystemExit(0)

def needs(argument):
    return argument

def two_inputs():
    return Net(), torch.randn(2, 3, 8, 8), torch.randn(2)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config and a module of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "script.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe")
    (tmp_path / "text.safetensors").write_text("not a rule")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `lopt *argv`."""
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


MISTAKES = {
    "no command": ("", "required: COMMAND"),
    "unknown command": ("trian", "invalid choice"),
    "unknown option": ("data --nope", "unknown arguments for data: --nope"),
    "no config": ("train none.yaml", "none.yaml: expected a YAML config, found no such file"),
    "config is a folder": ("train .", "cannot be read"),
    "unknown key": (
        "train tiny.yaml --meta.stesp 3",
        "command line: meta.stesp: unknown key; did you mean 'steps'?",
    ),
    "override without value": ("train tiny.yaml --meta.steps", "expected a value after --meta.steps"),
    "override out of range": (
        "train tiny.yaml --meta.steps 0",
        "meta.steps: expected a number at least 1, found 0",
    ),
    "override before the config": (
        "train --meta.steps 3 tiny.yaml",
        "3: expected a YAML config, found no such file; CONFIG comes before --KEY VALUE",
    ),
    "kernels that may not fit": (
        "train tiny.yaml --tasks.0 {family:\\ cnn,options:\\ {kernel:\\ [3,7],size:\\ [6,8]}}",
        "tasks.0.options.kernel: expected at most the image size, 6, found 7",
    ),
    "stray word": ("train tiny.yaml word", "expected --KEY VALUE, found 'word'"),
    "unknown family": (
        "train tiny.yaml --tasks.0.family quardatic",
        "tasks.0.family: expected one of",
    ),
    "unknown task": (
        "train tiny.yaml --validation.0 nope",
        "tiny.yaml: validation.0: there is no task 'nope'",
    ),
    "unknown metanet": (
        "train tiny.yaml --rule.metanet nope",
        "rule.metanet.name: expected one of axisnet, mlp",
    ),
    "unknown option of the metanet": (
        "train tiny.yaml --rule.options.widht 8",
        "rule.metanet.widht: unknown key; did you mean 'width'?",
    ),
    "nothing to learn": (
        "train tiny.yaml --rule {metanet:\\ adam}",
        "rule.metanet: expected one of axisnet, mlp",
    ),
    "missing data": ("train tiny.yaml --tasks.0 {family:\\ mlp,options:\\ {dataset:\\ mnist}}", "--data DIR"),
    "no run": ("resume runs/none", "runs/none: expected a run folder with config.yaml"),
    "no rule": ("evaluate runs/none --tasks quadratic", "rule 'runs/none': expected a rule file"),
    "no rule file": (
        "evaluate text.safetensors --tasks quadratic",
        "text.safetensors: expected a lopt-rule file",
    ),
    "no steps": ("evaluate x --tasks quadratic --steps 0", "whole number from 1 to 1000000, found '0'"),
    "more networks than would ever be trained": (
        f"compare x --task quadratic --seeds {10**24}",
        f"--seeds: expected a whole number from 1 to 1000000, found '{10**24}'",
    ),
    "a file where results are to go": (
        "compare lopt-small --task quadratic --out models.py/a",
        "models.py: expected a folder, found a file",
    ),
    "a file where a run is to go": (
        "train tiny.yaml --out models.py",
        "models.py: expected a folder, found a",
    ),
    "unknown baseline": ("compare x --task quadratic --baselines admaw", "baseline: expected one of"),
    "more networks to tune on than there are seeds": (
        "compare x --task quadratic --tuning-seeds 200",
        "--tuning-seeds: expected at most 100",
    ),
    "a card that is no text": ("push x a/b --card binary.md", "expected a card as text in UTF-8"),
    "data folder": ("data --data none", "none: expected the data folder, found no such folder"),
    "data file": ("data --data models.py", "models.py: expected the data folder, found a file"),
    "no factory": ("graph models", "expected MODULE:FACTORY"),
    "no module": ("graph missing:f", "importing missing failed: ModuleNotFoundError"),
    "no file": ("graph missing.py:f", "no such file: missing.py"),
    "syntax error": ("graph broken.py:f", "SyntaxError"),
    "no such factory": ("graph models:nope", "expected a function or model named 'nope'"),
    "no model": ("graph models:nothing", "found int"),
    "two inputs that are no tuple": (
        "graph models:two_inputs",
        "models:two_inputs: expected (model, example_args, example_kwargs), found (Net, Tensor, Tensor)",
    ),
    "factory fails": (
        "graph models:fails",
        "NameError: name 'undefined_name' is not defined (models.py line 24)",
    ),
    "factory ends the program": ("graph models:ends", "calling ends() failed: SystemExit: 0 (models.py"),
    "code that ends the program": (
        "data --import script.py",
        "--import script.py: expected code that can be imported",
    ),
    "factory with arguments": ("graph models:needs", "calling needs() failed: TypeError"),
    "no inputs": ("graph models:Net", "found a model alone; give --input"),
    "inputs that are no shape": (
        "graph models:Net --input 3,a",
        "expected sizes such as 1,3,32,32, found '3,a'",
    ),
    "an input of more than anything holds": (
        f"graph models:Net --input {10**22},4",
        "expected sizes from 1 to 2147483647",
    ),
    "inputs that do not fit": ("graph models:Net --input 2,3", "Net"),
    "picture format": ("graph models:build --draw net.txt", ".png, .svg"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    mistake: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, message = MISTAKES[mistake]
    argv = line.replace("\\ ", "\0").split()
    code, _, err = run(capsys, *(word.replace("\0", " ") for word in argv))
    assert code == 2
    assert err.startswith("lopt: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (here / "runs").exists()


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"lopt {lopt.__version__}\n", "")
    for command in ("train", "resume", "evaluate", "compare", "graph", "data"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert f"lopt {command}" in out


@pytest.mark.parametrize("argv", ["--import CODE data", "data --import CODE", "data --import=CODE"])
def test_code_is_imported_before_a_command_or_behind_it(
    argv: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text("print('imported')\n")
    code, out, error = run(capsys, *argv.replace("CODE", "mine.py").split())
    assert (code, error) == (0, "")
    assert out.startswith("imported\ndata folder: ")


def test_a_subprocess_fails_without_a_traceback(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lopt", "graph", "models.py:Net", "--input", "2,3"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("lopt: error: ")
    assert done.stderr.count("\n") == 1


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def warn(_: Any) -> int:
        import warnings

        warnings.simplefilter("always")
        warnings.warn("two\nlines", stacklevel=1)
        return 0

    monkeypatch.setattr("lopt.cli.data.run", warn)
    assert run(capsys, "data") == (0, "", "lopt: warning: two lines\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "\nlopt: interrupted\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "lopt: error: out: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "lopt: error: [Errno 28] No space left on device\n"),
    ],
)
def test_interrupts_and_system_errors(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: Any) -> int:
        raise error

    monkeypatch.setattr("lopt.cli.data.run", fail)
    assert run(capsys, "data") == (code, "", message)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("lopt.cli.data.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["data"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "train", "tiny.yaml", "--device", "cuda")
    assert code == 2
    assert "tiny.yaml: device: expected one that is there, found 'cuda' and no GPU; take 'cpu'" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu_resumes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "train", "tiny.yaml", "--device", "cuda", "--meta.steps", "4")[0] == 0
    text = (here / "runs/tiny/config.yaml").read_text()
    (here / "runs/tiny/config.yaml").write_text(text.replace("steps: 4", "steps: 6", 1))
    code, out, _ = run(capsys, "resume", "runs/tiny")
    assert code == 0
    assert "outer steps: 6" in out


def test_overrides_are_yaml() -> None:
    words = ["--a.b", "3", "--c=1e-3", "--d", "[1, x]", "--e", "-1", "--f=", "--g=a=b"]
    expected = {"a.b": 3, "c": 1e-3, "d": [1, "x"], "e": -1, "f": None, "g": "a=b"}
    assert parse_overrides(words) == expected
    with pytest.raises(ConfigError, match="command line: a: line 1: expected valid YAML"):
        parse_overrides(["--a", "["])


def test_a_program_without_standard_output_works_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["data"]) == 0


def test_data_lists_what_is_there_and_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data")
    assert code == 0
    assert "data folder: none; give --data DIR or set LOPT_DATA=DIR" in out
    entries = {entry.split()[0]: entry for entry in out.split("\n\n")[1:]}
    assert entries["digits"].split()[1] == "present"
    assert entries["cifar10"].split()[1] == "MISSING"
    assert "cs.toronto.edu" in entries["cifar10"]
    (here / "store" / "tinyshakespeare").mkdir(parents=True)
    (here / "store" / "tinyshakespeare" / "input.txt").write_text("text")
    _, out, _ = run(capsys, "data", "--data", "store")
    assert "tinyshakespeare  present" in out


@pytest.mark.parametrize("factory", ["build", "one_tensor", "keywords", "Net", "model"])
@pytest.mark.parametrize("module", ["models", "models.py"])
def test_graph_prints_and_verifies(
    module: str, factory: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--input", "2,3,8,8"] if factory in ("Net", "model") else []
    code, out, err = run(capsys, "graph", f"{module}:{factory}", *shape)
    assert (code, err) == (0, "")
    assert "0.weight" in out
    assert "rung: traced" in out
    assert "ok: |f(P theta) - f(theta)|" in out


def test_graph_draws_and_can_skip_the_verification(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "graph", "models:build", "--draw", "new/net.png", "--no-verify")
    assert code == 0
    assert "f(P theta)" not in out
    assert (here / "new" / "net.png").read_bytes().startswith(b"\x89PNG")


def test_a_graph_that_does_not_hold_is_exit_code_1(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from lopt.graph import ParameterGraph
    from lopt.graph.verify import verify

    def refuted(*args: Any, **options: Any) -> Any:
        return dataclasses.replace(verify(*args, **options), ok=False)

    monkeypatch.setattr(ParameterGraph, "verify", refuted)
    code, out, _ = run(capsys, "graph", "models:build")
    assert code == 1
    assert "NOT ok" in out


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return lopt.load_rule(folder).state_dict()


def test_train_evaluate_and_compare(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "tiny.yaml", "--meta.steps", "4", "--out", "runs/a")
    assert code == 0
    assert "runs/a/rule.safetensors   outer steps: 4" in out
    names = {"config.yaml", "checkpoint.safetensors", "rule.safetensors", "metrics.jsonl", "tensorboard"}
    assert names <= {path.name for path in (here / "runs/a").iterdir()}
    assert yaml.safe_load((here / "runs/a/config.yaml").read_text())["meta"]["steps"] == 4

    code, _, err = run(capsys, "train", "tiny.yaml", "--out", "runs/a")
    assert code == 2
    assert "holds a run already; continue it with `lopt resume runs/a`" in err
    assert run(capsys, "resume", "runs/a")[0] == 0

    options = ["--steps", "5", "--seeds", "2"]
    code, out, _ = run(capsys, "evaluate", "runs/a", "--tasks", "quadratic", *options, "--json", "e.json")
    assert code == 0
    assert "| quadratic |" in out
    found = json.loads((here / "e.json").read_text())["tasks"]["quadratic"]
    assert len(found["mean_train_loss"]["values"]) == 2

    tuning = ["--rates", "1", "--tuning-seeds", "1", "--baselines", "adam", "--long", "2", "--out", "c"]
    code, out, _ = run(capsys, "compare", "runs/a", "--task", "quadratic", *options, *tuning)
    assert code == 0
    results = json.loads((here / "c/results.json").read_text())
    assert results["summary"]["learned"]["name"] == "a"
    assert results["summary"]["best_baseline"]["name"] == "adam"
    assert (here / "c/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| adam " in out


def test_a_run_names_no_place_on_the_machine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = here / "elsewhere"
    run(capsys, "train", "tiny.yaml", "--meta.steps", "1", "--out", str(out), "--data", str(here))
    assert str(here).encode() not in (out / "rule.safetensors").read_bytes()


def test_a_run_names_no_place_on_the_machine_after_an_equals_sign(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = here / "elsewhere"
    words = ["train", "tiny.yaml", "--meta.steps", "1", f"--out={out}", f"--data={here}"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lopt", *words])
    assert run(capsys, *words)[0] == 0
    assert str(here).encode() not in (out / "rule.safetensors").read_bytes()
    assert b"lopt train tiny.yaml --meta.steps 1 --out=elsewhere" in (out / "rule.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cohorts: {}", "cohorts: {more}", "expected a checkpoint of meta.cohorts = {more}"),
        ("networks: {}", "networks: {more}", "expected a checkpoint of meta.networks = {more}"),
        ("width: {}", "width: {more}", "expected the rule that the run's config describes, found another"),
    ],
)
def test_a_run_whose_config_was_changed_does_not_resume(
    here: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert run(capsys, "train", "tiny.yaml", "--meta.steps", "2", "--meta.checkpoint_every", "1")[0] == 0
    path = here / "runs/tiny/config.yaml"
    pattern = old.replace("{}", r"(\d+)")
    (found,) = {int(number) for number in re.findall(rf"\b{pattern}", path.read_text())}
    text = re.sub(rf"\b{pattern}", new.format(more=found + 1), path.read_text())
    path.write_text(text.replace("steps: 2", "steps: 3"))
    code, _, error = run(capsys, "resume", "runs/tiny")
    assert code == 2
    assert message.format(more=found + 1) in error
    assert len(error.strip().splitlines()) == 1


def test_horizons_longer_than_lives_are_told_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--meta.steps", "2", "--meta.truncation", "5", "--meta.longest_horizon", "1000"]
    code, _, error = run(capsys, "train", "tiny.yaml", *words, "--meta.cohorts", "1")
    assert code == 0
    assert "note: rules are told of horizons of up to 1000 steps, and networks live 10 at most" in error


def test_a_terminated_run_resumes_to_the_same_rule(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, "train", "tiny.yaml", "--out", "whole")[0] == 0
    step = Trainer._outer_step

    def stopped(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_outer_step", stopped)
        code, out, _ = run(capsys, "train", "tiny.yaml", "--out", "parts")
    assert code == 143
    assert "stopped at outer step 4; continue with: lopt resume parts" in out
    code, out, _ = run(capsys, "resume", "parts")
    assert code == 0
    assert "outer steps: 6" in out
    whole, parts = tensors_of(here / "whole"), tensors_of(here / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
os.open(os.ttyname(0), os.O_RDWR)  # the first that a new session opens is its terminal
from lopt.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how a terminal is taken differs")
def test_a_run_whose_terminal_is_closed_leaves_a_checkpoint_of_its_last_step(here: Path) -> None:
    mine, terminal = os.openpty()
    words = [
        "train",
        "tiny.yaml",
        "--out",
        "r",
        "--meta.steps",
        "1000000",
        "--meta.checkpoint_every",
        "1000000",
    ]
    run = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *words],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    metrics, ends = here / "r" / "metrics.jsonl", time.monotonic() + 60
    with run:
        while not (metrics.exists() and '"outer_loss"' in metrics.read_text()) and time.monotonic() < ends:
            time.sleep(0.05)
        os.close(mine)
        try:
            assert run.wait(60) == 129
        finally:
            run.kill()
    logged = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert load(here / "r" / CHECKPOINT)["step"] == max(logged) > 0


def test_the_command_line_is_there_before_torch() -> None:
    """Else Ctrl-C in its first second, while torch is imported, gives a traceback."""
    code = "import sys, lopt.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_and_mistakes_are_told_before_torch_and_its_seconds() -> None:
    code = "import sys; from lopt.cli.main import build_parser; build_parser(); "
    code += "sys.exit(bool({'torch', 'pydantic', 'yaml'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_command_line_knows_without_torch_is_what_there_is() -> None:
    assert list(SCHEDULES) == compare.SCHEDULES
    assert [*IMAGE_SETS, "sines", *TICKETS, *ZOOS, *PARKS] == weights.SETS
    assert list(RECIPES) == weights.RECIPES


def test_all_that_the_package_offers_is_there_when_it_is_asked_for() -> None:
    assert {*lopt.__all__} <= {*dir(lopt)}
    assert all(hasattr(lopt, name) for name in lopt.__all__)
    assert lopt.errors.ConfigError is ConfigError
    assert not hasattr(lopt, "optimizer")


def test_a_run_in_pieces_ends_as_the_whole(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every outer step takes an hour."""
    assert run(capsys, "train", "tiny.yaml", "--out", "whole")[0] == 0
    step, clock = Trainer._outer_step, [0.0]

    def slow(trainer: Trainer) -> dict[str, float]:
        clock[0] += 3600
        return step(trainer)

    monkeypatch.setattr(Trainer, "_outer_step", slow)
    monkeypatch.setattr("lopt.training.trainer.time.monotonic", lambda: clock[0])
    code, out, _ = run(capsys, "train", "tiny.yaml", "--out", "parts", "--hours", "2")
    assert code == 0
    assert "stopped at outer step 2; continue with: lopt resume parts" in out
    code, out, _ = run(capsys, "resume", "parts", "--hours", "100")
    assert code == 0
    assert "outer steps: 6" in out
    whole, parts = tensors_of(here / "whole"), tensors_of(here / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    for hours in ("0", "nan", "two"):
        code, _, error = run(capsys, "resume", "parts", "--hours", hours)
        assert code == 2
        assert "expected a number of hours above 0" in error


def test_an_interrupted_run_says_how_to_go_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Trainer) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_outer_step", interrupt)
        code, out, err = run(capsys, "train", "tiny.yaml", "--out", "r", "--meta.steps", "1")
    assert code == 130
    assert out == "stopped; continue with: lopt resume r\n"
    assert err.endswith("lopt: interrupted\n")
    assert run(capsys, "resume", "r")[0] == 0  # from the start: there was no checkpoint yet


def test_rules_in_tables_have_short_names_unless_two_agree(tmp_path: Path) -> None:
    assert labels(["runs/a", "runs/b/rule.safetensors", "c.safetensors", "lopt-base"]) == {
        "a": "runs/a",
        "b": "runs/b/rule.safetensors",
        "c": "c.safetensors",
        "lopt-base": "lopt-base",
    }
    assert labels(["x/a", "y/a"]) == {"x/a": "x/a", "y/a": "y/a"}


def test_a_diverged_figure_is_said_so() -> None:
    assert str(Statistic(None, None, (None,))) == "diverged"
    assert spread(None) == "-"
    assert str(Statistic(1.25, 0.5, (1.0, 1.5))) == "1.25 ± 0.5"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
def test_a_console_of_another_encoding_loses_no_figure(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(_: Any) -> int:
        print("1.25 ± 0.5 ▁█ ∇")
        return 0

    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with monkeypatch.context() as patch:
        patch.setattr("lopt.cli.data.run", say)
        patch.setattr(sys, "stdout", console)
        assert main(["data"]) == 0
    said = console.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert (
        said
        == {
            "ascii": "1.25 +- 0.5 _# \\u2207\n",
            "cp1252": "1.25 ± 0.5 _# \\u2207\n",
            "latin-1": "1.25 ± 0.5 _# \\u2207\n",
            "utf-16": "1.25 ± 0.5 ▁█ ∇\n",
        }[encoding]
    )


def test_what_does_not_fit_into_memory_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ((2**50,), (2**40, 2**30)):
        monkeypatch.setattr("lopt.cli.data.run", lambda _, size=size: torch.empty(size))
        assert main(["data"]) == 2
        assert "expected sizes and counts that fit into memory, found more" in capsys.readouterr().err
    monkeypatch.setattr("lopt.cli.data.run", lambda _: [0] * 2**60)
    assert main(["data"]) == 2
    monkeypatch.setattr("lopt.cli.data.run", lambda _: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):  # a mistake of ours keeps its traceback
        main(["data"])


def test_each_task_is_written_when_it_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lopt.comparison import protocol

    whole = protocol._on_task

    def second_fails(task: Any, *args: Any) -> Any:
        if (here / "c").exists() and list((here / "c").glob("*/results.json")):
            raise KeyboardInterrupt
        return whole(task, *args)

    monkeypatch.setattr(protocol, "_on_task", second_fails)
    least = [
        "--steps",
        "1",
        "--seeds",
        "1",
        "--rates",
        "1",
        "--tuning-seeds",
        "1",
        "--long",
        "1",
        "--baselines",
        "adam",
    ]
    tasks = ["quadratic", "rosenbrock"]
    assert main(["compare", "lopt-small", "--task", *tasks, *least, "--out", "c"]) == 130
    assert [path.parent.name for path in (here / "c").glob("*/results.json")] == ["quadratic"]


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lopt.comparison.evaluate", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("lopt.weight_space.sines.make_sines", lambda *_: pytest.fail("worked"))
    (here / "folder").mkdir()
    for words in (
        ["evaluate", "lopt-small", "--tasks", "quadratic", "--json"],
        ["weights", "make", "sines", "--out"],
    ):
        for place in ("folder", "tiny.yaml/x"):
            assert main([*words, place]) == 2
            assert place.split("/")[0] in capsys.readouterr().err
    monkeypatch.setattr("lopt.comparison.compare", lambda *_, **__: pytest.fail("worked"))
    (here / "c/rosenbrock/results.json").mkdir(parents=True)
    assert main(["compare", "lopt-small", "--task", "quadratic", "rosenbrock", "--out", "c"]) == 2
    assert "c/rosenbrock/results.json: expected a file to write" in capsys.readouterr().err
    assert not list(here.glob("**/*.partial"))


def test_a_disk_that_fills_up_costs_no_table(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lopt.comparison.report.write_atomically", full)
    quick = ["--steps", "2", "--seeds", "1"]
    tuning = ["--rates", "1", "--tuning-seeds", "1", "--baselines", "adam", "--out", "c"]
    for words in (
        ["evaluate", "lopt-small", "--tasks", "quadratic", *quick, "--json", "e.json"],
        ["compare", "lopt-small", "--task", "quadratic", *quick, *tuning],
    ):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "lopt-small" in told.out
        assert "json: No space left on device" in told.err


def test_figures_are_kept_before_they_are_printed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A console that fails in the end costs no results."""

    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Broken())
    quick = ["--steps", "2", "--seeds", "1"]
    assert main(["evaluate", "lopt-small", "--tasks", "quadratic", *quick, "--json", "e.json"]) == 2
    assert "quadratic" in json.loads((here / "e.json").read_text())["tasks"]
    tuning = ["--rates", "1", "--tuning-seeds", "1", "--baselines", "adam", "--out", "c"]
    assert main(["compare", "lopt-small", "--task", "quadratic", *quick, *tuning]) == 2
    assert json.loads((here / "c/results.json").read_text())["task"].startswith("quadratic")


def test_what_a_run_has_written_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny.yaml", "--meta.steps", "1", "--out", "mine"]) == 0
    before = {path: path.read_bytes() for path in (here / "mine").glob("*.*")}
    quick = ["--tasks", "quadratic", "--steps", "1", "--seeds", "1"]
    for name in ("config.yaml", "metrics.jsonl", "checkpoint.safetensors", "rule.safetensors"):
        for words in (["report", "mine", "--out"], ["evaluate", "mine", *quick, "--json"]):
            assert main([*words, f"mine/{name}"]) == 2
            assert "expected another file than what is read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (here / "mine").glob("*.*")} == before
    assert main(["report", "mine"]) == main(["report", "mine"]) == 0


def test_a_tilde_is_the_home_folder_wherever_a_file_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shell leaves that of --card=~/card.md as it is."""
    home = here / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "nets.py").write_text(MODELS)
    (home / "card.md").write_text("my card")
    (home / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["graph", "~/nets.py:build", "--no-verify"]) == 0
    assert main(["--import=~/nets.py", "push", "lopt-small", "a/b", "--dry-run", "--card=~/card.md"]) == 0
    assert "my card" in capsys.readouterr().out
    assert main(["train", "~/c.yaml", "--meta.steps", "0"]) == 2
    assert "meta.steps" in capsys.readouterr().err
