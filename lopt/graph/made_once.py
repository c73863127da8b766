"""What is derived from a graph is kept on the graph itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


def made_once(make: Callable[..., T]) -> Callable[..., T]:
    """Keep `make(owner, *args)` on its owner, for as long as that lives; args are printable, such as numbers.

    In the place of `lru_cache`, which `torch.compile` ignores with a warning, to make everything anew each step.
    """
    name = f"{make.__module__}.{make.__qualname__}"

    @wraps(make)
    def kept(owner: Any, *args: Any) -> T:
        key = f"{name}{args}" if args else name
        if key not in owner.__dict__:
            owner.__dict__[key] = make(owner, *args)
        made: T = owner.__dict__[key]
        return made

    return kept
