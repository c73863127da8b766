"""`lopt train` comes to the uninterrupted run's rule, bit for bit, whatever ended it on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(count: int, tmp_path: Path) -> None:
    """A third each: the process killed, one of two processes killed, a disk that is full."""
    program = [sys.executable, "-m", "tests.training.kills", str(tmp_path), str(count)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == count
    failures = [kill for kill in kills if not kill["same"] or kill["traceback"]]
    assert not failures, failures
    assert all(any(kill["ended"]) for kill in kills)
