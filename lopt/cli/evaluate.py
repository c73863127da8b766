"""`lopt evaluate`: what a rule reaches on tasks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopt.cli.arguments import positive
from lopt.cli.tasks import HELP, find_tasks, fresh_seeds

if TYPE_CHECKING:
    from torch import Tensor

    from lopt.meta.evaluation import Curves
    from lopt.meta.task import Task
    from lopt.rules import LearnedRule

DESCRIPTION = """Train fresh networks with a rule on each task, and print mean and standard deviation over
the seeds of: the training loss over the run and at its end, and loss and accuracy on the split.

examples:
  lopt evaluate runs/demo --tasks digits/test
  lopt evaluate rule.safetensors --tasks fm-16 c10-32 --steps 1000 --data ~/data --json results.json"""

COLUMNS = ("mean_train_loss", "final_train_loss", "loss", "accuracy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rule", metavar="RULE", help="a run folder, a rule file or a rule that ships with lopt"
    )
    parser.add_argument("--tasks", metavar="TASK", nargs="+", required=True, help=HELP)
    parser.add_argument(
        "--steps", type=positive, default=300, help="length of each run (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=positive, default=5, help="networks for each task (default: %(default)s)"
    )
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="of the data (default: %(default)s)"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets (default: $LOPT_DATA)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")


def run(args: argparse.Namespace) -> int:
    import lopt
    from lopt.meta.runtime import prepare_cpu

    prepare_cpu()
    rule = lopt.load_rule(args.rule)
    tasks = find_tasks(args.tasks, args.data)
    width = max(map(len, tasks))
    print(" ".join([f"{'task':{width}s}", *(f"{name:>17s}" for name in COLUMNS), " diverged"]))
    results = {}
    for name, task in tasks.items():
        results[name] = evaluate(rule, task, args.steps, fresh_seeds(args.seeds), args.split)
        print(" ".join([f"{name:{width}s}", *_cells(results[name])]), flush=True)
    if args.json:
        record = {"rule": args.rule, "steps": args.steps, "split": args.split, "tasks": results}
        Path(args.json).write_text(json.dumps(record, indent=2) + "\n")
    return 0


def evaluate(rule: LearnedRule, task: Task, steps: int, seeds: range, split: str) -> dict[str, Any]:
    """[mean, standard deviation] over the seeds of each figure, and how many networks diverged."""
    from lopt.meta.evaluation import train_networks

    curves = train_networks(
        rule.on(task.graph), task, seeds, steps, total_steps=steps, splits=(split,), label=task.name
    )
    return {**{name: _spread(values) for name, values in _figures(curves, split).items()},
            "diverged": int(curves.diverged.sum()), "networks": len(seeds)}  # fmt: skip


def _figures(curves: Curves, split: str) -> dict[str, Tensor]:
    own = {"mean_train_loss": curves.mean_loss, "final_train_loss": curves.final_loss}
    return own | {name: curves.final_metric(split, name) for name in curves.metrics[split]}


def _spread(values: Tensor) -> list[float] | None:
    """Mean and standard deviation; None, in JSON too, if any network has no finite figure."""
    if not values.isfinite().all():
        return None
    return [values.mean().item(), values.std(correction=0).item()]


def _cells(result: dict[str, Any]) -> list[str]:
    cells = []
    for name in COLUMNS:
        spread = result.get(name)
        text = f"{spread[0]:.4g} ±{spread[1]:.2g}" if spread else "diverged" if name in result else "-"
        cells.append(f"{text:>17s}")
    return [*cells, f"{result['diverged']:>4d} of {result['networks']}"]
