"""`lopt resume`: continue a run from its last checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from lopt import config as configs
from lopt.cli.train import CONFIG_FILE, build, finish
from lopt.errors import ConfigError
from lopt.training.run_config import RunConfig

DESCRIPTION = """Continue a training run from its last checkpoint, or from its start if it was stopped before the
first one. On the CPU the result equals that of an uninterrupted run bit for bit.

examples:
  lopt resume runs/demo
  torchrun --nproc-per-node 2 -m lopt resume runs/demo     with any number of processes"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets, if it has moved")


def run(args: argparse.Namespace) -> int:
    from lopt.training.ranks import connected
    from lopt.training.trainer import CHECKPOINT, resume

    folder = Path(args.run)
    source = folder / CONFIG_FILE
    if not source.is_file():
        raise ConfigError(
            f"{folder}: expected a run folder with {CONFIG_FILE}, found none; start it with `lopt train`"
        )
    config = configs.load(RunConfig, source, {} if args.data is None else {"data": args.data})
    with connected() as ranks:
        trainer = build(config, folder, str(source), ranks)
        if (folder / CHECKPOINT).exists():
            resume(trainer)
        return finish(trainer)
