"""How far a rule carries: widths, depths, batch sizes and a horizon away from those of meta-training.

    lopt benchmark transfer --data DIR [--only lopt-base adamw] [--tasks width-128 steps-10000]

Baselines are tuned with the whole search on the base network, and again near that setting at every other point; the
rule runs as it is everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.runner.benchmark import Benchmark, Case
from lopt.files import write_picture

BASE = "base"
WIDTH, DEPTH, BATCH, STEPS = 32, 3, 128, 1000


def case(
    width: int = WIDTH, depth: int = DEPTH, batch: int = BATCH, steps: int = STEPS, near: str | None = BASE
) -> Case:
    """A plain convolutional network on CIFAR-10 at 16 x 16."""
    spec = {
        "dataset": "cifar10",
        "size": 16,
        "widths": [width] * depth,
        "batch_size": batch,
        "evaluation_examples": 10_000,
    }
    return Case(("cnn", spec), steps, near)


AXES: dict[str, dict[int, str]] = {
    "width": {w: BASE if w == WIDTH else f"width-{w}" for w in (8, 16, 32, 64, 128)},
    "depth": {d: BASE if d == DEPTH else f"depth-{d}" for d in (1, 2, 3, 4, 5)},
    "batch": {b: BASE if b == BATCH else f"batch-{b}" for b in (32, 128, 512, 1024)},
    "steps": {s: BASE if s == STEPS else f"steps-{s}" for s in (1000, 10_000)},
}
"""What is varied, and the case of each value; all else is the base's."""


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """Test accuracy and final training loss along each axis, mean and standard deviation over the seeds."""
    tasks = summary["tasks"]
    names = sorted({name for task in tasks.values() for name in task["entries"]})
    rows = {"test_accuracy": "test accuracy", "final_train_loss": "final training loss"}
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    for line, (key, label) in zip(figure.subplots(2, len(AXES)), rows.items(), strict=True):
        for axes, (axis, values) in zip(line, AXES.items(), strict=True):
            for number, name in enumerate(names):
                points = [
                    (value, tasks[where]["entries"][name][key])
                    for value, where in values.items()
                    if where in tasks and name in tasks[where]["entries"]
                ]
                shown = np.array([(x, f["mean"], f["std"] or 0) for x, f in points if f["mean"] is not None])
                if len(shown):
                    axes.errorbar(
                        *shown.T, color=f"C{number}", marker="o", markersize=4, capsize=3, label=name
                    )
            axes.set_xscale("log" if axis != "depth" else "linear")
            axes.set_xticks(list(values), [f"{value:,}" for value in values], minor=False)
            axes.minorticks_off()
            axes.set(xlabel=axis, ylabel=label)
            axes.grid(alpha=0.3, linewidth=0.5)
    figure.get_axes()[0].legend(frameon=False, fontsize="small")
    write_picture(path, figure, dpi=110)


FULL = Benchmark(
    name="transfer",
    title="Transfer over width, depth, batch size and horizon",
    protocol=f"""
        Plain convolutional networks on CIFAR-10 at 16 x 16 pixels, around a base of width {WIDTH}, depth {DEPTH},
        batch {BATCH} and {STEPS:,} steps: widths 8 to 128, depths 1 to 5, batches of 32 to 1,024, and 10,000 steps.
        lopt-base and lopt-small saw convolutional networks of widths 8 to 24, batches of 32 and 64, and the first 160
        steps of horizons of up to 800, never CIFAR-10; they run as they are (lr 1) and are told the horizon. Their
        weight decay was sought, on other tasks, after an earlier lopt-base without one had learned the data by heart
        here (LOG.md). Baselines have the whole search on the base, and at every other point one of their own near its
        outcome: three learning rates with the schedule found there, and up to two beyond.
    """,
    cases={
        BASE: case(near=None),
        **{name: case(width=w) for w, name in AXES["width"].items() if name != BASE},
        **{name: case(depth=d) for d, name in AXES["depth"].items() if name != BASE},
        **{name: case(batch=b) for b, name in AXES["batch"].items() if name != BASE},
        **{name: case(steps=s) for s, name in AXES["steps"].items() if name != BASE},
    },
    baselines=("adamw", "muon"),
    picture=plot,
)


def quick(**changes: Any) -> Case:
    """A point of the quick version: the same on digits."""
    base = case(**{"steps": 60, **changes})
    return replace(base, spec=("cnn", {**base.spec[1], "dataset": "digits", "size": 8}))


QUICK = replace(
    FULL,
    protocol="A few points on digits, for 60 steps and, in place of 10,000, 200: a check that it runs, no result.",
    cases={
        BASE: quick(near=None),
        "width-8": quick(width=8),
        "depth-1": quick(depth=1),
        "batch-32": quick(batch=32),
        "steps-10000": quick(steps=200),
    },
    baselines=("adamw",),
    rates=3,
    test_seeds=(101, 102),
)
