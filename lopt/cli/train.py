"""`lopt train`: a config -> a run folder with a trained rule."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopt import config as configs
from lopt.errors import ConfigError
from lopt.training.run_config import RunConfig, TaskConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lopt.inner.task import Task
    from lopt.rules import LearnedRule
    from lopt.training.config import MetaConfig
    from lopt.training.ranks import Ranks
    from lopt.training.trainer import Trainer

DESCRIPTION = """Meta-train a rule. Every value of the config can be replaced on the command line by its
dotted key: --meta.steps 100, --seed 3, --tasks.0.weight 2, --rule.options.width 8.

The run folder gets config.yaml, checkpoint.safetensors, rule.safetensors (the best rule so far,
which `lopt evaluate` and `lopt compare` take), metrics.jsonl, training.png and tensorboard/;
`lopt watch RUN` sums it up. A run that was stopped or killed goes on with `lopt resume RUN`.

Several processes share the cohorts of an outer step, and give the same rule as one would; the run
folder has to be on a disk that all of them see:
  torchrun --nproc-per-node 4 -m lopt train CONFIG --meta.cohorts 8 --meta.cohorts_per_step 4

examples:
  lopt train configs/demo.yaml
  lopt train configs/fashion_mlp.yaml --data ~/data --out runs/fashion --meta.steps 500"""

CONFIG_FILE = "config.yaml"
TERMINATED = 128 + 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file; see configs/ for complete ones")
    parser.add_argument(
        "--data", metavar="DIR", help="folder of the data sets (default: the config's, $LOPT_DATA)"
    )
    parser.add_argument("--out", metavar="DIR", help="run folder (default: the config's, or runs/NAME)")
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    from lopt.files import write_atomically
    from lopt.training.ranks import connected
    from lopt.training.trainer import CHECKPOINT

    if args.overrides and not Path(args.config).exists():
        raise ConfigError(
            f"{args.config}: expected a YAML config, found no such file; CONFIG comes before --KEY VALUE"
        )
    overrides = parse_overrides(args.overrides)
    overrides |= {key: value for key in ("data", "out") if (value := getattr(args, key)) is not None}
    config = configs.load(RunConfig, args.config, overrides)
    out = Path(config.out or f"runs/{config.name}")
    if (out / CHECKPOINT).exists():
        raise ConfigError(
            f"{out}: holds a run already; continue it with `lopt resume {out}` or choose another --out"
        )
    with connected() as ranks:
        trainer = build(config, out, args.config, ranks)
        if ranks.leads:
            write_atomically(out / CONFIG_FILE, configs.dump(config).encode())
            _tell_of_horizons(config.meta)
        return finish(trainer)


def _tell_of_horizons(meta: MetaConfig) -> None:
    if meta.longest_horizon > meta.longest_life:
        print(
            f"note: rules are told of horizons of up to {meta.longest_horizon} steps, and networks live"
            f" {meta.longest_life} at most (meta.cohort_turns, meta.steps, meta.cohorts)",
            file=sys.stderr,
        )


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """["--meta.steps", "300", "--seed=1"] -> {"meta.steps": 300, "seed": 1}; values are YAML."""
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


def build(config: RunConfig, out: Path, source: str, ranks: Ranks | None = None) -> Trainer:
    """The trainer that a config describes; `source` names the config in errors."""
    from lopt.runs.provenance import provenance
    from lopt.training.trainer import Trainer, Weighted
    from meta_tasks import make_family

    device = _device(config, source)
    rule = _rule(config, source).to(device)
    families = []
    for index, entry in enumerate(config.tasks):
        with _named(f"{source}: tasks.{index}"):
            family = make_family(entry.family, entry.options, config.data, device)
            families.append(Weighted(family, entry.weight))
    validation = []
    for index, task in enumerate(config.validation):
        with _named(f"{source}: validation.{index}"):
            validation.append(_task(task, config.data, device))
    # Where things lie on this machine is nobody's business who gets the rule.
    portable = replace(config, data=None, out=None)
    account = {**provenance(), "config": configs.to_mapping(portable)}
    return Trainer(rule, families, validation, config.meta, out, config.seed, account, ranks)


def _device(config: RunConfig, source: str) -> torch.device:
    """The config's device; of several GPUs the one that `torchrun` counts this process by."""
    import torch

    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{source}: device: expected one that is there, found 'cuda' and no GPU; take 'cpu'"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _rule(config: RunConfig, source: str) -> LearnedRule:
    import torch

    import lopt
    from lopt.rules import LearnedRule

    with _named(f"{source}: rule"):
        torch.manual_seed(config.seed)
        rule = lopt.make_rule(config.rule.metanet, **config.rule.options)
        if not isinstance(rule, LearnedRule):
            raise ConfigError(
                f"expected a learned rule, found {config.rule.metanet!r}, which has nothing to learn"
            )
    return rule


def _task(entry: str | TaskConfig, data: str | None, device: torch.device) -> Task:
    from meta_tasks import make_task, named_task

    if isinstance(entry, str):
        return named_task(entry, data, device)
    return make_task(entry.family, entry.options, data, device)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Config errors from inside say where in the config the matter stands."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def finish(trainer: Trainer) -> int:
    """Train to the end, and say what came of it."""
    from lopt.training.runtime import prepare_cpu
    from lopt.training.trainer import RULE

    prepare_cpu()
    try:
        trainer.run()
    except KeyboardInterrupt:
        print(f"stopped; continue with: lopt resume {trainer.out}")
        raise
    if not trainer.ranks.leads:
        return 0 if trainer.step == trainer.config.steps else TERMINATED
    if trainer.step < trainer.config.steps:
        print(f"stopped at outer step {trainer.step}; continue with: lopt resume {trainer.out}")
        return TERMINATED
    best = "none was finite" if trainer.best is None else f"{trainer.best:.4f}"
    print(f"rule: {trainer.out / RULE}   outer steps: {trainer.step}   best validation score: {best}")
    return 0
