"""Rules that a benchmark makes itself: a config and what is different in it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from lopt import config as configs
from lopt.cli.train import TERMINATED, parse_overrides
from lopt.rules import LearnedRule, save_rule
from lopt.runs.provenance import provenance
from lopt.training import train
from lopt.training.build import fresh_rule
from lopt.training.run_config import RunConfig
from lopt.training.trainer import RULE


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
        overrides = parse_overrides(self.overrides) | {"out": str(run), "data": data}
        # A run that has ended is resumed for nothing, and ends at once.
        if not train(self.config, overrides, resume=True).finished:
            sys.exit(TERMINATED)  # told to stop

    def _fresh(self) -> LearnedRule:
        config = configs.load(RunConfig, self.config, parse_overrides(self.overrides))
        return fresh_rule(config, str(self.config))
