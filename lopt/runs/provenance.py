"""Where a figure comes from: command, commit, machine and versions."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from lopt.runs.runlog import environment


def provenance() -> dict[str, Any]:
    """JSON-able account of the running process; absolute paths of the command are cut to their last part."""
    return {
        # The first word as it stands: that of a benchmark is a whole "python -m benchmarks NAME".
        "command": " ".join([_portable(sys.argv[0]), *(shlex.quote(_portable(w)) for w in sys.argv[1:])]),
        "commit": commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        **environment(),
    }


def _portable(word: str) -> str:
    """An absolute path, also in --key=path, cut to its last part."""
    key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return key + equals + (Path(value).name if Path(value).is_absolute() else value)


@cache
def commit() -> str | None:
    """The git commit of the package's own checkout, with "+" if there are changes to it; None outside of one.

    Asked for once: what a long process runs is the code of its beginning.
    """
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git("rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    # What benchmarks write as they run is no change to what runs.
    written = [f":(top,exclude)benchmarks/{name}" for name in ("results", "images", "REPORT.md")]
    return commit + (
        "+" if _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *written) else ""
    )


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
