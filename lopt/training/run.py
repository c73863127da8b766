"""Meta-training as one call: a config in, a run out."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lopt import config as configs
from lopt.errors import ConfigError
from lopt.files import user_path, write_atomically
from lopt.numerics.defaults import torchs_defaults
from lopt.rules import LearnedRule, load_rule
from lopt.runs.history import CONFIG_FILE, History
from lopt.runs.lock import held
from lopt.runs.pictures import training_picture
from lopt.tables import aligned
from lopt.training.build import build, portable
from lopt.training.ranks import connected
from lopt.training.run_config import RunConfig
from lopt.training.runtime import prepare_cpu
from lopt.training.trainer import CHECKPOINT, RULE, Trainer, restore


@dataclass(frozen=True)
class Run:
    """What meta-training left in a folder."""

    folder: Path
    config: RunConfig
    step: int
    """Outer steps taken; fewer than the config's if the run was told to stop, and can be resumed."""
    rule: LearnedRule
    """The average of the meta-parameters at the end."""
    best: float | None
    """The validation score of `best_rule`: mean log relative loss. None if no score was finite."""

    @property
    def finished(self) -> bool:
        return self.step >= self.config.meta.steps

    @cached_property
    def best_rule(self) -> LearnedRule:
        """The best rule by validation, as it was after some outer step: what the run folder gives."""
        return load_rule(self.folder)

    @cached_property
    def history(self) -> History:
        """All that was logged."""
        return History.read(self.folder)

    @property
    def validation(self) -> dict[str, list[tuple[int, float]]]:
        """For each validation task its score (the lower the better) after some outer steps."""
        names = self.history.names("validation/")
        return {name.removeprefix("validation/"): self.history.series(name) for name in names}

    def plot(self) -> Figure:
        """Outer losses, validation scores, and what the rule trains like."""
        return training_picture(self.history)

    def __str__(self) -> str:
        rows = [
            [task, f"{scores[0][1]:.4f}", f"{min(s for _, s in scores):.4f}", f"{scores[-1][1]:.4f}"]
            for task, scores in self.validation.items()
        ]
        best = "none was finite" if self.best is None else f"{self.best:.4f}"
        rule = self.folder / RULE
        where = (
            str(rule) if rule.is_file() else f"{rule} is gone; save_rule(run.rule, path) keeps the last one"
        )
        state = f"rule: {where}   outer steps: {self.step}   best validation score: {best}"
        if not self.finished:
            state = f"stopped at outer step {self.step}; continue with: lopt resume {self.folder}"
        header = ["validation, mean log relative loss", "fresh", "lowest", "last"]
        return f"{aligned(header, rows)}\n\n{state}" if rows else state


@torchs_defaults()
def train(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    hours: float = math.inf,
) -> Run:
    """Meta-train a rule; shows its progress on stderr, and writes a run folder as it goes.

    On the CPU the same config gives the same rule, bit for bit, however often the run was killed and resumed, and on
    however many processes that `torchrun` starts. SIGTERM, or SIGHUP as a terminal is closed, ends it after the outer
    step in hand, with a checkpoint.

    Args:
        config: a `RunConfig`, nested dicts as they stand in a YAML file, or the path of one.
        overrides: values by dotted key, in place of the config's: `{"meta.steps": 100, "out": "runs/mine"}`.
        resume: go on from the checkpoint of a run folder that holds this run already; without one, begin.
        hours: end after the outer step in which so much time is over, with a checkpoint to go on from.

    Raises:
        ConfigError: for a bad value, and for a folder that holds another run, or any without `resume`.
        RunFolderError: if another process trains into the folder, or if it cannot be written.
        LostProcessError: if another process of the run is gone.
    """
    origin = configs.to_mapping(config) if isinstance(config, RunConfig) else config
    origin = origin if isinstance(origin, Mapping) else user_path(origin)
    checked = configs.load(RunConfig, origin, overrides)
    source = "config" if isinstance(origin, Mapping) else str(origin)
    folder = user_path(checked.out or f"runs/{checked.name}")
    with connected() as ranks:
        begins = not (resume and (folder / CHECKPOINT).exists())
        trainer = build(checked, folder, source, ranks, begins)
        with held(folder) if ranks.leads else nullcontext():
            _prepare(trainer, checked, resume)
            prepare_cpu()
            try:
                trainer.run(hours)
            except KeyboardInterrupt:
                print(f"stopped; continue with: lopt resume {folder}")
                raise
    rule = copy.deepcopy(trainer.rule)
    rule.load_state_dict({**rule.state_dict(), **trainer.optimizer.average})
    return Run(folder, checked, trainer.step, rule, trainer.best)


def _prepare(trainer: Trainer, config: RunConfig, resume: bool) -> None:
    """Read the folder's checkpoint if there is one and it is to be read; write the config."""
    folder = trainer.out
    if (folder / CHECKPOINT).exists():
        if not resume:
            raise ConfigError(
                f"{folder}: holds a run already; continue it with `lopt resume {folder}` or choose another --out"
            )
        _check_same(folder, config)
        restore(trainer)
    if not trainer.ranks.leads:
        return
    write_atomically(folder / CONFIG_FILE, configs.dump(config).encode())
    meta = config.meta
    if meta.longest_horizon > meta.longest_life:
        print(
            f"note: rules are told of horizons of up to {meta.longest_horizon} steps, and networks live"
            f" {meta.longest_life} at most (meta.cohort_turns, meta.steps, meta.cohorts)",
            file=sys.stderr,
        )


def _check_same(folder: Path, config: RunConfig) -> None:
    """Raise a `ConfigError` with the first difference if the folder's run is of another config."""
    kept = configs.to_mapping(portable(configs.load(RunConfig, folder / CONFIG_FILE)))
    wanted = configs.to_mapping(portable(config))
    if (place := _difference(kept, wanted)) is not None:
        raise ConfigError(
            f"{folder}: holds a run of another config, which differs in {place}; continue that one with"
            f" `lopt resume {folder}`, or choose another --out"
        )


def _difference(one: Any, other: Any, place: str = "") -> str | None:
    """The dotted place where two trees of a config differ first."""
    if one == other:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                return _difference(one.get(key), other.get(key), f"{place}.{key}".lstrip("."))
    return place
