"""`lopt resume`: continue a run from its last checkpoint."""

from __future__ import annotations

import argparse
import math

from lopt.cli.arguments import hours
from lopt.cli.train import train
from lopt.runs.history import CONFIG_FILE, run_folder

DESCRIPTION = """Continue a training run from its last checkpoint, or from its start if it was stopped before the
first one. On the CPU the result equals that of an uninterrupted run bit for bit.

examples:
  lopt resume runs/demo
  lopt resume runs/demo --hours 2                          a piece of it
  torchrun --nproc-per-node 2 -m lopt resume runs/demo     with any number of processes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets, if it has moved")
    parser.add_argument(
        "--hours", type=hours, default=math.inf, metavar="H", help="stop with a checkpoint after so many"
    )


def run(args: argparse.Namespace) -> int:
    folder = run_folder(args.run)
    moved = {} if args.data is None else {"data": args.data}
    return train(folder / CONFIG_FILE, {"out": str(folder), **moved}, resume=True, hours=args.hours)
