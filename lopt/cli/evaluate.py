"""`lopt evaluate`: what a rule reaches on tasks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lopt.cli.arguments import positive
from lopt.cli.tasks import HELP, find_tasks, fresh_seeds
from lopt.files import output_path

if TYPE_CHECKING:
    from lopt.comparison import Evaluation

DESCRIPTION = """Train fresh networks with a rule on each task, and print mean ± standard deviation over the
seeds of: the training loss over the run and at its end, and loss and accuracy on the test data.

examples:
  lopt evaluate runs/demo --tasks digits/test
  lopt evaluate rule.safetensors --tasks fm-16 c10-32 --steps 1000 --data ~/data --json results.json"""

COLUMNS = ("mean_train_loss", "final_train_loss", "test_loss", "test_accuracy")


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
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets (default: $LOPT_DATA)")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to a file")


def run(args: argparse.Namespace) -> int:
    import lopt
    from lopt.comparison import evaluate
    from lopt.comparison.report import write_results
    from lopt.runs.history import files_of
    from lopt.runs.provenance import provenance
    from lopt.tables import aligned
    from lopt.training.runtime import prepare_cpu

    prepare_cpu()
    rule = lopt.load_rule(args.rule)
    seeds = fresh_seeds(args.seeds)
    file = output_path(args.json, args.rule, *files_of(args.rule)) if args.json else None
    results = {
        name: evaluate(rule, task, steps=args.steps, seeds=seeds)
        for name, task in find_tasks(args.tasks, args.data).items()
    }
    try:
        if file:
            tasks = {name: result.record() for name, result in results.items()}
            record = {"rule": args.rule, "steps": args.steps, "tasks": tasks, "provenance": provenance()}
            write_results(record, file)
    finally:  # a full disk must not cost the table, too
        header = ["task", *(column.replace("_", " ") for column in COLUMNS), "ms/step", "diverged"]
        print(f"{args.rule}, {args.steps} steps, mean ± deviation over {args.seeds} seeds\n")
        print(aligned(header, [_row(name, result) for name, result in results.items()]))
    return 0


def _row(name: str, result: Evaluation) -> list[str]:
    from lopt.comparison.report import spread

    figures = result.figures
    metrics = (spread(figures.metrics.get(metric)) for metric in COLUMNS[2:])
    losses = (str(figures.mean_train_loss), str(figures.final_train_loss))
    return [name, *losses, *metrics, f"{result.ms_per_step:.2f}", str(figures.diverged)]
