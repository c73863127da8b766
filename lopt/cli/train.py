"""`lopt train`: a config -> a run folder with a trained rule."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lopt.cli.arguments import hours
from lopt.errors import ConfigError
from lopt.files import user_path

DESCRIPTION = """Meta-train a rule. Every value of the config can be replaced on the command line by its
dotted key: --meta.steps 100, --seed 3, --tasks.0.weight 2, --rule.options.width 8.

The run folder gets config.yaml, checkpoint.safetensors, rule.safetensors (the best rule so far,
which `lopt evaluate` and `lopt compare` take), metrics.jsonl, training.png and tensorboard/;
`lopt watch RUN` sums it up. A run that was stopped or killed goes on with `lopt resume RUN`, or
with the same command and --resume auto.

Several processes share the cohorts of an outer step, and give the same rule as one would; the run
folder has to be on a disk that all of them see. With --max-restarts the run goes on from its last
checkpoint by itself when a process is lost:
  torchrun --nproc-per-node 4 --max-restarts 2 -m lopt train CONFIG --meta.cohorts 8 --meta.cohorts_per_step 4

examples:
  lopt train configs/demo.yaml
  lopt train configs/fashion_mlp.yaml --data ~/data --out runs/fashion --meta.steps 500"""

TERMINATED = 128 + 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file; see configs/ for complete ones")
    parser.add_argument(
        "--data", metavar="DIR", help="folder of the data sets (default: the config's, $LOPT_DATA)"
    )
    parser.add_argument("--out", metavar="DIR", help="run folder (default: the config's, or runs/NAME)")
    parser.add_argument(
        "--resume",
        choices=["never", "auto"],
        default="auto" if _restarted() else "never",
        help="auto: go on where the run folder holds this run (default: never, unless torchrun restarts it)",
    )
    parser.add_argument(
        "--hours", type=hours, default=math.inf, metavar="H", help="stop with a checkpoint after so many"
    )
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    if args.overrides and not user_path(args.config).exists():
        raise ConfigError(
            f"{args.config}: expected a YAML config, found no such file; CONFIG comes before --KEY VALUE"
        )
    overrides = parse_overrides(args.overrides)
    overrides |= {key: value for key in ("data", "out") if (value := getattr(args, key)) is not None}
    return train(args.config, overrides, args.resume == "auto", args.hours)


def train(config: str | Path, overrides: Mapping[str, Any], resume: bool, hours: float) -> int:
    """Train, print what came of it, and return the exit code."""
    from lopt.training import train
    from lopt.training.ranks import leave

    run = train(config, overrides, resume=resume, hours=hours)
    if os.environ.get("RANK", "0") == "0":
        print(run)
    # To stop in time is what was asked for; to be stopped is not.
    code = 0 if run.finished or hours < math.inf else TERMINATED
    if os.environ.get("WORLD_SIZE", "1") != "1":
        leave(code)
    return code


def _restarted() -> bool:
    """Whether torchrun has started this process in place of one that was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["--meta.steps", "300", "--seed=1"] -> {"meta.steps": 300, "seed": 1}; values are YAML."""
    from lopt import config as configs

    overrides: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"command line: expected --KEY VALUE, found {word!r}")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not queue:
                raise ConfigError(f"command line: expected a value after {word}, found nothing")
            text = queue.pop(0)
        overrides[key] = configs.parse_yaml(text, f"command line: {key}")
    return overrides
