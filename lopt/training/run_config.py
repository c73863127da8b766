"""The config of a meta-training run, as it stands in a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lopt.errors import ConfigError
from lopt.training.config import MetaConfig


@dataclass(frozen=True)
class RuleConfig:
    """The rule to train: the arguments of `lopt.make_rule`."""

    metanet: str = "axisnet"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FamilyConfig:
    """A task family to draw from: the arguments of `meta_tasks.make_family`."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = field(default=1.0, metadata={"above": 0})
    """How often it is drawn, relative to the others."""


@dataclass(frozen=True)
class TaskConfig:
    """One fixed task: the arguments of `meta_tasks.make_task`."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """A complete run: with the same config and machine it gives the same rule."""

    name: str
    tasks: tuple[FamilyConfig, ...]
    """What the rule is trained on."""
    validation: tuple[str | TaskConfig, ...]
    """What chooses the checkpoint that is kept: specs, or names of `meta_tasks.TASKS`."""
    rule: RuleConfig = field(default_factory=RuleConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    seed: int = field(default=0, metadata={"min": 0, "max": 2**63 - 1})
    device: Literal["cpu", "cuda"] = "cpu"
    """Where rule and networks live; several processes of a machine take its GPUs in turn."""
    data: str | None = None
    """Folder of the data sets; null: the environment variable LOPT_DATA."""
    out: str | None = None
    """The run folder; null: runs/NAME."""

    def __post_init__(self) -> None:
        for key in ("tasks", "validation"):
            if not getattr(self, key):
                raise ConfigError(f"{key}: expected a list of at least one task, found an empty one")
        # The run's folder is runs/NAME: it must lie there, on every system.
        if self.name in ("", ".", "..") or set(self.name) & set("/\\\0"):
            raise ConfigError(f"name: expected a name for the run's folder, found {self.name!r}")
