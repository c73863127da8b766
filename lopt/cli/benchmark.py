"""`lopt benchmark`: reproduce a published table."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from lopt.errors import ConfigError

DESCRIPTION = """Reproduce a benchmark of the repository, or go on with it. Every finished run is a line in
benchmarks/results/NAME/log.jsonl, and no run is done twice: stop it whenever you like, go on later, or share it
out among processes with --only. At the end tables, pictures and the section of benchmarks/REPORT.md are made.

neural_graphs   FM-16 and C10-32, the tasks of the Neural Graphs paper: every metanet, tuned baselines
families        ResNet, ViT, GPT, LSTM, autoencoder, SIREN, a table: speed-ups over tuned AdamW
transfer        widths, depths, batch sizes and a horizon far from those of meta-training
ablation        what the graph, the base directions, the horizons and the estimator are worth
from_adam       what meta-training makes of plain Adam, with the graph and without; no data set needed

Needs a checkout of the repository: the benchmarks are not in the package.

examples:
  lopt benchmark neural_graphs --quick --data ~/data        minutes; writes runs/benchmarks/quick
  lopt benchmark neural_graphs --only adam muon --data ~/data
  lopt benchmark neural_graphs --rules runs/mine --only mine --tasks fm-16 --data ~/data
  lopt benchmark neural_graphs --report                     from the log alone"""

CHECKOUT = Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="which benchmark")
    parser.add_argument("--tasks", metavar="TASK", nargs="+", help="only these tasks")
    parser.add_argument("--only", metavar="OPTIMIZER", nargs="+", help="only these rules and baselines")
    parser.add_argument(
        "--rules", metavar="RULE", nargs="+", default=[], help="more rules: run folders or rule files"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets (default: $LOPT_DATA)")
    parser.add_argument("--quick", action="store_true", help="a small version: does it run?")
    parser.add_argument("--report", action="store_true", help="run nothing, make the report from the log")
    parser.add_argument(
        "--out", metavar="DIR", help="where log and report go (default: benchmarks; runs/benchmarks/quick)"
    )


def run(args: argparse.Namespace) -> int:
    if not (CHECKOUT / "benchmarks" / "runner").is_dir():
        raise ConfigError(
            "lopt benchmark needs a checkout of lopt's repository, found an installed package without the folder"
            " benchmarks; clone the repository and install it with `pip install -e .`"
        )
    # First, so that no other package of that name is found.
    sys.path.insert(0, str(CHECKOUT))
    return import_module("benchmarks.runner.command").run(args)
