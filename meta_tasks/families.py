"""All task families by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lopt.config import short
from lopt.errors import ConfigError
from lopt.inner.task import Task
from lopt.numerics.defaults import torchs_defaults
from meta_tasks import classification, language, points, reconstruction, residual, tabular  # noqa: F401 - register
from meta_tasks.family import FAMILIES, SpecFamily


@torchs_defaults()
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


@torchs_defaults()
def make_task(
    name: str,
    spec: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    device: str | torch.device = "cpu",
) -> Task:
    """One task of a family, by its spec; fields that it leaves out have their defaults."""
    return make_family(name, None, data_root, device).build(spec or {})
