"""The table of rules and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lopt.graph.tracing.values import Dim

Rule = TypeVar("Rule", bound=Callable[..., Any])

RULES: dict[str, Callable[..., Any]] = {}
"""ATen name without overload and without the trailing underscore of in-place variants -> rule."""

SEGMENT_RULES: set[Callable[..., Any]] = set()
"""Rules that take values with segments as they are; for all others the segments are tied to a whole first."""


def rule(*names: str, segments: bool = False) -> Callable[[Rule], Rule]:
    """Enter a function into the table under these ATen names."""

    def enter(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for {name}"
            RULES[name] = function
        if segments:
            SEGMENT_RULES.add(function)
        return function

    return enter


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the end, counted from the start."""
    return dim + rank if dim < 0 else dim


def wrap_all(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    """The dimensions meant by an ATen `dim` list; none given means all."""
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        return list(range(rank))
    return [wrap(d, rank) for d in ([dims] if isinstance(dims, int) else dims)]


def without_origin(dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """The same dimensions of a tensor that is no longer the one that came out of a weight."""
    return tuple(Dim(d.size, d.axis, view=d.view) for d in dims)
