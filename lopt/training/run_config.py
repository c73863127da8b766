"""The config of a meta-training run, as it stands in a YAML file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo, field_validator

from lopt.config import Positive, Settings, Several, wrong
from lopt.rules.config import LearnedRuleConfig
from lopt.training.config import MetaConfig
from meta_tasks import FAMILIES
from meta_tasks.spec import Spec, distribution_of


class TaskConfig(Settings):
    """One fixed task: the arguments of `meta_tasks.make_task`."""

    family: Annotated[str, AfterValidator(FAMILIES.known)]
    options: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies defaults

    @field_validator("options")
    @classmethod
    def _fit(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "family" in info.data:
            cls._checks(FAMILIES[info.data["family"]].spec_class).model_validate(options)
        return options

    @classmethod
    def _checks(cls, spec_class: type[Spec]) -> type[Settings]:
        return spec_class


def _task(value: Any) -> str | TaskConfig:
    return value if isinstance(value, str) else TaskConfig.model_validate(value)


def _folder(name: str) -> str:
    # The run's folder is runs/NAME: it must lie there, on every system.
    if not name.isprintable() or set(name) & set("/\\") or name in ("", ".", ".."):
        raise wrong("a name for the run's folder", name)
    return name


class FamilyConfig(TaskConfig):
    """A task family to draw from: the arguments of `meta_tasks.make_family`."""

    weight: Positive = 1.0
    """How often it is drawn, relative to the others."""

    @classmethod
    def _checks(cls, spec_class: type[Spec]) -> type[Settings]:
        return distribution_of(spec_class)


class RunConfig(Settings):
    """A complete run: with the same config and machine it gives the same rule."""

    name: Annotated[str, Field(max_length=200), AfterValidator(_folder)]
    """Of the run's folder."""
    tasks: Annotated[Several[FamilyConfig], Field(min_length=1)]
    """What the rule is trained on."""
    validation: Annotated[Several[Annotated[str | TaskConfig, PlainValidator(_task)]], Field(min_length=1)]
    """What chooses the checkpoint that is kept: specs, or names of `meta_tasks.TASKS`."""
    rule: LearnedRuleConfig = Field(default_factory=LearnedRuleConfig)
    """The fresh rule."""
    start: str | None = None
    """A rule to begin with in place of the fresh one, of the same section `rule`: one that ships, by its name, a file
    or a run folder. A run that goes on does not ask for it any more."""
    meta: MetaConfig = Field(default_factory=MetaConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["cpu", "cuda"] = "cpu"
    """Where rule and networks live; several processes of a machine take its GPUs in turn."""
    data: str | None = None
    """Folder of the data sets; null: the environment variable LOPT_DATA."""
    out: str | None = None
    """The run folder; null: runs/NAME."""
