"""The demo: meta-train a rule on digits, then hold it against tuned Adam and AdamW on fresh networks.

    python -m benchmarks demo        (or: make demo)

Writes runs/demo/: the run's own files, results.json and curves.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lopt
from lopt import config as configs
from lopt.cli import main as command_line
from lopt.comparison.compare import compare
from lopt.comparison.report import plot_curves, render_table, write_results
from lopt.comparison.tuning import Budget
from lopt.training.run_config import RunConfig
from meta_tasks import make_task

CONFIG = "configs/demo.yaml"
STEPS = 300
"""As long as the longest life of a network in meta-training; the comparison also runs three times as far."""

TASKS = (
    ("mlp", {"widths": [32, 32], "batch_size": 64}),
    ("cnn", {"widths": [8, 12], "strides": "alternate", "batch_size": 64}),
)
"""Networks to train in the comparison, on seeds that neither meta-training nor tuning has seen."""


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    start = time.perf_counter()
    config = configs.load(RunConfig, CONFIG)
    out = Path(config.out or f"runs/{config.name}")
    shutil.rmtree(out, ignore_errors=True)
    print(f"meta-training for {config.meta.steps} outer steps ({CONFIG})", flush=True)
    if code := command_line(["train", CONFIG]):
        sys.exit(code)
    trained = time.perf_counter()
    rule = lopt.load_rule(out)
    results = [
        compare({"learned": rule}, make_task(*task), steps=STEPS, budget=Budget(steps=STEPS))
        for task in TASKS
    ]
    for result in results:
        print(f"\n{render_table(result)}")
    total = {"summary": averaged([result["summary"] for result in results]), "tasks": results}
    write_results(total, out / "results.json")
    plot_curves(results, out / "curves.png")
    print(f"\n{verdict(total['summary'])}")
    print(
        f"meta-training {trained - start:.0f} s, comparison {time.perf_counter() - trained:.0f} s; see {out}/"
    )


def averaged(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary out of several of the same form: means of numbers, "or" of flags, other values joined."""
    return {key: _averaged([summary[key] for summary in summaries]) for key in summaries[0]}


def _averaged(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return averaged(values)
    if any(value is None for value in values):
        return None
    if isinstance(values[0], bool):
        return any(values)
    if isinstance(values[0], (int, float)):
        return sum(values) / len(values)
    return ", ".join(dict.fromkeys(values))


def verdict(summary: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    learned, baseline = summary["learned"], summary["best_baseline"]
    return (
        f"mean training loss over {STEPS} steps, mean of {len(TASKS)} tasks: learned {learned['mean_train_loss']:.4f},"
        f" best tuned baseline ({baseline['name']}) {baseline['mean_train_loss']:.4f}"
    )


if __name__ == "__main__":
    main()
