"""Each file of examples/ runs when it is copied alone into an empty folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {
    "accelerate_loop": "accelerate",
    "huggingface_trainer": "accelerate",
    "lightning_module": "lightning",
}
QUICK = "plain_pytorch"
ALONE = (
    "import runpy, sys; sys.modules['examples'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
)
"""The checkout may be importable, as it is after an editable installation: its other examples are not."""


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem != QUICK)) for p in EXAMPLES]
)
def test_runs_alone(path: Path, tmp_path: Path) -> None:
    needed = NEEDS.get(path.stem, "torch")
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    shutil.copy(path, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one_process = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = subprocess.run(
        [sys.executable, "-c", ALONE, path.name],
        cwd=tmp_path,
        env=os.environ | one_process | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < 2.3, "from log 10 = 2.30"
