"""Rules that a benchmark makes itself: a config and what is different in it."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import lopt
from lopt import config as configs
from lopt.cli import resume, train
from lopt.errors import ConfigError
from lopt.rules import LearnedRule, save_rule
from lopt.runs.provenance import provenance
from lopt.training.run_config import RunConfig
from lopt.training.trainer import CHECKPOINT, RULE


@dataclass(frozen=True)
class Recipe:
    """How a rule is made."""

    config: Path
    overrides: tuple[str, ...] = ()
    """As on the command line of `lopt train`."""
    trained: bool = True
    """False: the fresh rule, before any meta-training."""

    def make(self, path: Path, runs: Path, data: str | None) -> None:
        """Write the rule to `path`. Its run lies in `runs`, and goes on where it was stopped."""
        if self.trained:
            run = runs / path.stem
            self._train(run, data)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / RULE, path)
        else:
            save_rule(self._fresh(), path, provenance())

    def _train(self, run: Path, data: str | None) -> None:
        if (run / CHECKPOINT).exists():  # a run that has ended is resumed for nothing, and ends at once
            self._check(run)
            code = resume.run(Namespace(run=run, data=data))
        else:
            code = train.run(Namespace(config=self.config, out=str(run), data=data, overrides=self.overrides))
        if code:
            sys.exit(code)  # told to stop

    def _check(self, run: Path) -> None:
        found = replace(configs.load(RunConfig, run / train.CONFIG_FILE), data=None, out=None)
        if found != self._config():
            raise ConfigError(f"{run}: holds a run of another config; remove it to train {run.name} anew")

    def _config(self) -> RunConfig:
        return configs.load(RunConfig, self.config, train.parse_overrides(self.overrides))

    def _fresh(self) -> LearnedRule:
        config = self._config()
        torch.manual_seed(config.seed)
        rule = lopt.make_rule(config.rule.metanet, **config.rule.options)
        assert isinstance(rule, LearnedRule)
        return rule
