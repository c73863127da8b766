"""The wheel holds all that a stranger's first lines need: they run from it, outside the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import lopt

ROOT = Path(__file__).parent.parent
TELL = "\nprint(lopt.__file__, lopt.__version__, lopt.rules.pretrained_names())\n"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by hatchling itself: without a network, and without an environment to build in."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture
def first_lines(tmp_path: Path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "first.py"
    path.write_text(code + TELL)
    return path


def test_first_lines_run_from_the_wheel(wheel: Path, first_lines: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    told = run(sys.executable, first_lines, cwd=tmp_path, PYTHONPATH=str(unpacked))
    assert told.startswith(str(unpacked / "lopt"))
    assert lopt.__version__ in told
    assert "lopt-base" in told


def test_holds_code_rules_and_licence_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "lopt",
        "meta_tasks",
        f"lopt-{lopt.__version__}.dist-info",
    }
    assert {"lopt/py.typed", "meta_tasks/py.typed", "lopt/pretrained/lopt-small.safetensors"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 4e6


@pytest.mark.slow
def test_installs_in_an_empty_environment(wheel: Path, first_lines: Path, tmp_path: Path) -> None:
    """Its dependencies are those of the environment that runs the tests: nothing is downloaded."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (theirs,) = home.glob("lib/python*/site-packages")
    (ours,) = {path for path in map(Path, sys.path) if (path / "torch" / "__init__.py").is_file()}
    # A path as PYTHONPATH would come first; as a .pth file it comes after the wheel.
    (theirs / "dependencies.pth").write_text(f"{ours}\n")
    told = run(python, first_lines, cwd=tmp_path)
    assert told.startswith(str(theirs / "lopt"))
    assert run(home / "bin" / "lopt", "--version", cwd=tmp_path).strip() == f"lopt {lopt.__version__}"
