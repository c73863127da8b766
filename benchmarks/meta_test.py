"""The meta-test suite: are rules ahead of tuned optimizers on kinds of task that nobody tuned for?

    python -m benchmarks meta_test lopt-small [--steps 300] [--seeds 5] [--tuning-seeds 2] [--rates 5]
    python -m benchmarks meta_test lopt-small --quick       a few minutes, on tasks for training: does it run?
    python -m benchmarks meta_test RULE RULE --fresh --baselines --out DIR     beside what they began as, alone
    python -m benchmarks meta_test --report                 from the rows alone

A LOOK IS TAKEN ONCE FOR EACH RULE THAT IS SHIPPED, and written down in benchmarks/LOG.md ("Looks at the meta-test
suite"); see docs/meta-test.md. Each kind's row is written when it is done and not done again: stop it at any time.

Every baseline has the same budget: learning rates half a decade apart around its usual one, a cosine (schedule-free:
none), validation loss on tuning seeds, and on beyond an end of the grid where the best rate lies there; "tuned" is the
best rate of each kind, "fixed" the best one over all kinds, of those that every kind was tried with.
Rules run as they are. Figures are of test seeds, the same networks and batches for all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import lopt
from benchmarks.runner.benchmark import fingerprint
from benchmarks.runner.kinds import FRESH, STRETCH, score, summarise, table
from benchmarks.runner.log import append, read_lines
from benchmarks.shares import with_share
from lopt.cli.arguments import Parser
from lopt.cli.compare import labels
from lopt.comparison.figures import as_json
from lopt.comparison.report import write_results
from lopt.comparison.tuning import Trial, beyond, find_baseline, grid
from lopt.errors import ConfigError
from lopt.files import output_path, user_path
from lopt.inner.evaluation import Curves, train_networks
from lopt.inner.task import Task
from lopt.rules import LearnedRule
from lopt.rules.base import Rule
from lopt.rules.classical import ClassicalRule
from lopt.runs.provenance import provenance
from meta_tasks import named_task
from meta_tasks.meta_test import KINDS, kind_task

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path("runs/benchmarks/quick")
BASELINES = ("adamw", "muon", "pytorch_optimizer.SOAP", "soap_muon", "normuon", "schedule_free_adamw", "sgd")
SCHEDULES = {"schedule_free_adamw": "constant"}
"""Of each baseline; a cosine for those not named."""
QUICK = ("digits-mlp", "photos-siren", "quadratic")
"""Tasks that rules may be trained on."""
FIRST_TEST_SEED = 101
FURTHER = 4
"""How many more learning rates a kind may ask for beyond an end of the grid."""


def main() -> None:
    """Run what has no row yet, then write and print the summary."""
    options = arguments().parse_args()
    folder = user_path(options.out) if options.out else QUICK_RESULTS if options.quick else RESULTS
    rows_path, results = folder / "meta_test.jsonl", output_path(folder / "meta_test.json")
    if not options.report:
        run(options, rows_path)
    rows = read_lines(rows_path)
    if not rows:
        raise ConfigError(f"{rows_path}: expected rows of finished runs, found none; run without --report")
    summary = summarise(rows)
    record = {**as_json(summary), "command": " ".join(sys.argv), "provenance": provenance()}
    write_results(record, results)
    print(table(summary))


def arguments() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "rules", metavar="RULE", nargs="*", help="run folders, rule files or rules shipped with lopt"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="the first rule as it was before meta-training, too"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", type=int, default=5, help="learning rates of each baseline")
    parser.add_argument("--seeds", type=int, default=5, help="test networks of each")
    parser.add_argument("--tuning-seeds", type=int, default=2, help="networks by which a rate is chosen")
    parser.add_argument("--baselines", metavar="NAME", nargs="*", default=list(BASELINES))
    parser.add_argument("--kinds", metavar="KIND", nargs="+", default=list(KINDS), help="only these")
    parser.add_argument("--quick", action="store_true", help="60 steps on three tasks for training: no look")
    parser.add_argument("--report", action="store_true", help="run nothing, make the summary from the rows")
    parser.add_argument("--out", metavar="DIR")
    return parser


def run(options: argparse.Namespace, path: Path) -> None:
    """Every optimizer on every kind, one row each."""
    steps = 60 if options.quick else options.steps
    make: Callable[[str], Task] = named_task if options.quick else kind_task
    budget = {
        "steps": steps,
        "rates": options.rates,
        "further": FURTHER,
        "seeds": options.seeds,
        "tuning_seeds": options.tuning_seeds,
    }
    tuning = range(1, options.tuning_seeds + 1)
    test = range(FIRST_TEST_SEED, FIRST_TEST_SEED + options.seeds)
    rules = {name: lopt.load_rule(path) for name, path in labels(options.rules).items()}
    if options.fresh:
        rules[FRESH] = with_share(lopt.load_rule(options.rules[0]), 0.0)
    # A name may come to stand for another rule.
    digests = {name: fingerprint(rule) for name, rule in rules.items() if isinstance(rule, LearnedRule)}
    done = {
        (row["kind"], row["optimizer"], row.get("digest"))
        for row in read_lines(path)
        if row["budget"] == budget
    }
    for kind in QUICK if options.quick else options.kinds:
        task = make(kind)
        for name in (*options.baselines, *rules):
            if (kind, name, digests.get(name)) in done:
                continue
            start = time.perf_counter()
            settings = (
                [setting(train(rules[name], task, [1.0], [], test, steps, "constant"), [], test, 1.0)]
                if name in rules
                else tried(name, task, options.rates, tuning, test, steps)
            )
            row = {
                "kind": kind,
                "optimizer": name,
                "rule": name in rules,
                "digest": digests.get(name),
                "budget": budget,
                "settings": settings,
            }
            seconds = round(time.perf_counter() - start, 1)
            append(path, as_json({**row, "seconds": seconds}))
            print(f"{kind} {name} {seconds} s", file=sys.stderr, flush=True)


def tried(
    name: str, task: Task, rates: int, tuning: Sequence[int], test: Sequence[int], steps: int
) -> list[dict[str, Any]]:
    """A baseline at each of its learning rates, and at further ones as long as the best lies at an end of them."""
    baseline, schedule = find_baseline(name), SCHEDULES.get(name, "cosine")
    unit = baseline.make(1.0)

    def at(rates: Sequence[float]) -> list[dict[str, Any]]:
        if isinstance(unit, ClassicalRule) and unit.linear_in_lr:
            curves = train(unit, task, rates, tuning, test, steps, schedule)
            return [setting(curves, tuning, test, lr, index) for index, lr in enumerate(rates)]
        return [
            setting(train(baseline.make(lr), task, [1.0], tuning, test, steps, schedule), tuning, test, lr)
            for lr in rates
        ]

    settings = at(grid(baseline.centre, rates))
    for _ in range(FURTHER):
        rate = beyond([Trial(tried["lr"], schedule, score(tried)) for tried in settings])
        if rate is None:
            break
        settings += at([rate])
    return settings


def train(
    rule: Rule, task: Task, rates: Sequence[float], tuning: Sequence[int], test: Sequence[int], steps: int,
    schedule: str,
) -> Curves:  # fmt: skip
    """One network for each rate and seed, the rates outermost."""
    seeds = [*tuning, *test]
    lr = torch.tensor([rate for rate in rates for _ in seeds], dtype=torch.float64)
    return train_networks(
        rule.on(task.graph), task, seeds * len(rates), steps, lr=lr, schedule=schedule, total_steps=steps,
        splits=("validation", "test"),
    )  # fmt: skip


def setting(
    curves: Curves, tuning: Sequence[int], test: Sequence[int], lr: float, index: int = 0
) -> dict[str, Any]:
    """The figures of the rate with that index: what chooses it, then what is shown of it."""
    first = index * (len(tuning) + len(test))
    chosen, shown = (
        slice(first, first + len(tuning)),
        slice(first + len(tuning), first + len(tuning) + len(test)),
    )
    loss = {
        split: curves.metrics[split]["loss"].masked_fill(curves.diverged, torch.inf)
        for split in ("validation", "test")
    }
    curve = curves.train_loss[shown].mean(0)
    return {
        "lr": lr,
        "validation": loss["validation"][chosen].tolist(),
        "final": curves.final_loss[shown].tolist(),
        "test": loss["test"][shown].tolist(),
        "curve": [float(f"{part.mean().item():.4g}") for part in curve.split(STRETCH)],
    }


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
