"""What all families share: options in, specs drawn, tasks built."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator

from lopt.config import from_mapping, to_mapping
from lopt.errors import ConfigError
from lopt.inner.task import Task, TaskFamily
from lopt.registry import Registry
from meta_tasks.data import locate
from meta_tasks.spec import Spec, distribution_of

S = TypeVar("S", bound=Spec)


class SpecFamily(TaskFamily, Generic[S]):
    """A family whose tasks one `Spec` class describes; `meta_tasks.spec` says how its options are written.

    Raises `ConfigError` for bad options, `DataError` if a data set that it may draw is missing.
    """

    spec_class: ClassVar[Any]

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        data_root: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.distribution = from_mapping(distribution_of(self.spec_class), options or {}, self.name)
        self.data_root = data_root
        self.device = device
        if "dataset" in self.spec_class.model_fields:
            for name in self.distribution.of("dataset").values:
                locate(name, data_root)

    def sample_spec(self, generator: Generator) -> dict[str, Any]:
        """Draw one task as JSON-able values."""
        return to_mapping(self.distribution.draw(generator))

    def build(self, spec: Mapping[str, Any]) -> Task:
        """The task that a spec describes; fields that it leaves out have their defaults."""
        return self.task(from_mapping(self.spec_class, spec, self.name))

    @abstractmethod
    def task(self, spec: S) -> Task:
        """The task of a valid spec."""


F = TypeVar("F", bound=type[SpecFamily[Any]])

FAMILIES: Registry[type[SpecFamily[Any]]] = Registry("task family", SpecFamily)
"""Every family by the name that configs use."""


def register_family(name: str) -> Callable[[F], F]:
    """A decorator that adds a family with a `spec_class` under a name."""

    register = FAMILIES.register(name)

    def add(family: F) -> F:
        spec_class = getattr(family, "spec_class", None)
        if not (isinstance(spec_class, type) and issubclass(spec_class, Spec)):
            raise ConfigError(
                f"task family {name!r}: expected a spec_class derived from Spec, found {spec_class!r}"
            )
        family.name = name
        return register(family)

    return add
