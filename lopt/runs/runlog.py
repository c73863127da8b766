"""The record of a run: metrics as JSON lines and in TensorBoard; resuming drops what came after the checkpoint."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lopt.files import write_atomically
from lopt.runs.board import Board
from lopt.runs.history import METRICS, lines

CURVE_POINTS = 100


class RunLog:
    """Writes the scalars of each outer step to RUN/metrics.jsonl and RUN/tensorboard.

    A record's step is the number of outer steps taken by then. Those above `last_step` are dropped; before the
    first step all are, as what there was to say will be said again.
    """

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        kept = [line for line, record in lines(self.path) if last_step and record["step"] <= last_step]
        write_atomically(self.path, b"".join(line + b"\n" for line in kept))
        self.written = time.perf_counter()
        self.board = Board(folder / "tensorboard", last_step + 1)

    def write(
        self, step: int, scalars: Mapping[str, float], curves: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        """Record named scalars of one outer step, the seconds since the last record, and named curves.

        Curves, all as long, are for pictures alone: four digits of at most `CURVE_POINTS` values, from the first to
        the last, keep the file of a long run small.
        """
        now = time.perf_counter()
        record: dict[str, Any] = {"step": step, "seconds": round(now - self.written, 4), **scalars}
        self.written = now
        if curves:
            kept = spread(len(next(iter(curves.values()))), CURVE_POINTS)
            drawn = {name: [float(f"{curve[k]:.4g}") for k in kept] for name, curve in curves.items()}
            record["curves"] = {"steps": kept, "losses": drawn}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.board.write(step, scalars)

    def close(self) -> None:
        self.board.close()


def spread(length: int, count: int) -> list[int]:
    """At most `count` of the numbers below `length`, evenly spaced, the first and the last among them."""
    points = min(length, count)
    return [round(k * (length - 1) / max(points - 1, 1)) for k in range(points)]


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
