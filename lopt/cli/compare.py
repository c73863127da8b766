"""`lopt compare`: learning curves of rules beside tuned baselines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lopt.cli.arguments import positive
from lopt.cli.tasks import FIRST_TEST_SEED, HELP, find_tasks, fresh_seeds
from lopt.files import output_path, user_path, write_picture

DESCRIPTION = """Tune each baseline (learning rates x schedules, on validation seeds), then train fresh networks
with every rule and baseline: to the given number of steps, and to a multiple of it with the same settings.

Prints a table, and writes curves.png and results.json to the --out folder (one folder below it for each
task if there are several). A baseline is sgd, adam, adamw, adafactor, lion, muon, normuon, soap_muon,
schedule_free_adamw, the name of a class of torch.optim, or the dotted name of any optimizer class.
"(edge)" marks a learning rate at the end of its grid. With several tasks each baseline is shown twice: tuned for
the task, and at the one setting that is best over all tasks.

examples:
  lopt compare runs/demo --task digits-mlp
  lopt compare lopt-base runs/mine --task fm-16 --data ~/data --baselines adamw NAdam pytorch_optimizer.SOAP"""


SCHEDULES = ["constant", "cosine", "one_cycle"]
"""Those of `lopt.numerics.schedules`, which needs torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rules", metavar="RULE", nargs="+", help="run folders, rule files or rules shipped with lopt"
    )
    parser.add_argument("--task", metavar="TASK", nargs="+", required=True, help=HELP)
    parser.add_argument(
        "--baselines", metavar="NAME", nargs="*", default=["adam", "adamw"], help="(default: adam adamw)"
    )
    parser.add_argument(
        "--steps", type=positive, default=300, help="length of each run (default: %(default)s)"
    )
    parser.add_argument(
        "--long",
        type=positive,
        default=3,
        metavar="FACTOR",
        help="long runs have FACTOR x steps (default: 3)",
    )
    parser.add_argument(
        "--seeds", type=positive, default=5, help="test networks of each (default: %(default)s)"
    )
    parser.add_argument("--rates", type=positive, default=7, help="learning rates to tune over (default: 7)")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=["constant", "cosine"])
    parser.add_argument(
        "--tuning-seeds", type=_tuning_seeds, default=3, help="networks for each setting (default: 3)"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets (default: $LOPT_DATA)")
    parser.add_argument("--out", metavar="DIR", default="runs/compare", help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from lopt.comparison import Budget, Comparison, compare
    from lopt.comparison.tuning import find_baseline
    from lopt.training.runtime import prepare_cpu

    prepare_cpu()
    rules = labels(args.rules)
    tasks = find_tasks(args.task, args.data)
    for baseline in args.baselines:
        find_baseline(baseline)
    folder = user_path(args.out)
    folders = [folder / name for name in tasks] if len(tasks) > 1 else [folder]
    for place in folders:  # one that cannot be written is noticed before any long work
        output_path(place / "results.json")
    budget = Budget(
        learning_rates=args.rates,
        schedules=args.schedules,
        seeds=tuple(range(1, 1 + args.tuning_seeds)),
        steps=args.steps,
    )
    left = iter(folders)

    def keep(result: Comparison) -> None:
        """Written before it is printed, and before the next task, which may take hours."""
        out = next(left)
        try:
            result.write(out / "results.json")
            write_picture(out / "curves.png", result.plot(), dpi=140)
        finally:  # a full disk must not cost the table, too
            print(result)
        print(f"\nfigures: {out / 'results.json'}   curves: {out / 'curves.png'}\n", flush=True)

    compare(
        rules, list(tasks.values()), args.baselines, steps=args.steps, seeds=fresh_seeds(args.seeds),
        budget=budget, long_factor=args.long, on_task=keep,
    )  # fmt: skip
    return 0


def _tuning_seeds(text: str) -> int:
    found = positive(text)
    if found >= FIRST_TEST_SEED:
        raise argparse.ArgumentTypeError(
            f"expected at most {FIRST_TEST_SEED - 1}, found {found}: seeds from {FIRST_TEST_SEED} on are for testing"
        )
    return found


def labels(rules: Sequence[str]) -> dict[str, str]:
    """What each rule is called in tables: the run folder's or file's own name, or all of it where two agree."""
    short = [_own_name(Path(rule)) for rule in rules]
    return {name if short.count(name) == 1 else rule: rule for name, rule in zip(short, rules, strict=True)}


def _own_name(path: Path) -> str:
    name = path.name.removesuffix(".safetensors")
    return path.resolve().parent.name if name == "rule" else name or path.resolve().name
