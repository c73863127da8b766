"""The table of architectures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Built = tuple[nn.Module, tuple[Any, ...]]
"""A model in evaluation mode and example arguments."""


@dataclass(frozen=True)
class Architecture:
    name: str
    library: str
    build: Callable[[], Built]


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, library: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Register a builder under a name of its own."""

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        add(name, library, build)
        return build

    return register


def add(name: str, library: str, build: Callable[[], Built]) -> None:
    if name in ARCHITECTURES:
        raise ValueError(f"two architectures are named {name!r}")
    ARCHITECTURES[name] = Architecture(name, library, build)
