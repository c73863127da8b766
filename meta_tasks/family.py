"""What all families share: options in, specs drawn, tasks built."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Generator

from lopt.inner.task import Task, TaskFamily
from meta_tasks.data import locate
from meta_tasks.data.images import check_size
from meta_tasks.spec import Spec, SpecDistribution

S = TypeVar("S", bound=Spec)


class SpecFamily(TaskFamily, Generic[S]):
    """A family whose tasks one `Spec` class describes; `meta_tasks.spec` says how its options are written.

    Raises `ConfigError` for bad options, `DataError` if a data set that it may draw is missing.
    """

    spec_class: ClassVar[type[Any]]
    together: ClassVar[tuple[str, ...]] = ()
    """Fields whose values have to fit each other: `check` is asked about all that can be drawn."""

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        data_root: str | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name = self.spec_class.family
        self.distribution = SpecDistribution(self.spec_class, options or {})
        self.data_root = data_root
        self.device = device
        if "dataset" in self.distribution.defaults:
            for name in self.distribution.values("dataset"):
                locate(name, data_root)
                if "size" in self.distribution.defaults:
                    check_size(name, max(self.distribution.values("size")))
        for values in itertools.product(*map(self.distribution.all_values, self.together)):
            self.check(self.spec_class(**dict(zip(self.together, values, strict=True))))

    def sample_spec(self, generator: Generator) -> dict[str, Any]:
        """Draw one task as JSON-able values."""
        return self.distribution.draw(generator).to_json()

    def build(self, spec: Mapping[str, Any]) -> Task:
        """The task that a spec describes; fields that it leaves out have their defaults."""
        parsed = self.spec_class.parse(spec)
        self.check(parsed)
        return self.task(parsed)

    def check(self, spec: S) -> None:
        """Raise `ConfigError` if fields of a spec, each of them valid, do not fit each other."""

    @abstractmethod
    def task(self, spec: S) -> Task:
        """The task of a valid spec."""
