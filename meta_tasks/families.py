"""All task families by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lopt.config import short
from lopt.errors import ConfigError
from lopt.inner.task import Task
from lopt.registry import Registry
from meta_tasks.classification import CnnFamily, MlpFamily
from meta_tasks.family import SpecFamily
from meta_tasks.language import CharLmFamily
from meta_tasks.points import QuadraticFamily, RosenbrockFamily
from meta_tasks.reconstruction import AutoencoderFamily, SirenFamily
from meta_tasks.residual import ResNetFamily, VitFamily
from meta_tasks.tabular import TabularFamily

F = TypeVar("F", bound=type[SpecFamily[Any]])

FAMILIES: Registry[type[SpecFamily[Any]]] = Registry("task family", SpecFamily)
"""Every family by the name that configs use."""


def register_family(name: str) -> Callable[[F], F]:
    """A decorator that adds a family whose `spec_class` has this name as its `family`."""

    def add(family: F) -> F:
        known = getattr(getattr(family, "spec_class", None), "family", None)
        if known != name:
            raise ConfigError(f"task family {name!r}: expected a spec_class of that family, found {known!r}")
        return FAMILIES.register(name)(family)

    return add


for _family in (
    MlpFamily,
    CnnFamily,
    ResNetFamily,
    VitFamily,
    AutoencoderFamily,
    SirenFamily,
    CharLmFamily,
    TabularFamily,
    QuadraticFamily,
    RosenbrockFamily,
):
    register_family(_family.spec_class.family)(_family)


def make_family(
    name: str,
    options: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    device: str | torch.device = "cpu",
) -> SpecFamily[Any]:
    """A family with the given options, each a value, a list or a range; see `meta_tasks.spec`.

    Raises `ConfigError` for an unknown family or option or a value out of range, and `DataError` if data
    that it may draw are missing.
    """
    if name not in FAMILIES:
        raise ConfigError(
            f"there is no task family {short(repr(name))}; there are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name](options, data_root, device)


def make_task(
    name: str,
    spec: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    device: str | torch.device = "cpu",
) -> Task:
    """One task of a family, by its spec; fields that it leaves out have their defaults."""
    return make_family(name, None, data_root, device).build(spec or {})
