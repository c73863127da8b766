"""All task families by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lopt.errors import ConfigError
from lopt.inner.task import Task
from meta_tasks.classification import CnnFamily, MlpFamily
from meta_tasks.family import SpecFamily
from meta_tasks.language import CharLmFamily
from meta_tasks.points import QuadraticFamily, RosenbrockFamily
from meta_tasks.reconstruction import AutoencoderFamily, SirenFamily
from meta_tasks.residual import ResNetFamily, VitFamily
from meta_tasks.tabular import TabularFamily

FAMILIES: dict[str, type[SpecFamily[Any]]] = {
    family.spec_class.family: family
    for family in (
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
    )
}


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
        raise ConfigError(f"there is no task family {name!r}; there are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name](options, data_root, device)


def make_task(
    name: str,
    spec: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    device: str | torch.device = "cpu",
) -> Task:
    """One task of a family, by its spec; fields that it leaves out have their defaults."""
    return make_family(name, None, data_root, device).build(spec or {})
