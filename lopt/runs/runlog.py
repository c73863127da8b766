"""The record of a run: metrics as JSON lines and in TensorBoard; resuming drops what came after the checkpoint."""

from __future__ import annotations

import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from lopt.files import write_atomically
from lopt.runs.board import Board
from lopt.runs.history import METRICS


class RunLog:
    """Writes the scalars of each outer step to RUN/metrics.jsonl and RUN/tensorboard.

    A record's step is the number of outer steps taken by then. Those above `last_step` are dropped; before the
    first step all are, as what there was to say will be said again.
    """

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        self._cut(last_step)
        self.board = Board(folder / "tensorboard", last_step + 1)

    def _cut(self, last_step: int) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if last_step and _step_of(line) <= last_step]
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Record named scalars of one outer step."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        self.board.write(step, scalars)

    def close(self) -> None:
        self.board.close()


def _step_of(line: str) -> float:
    """The step of a line; inf for one that a kill cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def environment() -> dict[str, Any]:
    """What a run ran on: versions, machine, threads."""
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
