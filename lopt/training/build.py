"""From a config to the trainer that it describes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lopt import config as configs
from lopt.errors import ConfigError
from lopt.inner.task import Task
from lopt.rules import LearnedRule, load_rule
from lopt.runs.provenance import provenance
from lopt.training.ranks import Ranks
from lopt.training.run_config import RunConfig, TaskConfig
from lopt.training.trainer import Trainer, Weighted
from meta_tasks import make_family, make_task, named_task


def build(
    config: RunConfig, out: Path, source: str, ranks: Ranks | None = None, begins: bool = True
) -> Trainer:
    """The trainer that a config describes; `source` names the config in errors, and one that goes on with a
    checkpoint, `begins` False, needs no rule to start from."""
    device = _device(config, source)
    first = first_rule if begins else fresh_rule
    rule = first(config, source).to(device)
    families = []
    for index, entry in enumerate(config.tasks):
        with _named(f"{source}: tasks.{index}"):
            family = make_family(entry.family, entry.options, config.data, device)
            families.append(Weighted(family, entry.weight))
    validation = []
    for index, task in enumerate(config.validation):
        with _named(f"{source}: validation.{index}"):
            validation.append(_task(task, config.data, device))
    account = {**provenance(), "config": configs.to_mapping(portable(config))}
    return Trainer(rule, families, validation, config.meta, out, config.seed, account, ranks)


def first_rule(config: RunConfig, source: str) -> LearnedRule:
    """The rule that a run starts from."""
    if config.start is None:
        return fresh_rule(config, source)
    with _named(f"{source}: start"):
        rule, wanted = load_rule(config.start), configs.to_mapping(config.rule)
        found = rule.describe()
        if differing := [key for key, value in wanted.items() if found.get(key) != value]:
            key = differing[0]
            raise ConfigError(
                f"expected a rule as the section `rule` describes it, {key}: {wanted[key]}, found {found.get(key)}"
            )
    return rule


def fresh_rule(config: RunConfig, source: str) -> LearnedRule:
    """The rule of a config before any meta-training."""
    with _named(f"{source}: rule"):
        torch.manual_seed(config.seed)
        return LearnedRule(config.rule)


def portable(config: RunConfig) -> RunConfig:
    """Without where things lie on this machine, which is nobody's business who gets the rule."""
    return config.but(data=None, out=None, start=config.start and Path(config.start).name)


def _device(config: RunConfig, source: str) -> torch.device:
    """The config's device; of several GPUs the one that `torchrun` counts this process by."""
    if config.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{source}: device: expected one that is there, found 'cuda' and no GPU; take 'cpu'"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _task(entry: str | TaskConfig, data: str | None, device: torch.device) -> Task:
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
