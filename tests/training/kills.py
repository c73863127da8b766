"""As a program: `lopt train` ended in the middle again and again, by all that ends programs, and started again.

    python -m tests.training.kills FOLDER COUNT      prints what came of each, as a line of JSON

The processes are forked from one that has everything loaded, so that a run takes a second. No pictures are drawn.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lopt.cli import main as lopt
from lopt.training import ranks as processes
from lopt.training import trainer
from lopt.training.trainer import CHECKPOINT, RULE

TIMED = {"inner_steps_per_second", "memory_mib"}
CONFIG = """name: killed
tasks: [{family: quadratic, options: {dimension: [3, 4]}}]
validation: [{family: quadratic, options: {dimension: 5}}]
rule: {options: {width: 4, neuron_width: 4, layers: 1}}
meta: {steps: 24, networks: 2, cohorts: 4, cohorts_per_step: 2, truncation: 4, longest_horizon: 20,
  validate_every: 4, validation_steps: 4, validation_networks: 1, checkpoint_every: 2}
"""


class Kill(NamedTuple):
    """A run that was ended once."""

    kind: str
    ended: list[int]
    """Exit codes of its processes: that of the signal, 2 for an error of one line, 0 where it was over before."""
    finished: list[int]
    """Those of the same command, given again."""
    same: bool
    """Whether checkpoint, rule and log are those of the run that nothing disturbed."""
    traceback: bool
    """Whether any process left one."""


def start(folder: Path, prepare: Callable[[], Any] = lambda: None, **environment: str) -> int:
    """The process id of a forked `lopt train`; what it says goes to FOLDER.log."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ.update(environment)
            prepare()
            code = lopt(["train", str(folder.parent / "c.yaml"), "--out", str(folder), "--resume", "auto"])
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ranks(folder: Path) -> list[int]:
    """Two processes that share a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(folder, RANK=str(rank), **shared) for rank in range(2)]


def fill(limit: int) -> None:
    """No file gets longer than that, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def process_killed(folder: Path, draw: random.Random, seconds: float) -> tuple[list[int], list[int]]:
    child = start(folder)
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    return [ended(child)], [ended(start(folder))]


def rank_killed(folder: Path, draw: random.Random, seconds: float) -> tuple[list[int], list[int]]:
    children = ranks(folder)
    time.sleep(draw.uniform(0, 2 * seconds))
    os.kill(children[draw.randrange(2)], signal.SIGKILL)
    return [ended(child) for child in children], [ended(child) for child in ranks(folder)]


def disk_full(folder: Path, draw: random.Random, seconds: float) -> tuple[list[int], list[int]]:
    largest = max(path.stat().st_size for path in (folder.parent / "whole").glob("*.*"))
    limit = int(draw.uniform(0, largest))
    return [ended(start(folder, lambda: fill(limit)))], [ended(start(folder))]


KINDS = {"process killed": process_killed, "one of two processes killed": rank_killed, "disk full": disk_full}


def outcome(folder: Path) -> tuple[bytes, dict[str, bytes], list[str]]:
    """Every tensor and counter, the kept rule (its file tells the time), and the log without timings."""
    from safetensors.torch import load_file

    rule = {name: value.numpy().tobytes() for name, value in load_file(folder / RULE).items()}
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    log = [
        json.dumps({k: v for k, v in line.items() if k not in TIMED and "seconds" not in k}) for line in lines
    ]
    return (folder / CHECKPOINT).read_bytes(), rule, log


def main(folder: Path, count: int) -> None:
    torch.set_num_threads(1)
    trainer.draw_training = lambda *_: None
    processes.MEETING = timedelta(seconds=20)
    (folder / "c.yaml").write_text(CONFIG)
    begin = time.perf_counter()
    assert ended(start(folder / "whole")) == 0, (folder / "whole.log").read_text()
    seconds, expected = time.perf_counter() - begin, outcome(folder / "whole")
    draw = random.Random(0)
    for number, (kind, kill) in zip(range(count), itertools.cycle(KINDS.items()), strict=False):
        run = folder / str(number)
        first, second = kill(run, draw, seconds)
        while not any(first):  # over before its moment came: what a run takes changes with what else goes on
            shutil.rmtree(run)
            seconds *= 0.7
            first, second = kill(run, draw, seconds)
        said = Path(f"{run}.log").read_text()
        same = second == [0] * len(second) and outcome(run) == expected
        print(json.dumps(Kill(kind, first, second, same, "Traceback" in said)._asdict()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
