"""A stranger's files, each run alone and each given to the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lopt
from lopt.cli.extensions import load_extensions
from lopt.errors import ConfigError
from lopt.metanets import METANETS, Mlp
from lopt.rules import make_rule

EXTEND = Path(__file__).parents[2] / "examples" / "extend"
META = {"steps": 2, "cohorts": 1, "networks": 2, "truncation": 3, "validation_steps": 5, "validate_every": 2}
CONFIG = {"name": "mine", "tasks": [{"family": "quadratic"}], "validation": ["quadratic"], "meta": META}
USED = {
    "metanet": ("--rule.metanet", "{name: averages, width: 3}"),
    "direction": ("--rule.directions", "{sign: 1.0, adam: 0.5}"),
    "estimator": ("--meta.estimator", "{name: sign_es, size: 0.1}"),
    "task_family": ("--tasks.0", "{family: bowl, options: {power: {low: 2.0, high: 3.0}}}"),
}
"""What a config says to use each."""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", USED)
def test_an_example_runs_alone_and_is_short(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "my_own.py"
    copy.write_text((EXTEND / f"{name}.py").read_text())
    found = run(tmp_path, "my_own.py")
    assert found.returncode == 0, found.stderr
    assert "outer steps: 2" in found.stdout
    assert len(copy.read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", USED)
def test_the_command_line_trains_with_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    train = ("train", "c.yaml", *USED[name])
    without = run(tmp_path, "-m", "lopt", *train)
    assert (without.returncode, "Traceback" in without.stderr) == (2, False), "a config imports nothing"
    found = run(tmp_path, "-m", "lopt", "--import", str(EXTEND / f"{name}.py"), *train)
    assert found.returncode == 0, found.stderr
    assert "outer steps: 2" in found.stdout
    if name == "metanet":
        reread = "import sys, lopt; print(lopt.load_rule('runs/mine').config.metanet)"
        assert "expected one of axisnet" in run(tmp_path, "-c", reread).stderr
        (tmp_path / "metanet.py").write_text((EXTEND / "metanet.py").read_text())
        assert "width=3" in run(tmp_path, "-c", f"import metanet; {reread}").stdout


class NoAnnotation(Mlp):
    def __init__(self, features, context, outputs, width=3) -> None:  # type: ignore[no-untyped-def]
        super().__init__(features, context, outputs, width)


class NotGiven(Mlp):
    def __init__(self, features: int, width: int = 3) -> None:
        super().__init__(features, 1, 1, width)


@pytest.mark.parametrize(
    ("register", "name", "item", "message"),
    [
        (lopt.register_metanet, "mlp", Mlp, "metanet 'mlp': there is one already"),
        (lopt.register_metanet, "a b", Mlp, "expected a name of letters, digits and _"),
        (
            lopt.register_metanet,
            "mine",
            lambda x: x,
            "expected a class derived from Metanet, with all its methods",
        ),
        (lopt.register_metanet, "mine", lopt.metanets.Metanet, "with all its methods"),  # type: ignore[attr-defined]
        (lopt.register_metanet, "mine", NoAnnotation, "expected options with annotations"),
        (lopt.register_metanet, "mine", NotGiven, "expected a constructor with features, context, outputs"),
        (lopt.register_direction, "adam", lambda h: h, "direction 'adam': there is one already"),
        (lopt.register_direction, "mine", lambda: 1, "expected a function of one argument"),
        (lopt.register_estimator, "mine", Mlp, "expected a class derived from Estimator"),
        (lopt.register_family, "mlp", Mlp, "expected a spec_class derived from Spec, found None"),
    ],
)
def test_what_cannot_be_registered_is_one_error(register: Any, name: str, item: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register(name)(item)
    assert "mine" not in METANETS


@pytest.mark.parametrize(
    "register",
    [
        lopt.register_metanet,
        lopt.register_direction,
        lopt.register_estimator,
        lopt.register_family,
        lopt.register_op_rule,
    ],
)
def test_a_decorator_without_its_brackets_is_told(register: Any) -> None:
    """It made of the class a function, registered nothing, and said nothing."""
    with pytest.raises(ConfigError, match=r"expected .*name.*; write it in brackets, \(\"m.*\"\)"):

        @register
        class Mine(Mlp):
            pass


def test_what_is_registered_has_the_same_checks() -> None:
    @lopt.register_metanet("of_this_test")
    class Mine(Mlp):
        pass

    try:
        assert isinstance(make_rule("of_this_test", width=3).metanet, Mine)
        with pytest.raises(ConfigError, match=r"metanet\.widht: unknown key; did you mean 'width'\?"):
            make_rule("of_this_test", widht=3)
        with pytest.raises(ConfigError, match=r"metanet\.width: expected a number at most 4096"):
            make_rule("of_this_test", width=10**20)
    finally:
        METANETS._items.pop("of_this_test")


def test_code_that_cannot_be_imported_is_one_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import lopt\nlopt.register_metanet('mlp')(lopt.metanets.Mlp)\n")
    for name, message in (
        (str(broken), "there is one already"),
        ("no_such_module", "ModuleNotFoundError"),
        (str(tmp_path / "none.py"), "no such file"),
    ):
        with pytest.raises(
            ConfigError, match=f"^--import {name}: expected code that can be imported.*{message}"
        ):
            load_extensions([name])
