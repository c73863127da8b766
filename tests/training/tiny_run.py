"""A whole meta-training run in a second, and, as a program, runs that are killed at every kind of moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lopt.rules import LearnedRule, LearnedRuleConfig
from lopt.training import trainer
from lopt.training.config import MetaConfig
from lopt.training.trainer import CHECKPOINT, RULE, Trainer, Weighted, restore
from tests.helpers import TinyFamily, TinyTask, randomised

CONFIG = MetaConfig(
    steps=10, cohorts=3, networks=2, cohort_turns=2, truncation=2, shortest_horizon=2, longest_horizon=8,
    validate_every=4, validation_steps=3, validation_networks=2, checkpoint_every=3, warmup=2, learning_rate=1e-2,
)  # fmt: skip
FAMILIES = (Weighted(TinyFamily("narrow", (2, 3))), Weighted(TinyFamily("wide", (5, 6)), 2.0))
TIMING = ("inner_steps_per_second", "memory_mib", "seconds")
"""How keys of the log begin that no two runs have alike."""


def tiny_rule() -> LearnedRule:
    torch.manual_seed(0)
    options = {"width": 4, "neuron_width": 6, "layers": 1}
    return randomised(LearnedRule(LearnedRuleConfig(metanet_options=options, rate=0.02)), scale=0.05)


def tiny_trainer(out: Path, config: MetaConfig = CONFIG, families: Any = FAMILIES, **options: Any) -> Trainer:
    options.setdefault("validation", [TinyTask(4)])
    return Trainer(tiny_rule(), families, config=config, out=out, seed=3, **options)


def finish(out: Path, **options: Any) -> Trainer:
    """Run to the end, from the checkpoint if there is one."""
    run = tiny_trainer(out, **options)
    if (out / CHECKPOINT).exists():
        restore(run)
    run.run()
    return run


def metrics(out: Path) -> list[dict[str, float]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: v for key, v in json.loads(line).items() if not key.startswith(TIMING)} for line in lines]


def outcome(out: Path) -> tuple[bytes, bytes, str]:
    """All that a run leaves but its timing: every tensor and counter, the kept rule, the metrics."""
    return (out / CHECKPOINT).read_bytes(), (out / RULE).read_bytes(), json.dumps(metrics(out))


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, module: Any, name: str, before: bool = True) -> Callable[[], None]:
    """Be killed before or after the n-th call of a function."""

    def arrange() -> None:
        original, calls = getattr(module, name), [0]

        def counted(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if before and calls[0] == number:
                die()
            result = original(*args, **options)
            if calls[0] == number:
                die()
            return result

        setattr(module, name, counted)

    return arrange


MOMENTS = {
    **{f"file {n} written, not renamed": at_call(n, os, "replace") for n in (1, 2, 3, 5)},
    **{f"file {n} renamed": at_call(n, os, "replace", before=False) for n in (2, 3, 5)},
    "half-written file 3": at_call(3, os, "fsync"),
    "step 8": at_call(8, torch.optim.Adam, "step", before=False),
}
CLOCK = 3
"""How many further runs are killed at some time."""


def in_child(work: Callable[[], Any], delay: float | None = None) -> int:
    """The exit status of a forked process; SIGKILL after `delay` seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_random(folder: Path, count: int) -> dict[str, list[int]]:
    """`count` runs, each killed at a random time and resumed; the exit codes of both.

    What a run takes changes with what else the machine does: one that was over before its time measures it anew.
    """
    start = time.perf_counter()
    in_child(lambda: finish(folder / "timed"))
    seconds, draw, codes = time.perf_counter() - start, random.Random(0), {}
    while len(codes) < count:
        out, start = folder / f"clock {len(codes)}", time.perf_counter()
        work = lambda out=out: finish(out)  # noqa: E731
        first = in_child(work, draw.uniform(0, seconds))
        if first == 0:
            seconds = 0.9 * min(seconds, time.perf_counter() - start)
            shutil.rmtree(out)
            continue
        codes[out.name] = [first, in_child(work)]
    return codes


def main(folder: Path, random_kills: int) -> None:
    """For each moment a run that is killed at it, and resumed; prints the exit codes of both.

    With `random_kills` those moments are so many on the clock, and no others.
    """
    trainer.draw_training = lambda *_: None  # type: ignore[assignment]
    # Once here, so that the children need not warm up one by one.
    finish(folder / "undisturbed")
    if random_kills:
        print(json.dumps(kill_at_random(folder, random_kills)))
        return
    codes: dict[str, list[int]] = {}
    seconds = []
    for name, arrange in MOMENTS.items():
        out = folder / name

        def killed(out: Path = out, arrange: Callable[[], None] = arrange) -> None:
            arrange()
            finish(out)

        first = in_child(killed)
        start = time.perf_counter()
        codes[name] = [first, in_child(lambda out=out: finish(out))]
        seconds.append(time.perf_counter() - start)
    for number in range(1, CLOCK + 1):
        out = folder / f"clock {number}"
        work = lambda out=out: finish(out)  # noqa: E731
        codes[out.name] = [in_child(work, number / (CLOCK + 1) * max(seconds)), in_child(work)]
    print(json.dumps(codes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
