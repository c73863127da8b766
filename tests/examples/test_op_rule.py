"""A stranger's own operation with a rule of his own, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lopt import register_op_rule
from lopt.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "op_rule.py"


def test_the_example_runs_alone_and_is_short(tmp_path: Path) -> None:
    copy = tmp_path / EXAMPLE.name
    copy.write_text(EXAMPLE.read_text())
    result = subprocess.run(
        [sys.executable, str(copy)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "rung: traced" in result.stdout
    assert "first.weight" in result.stdout
    scale = next(line for line in result.stdout.splitlines() if line.startswith("scale"))
    first = next(line for line in result.stdout.splitlines() if line.startswith("first.bias"))
    assert scale.split("[")[1].split("]")[0] == first.split("[")[1].split("]")[0]
    assert len(EXAMPLE.read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    ("names", "function", "message"),
    [
        (("mm",), lambda s: None, "'mm' has one already"),
        ((), lambda s: None, "expected the name of at least one operation"),
        (("",), lambda s: None, "expected the name of an operation, found ''"),
        (("mine::other",), "no function", "expected a function, found 'no function'"),
    ],
)
def test_mistakes_are_told(names: tuple[str, ...], function: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_op_rule(*names)(function)  # type: ignore[type-var]
