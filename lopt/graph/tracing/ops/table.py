"""The table of rules and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lopt.errors import ConfigError

Rule = TypeVar("Rule", bound=Callable[..., Any])

RULES: dict[str, Callable[..., Any]] = {}
"""ATen name without overload and without the trailing underscore of in-place variants -> rule."""

SEGMENT_RULES: set[Callable[..., Any]] = set()
"""Rules that take values with segments as they are; for all others the segments are tied to a whole first."""


def rule(*names: str, segments: bool = False) -> Callable[[Rule], Rule]:
    """Enter a function into the table under these names, as `lopt.register_op_rule` for code outside.

    A rule takes the `Speech` and the operation's own arguments, with a `Value` for each tensor; it ties or fixes
    dimensions, and returns those of the result (or a list with one entry per result). For a use that it says nothing
    about it raises `NoRuleError`.

    names: ATen names ("mm"), or "namespace::name" of an operation of `torch.library`, without overload and without
    the trailing underscore of in-place variants. segments: whether it takes values with segments as they are.
    Raises `ConfigError` for a name that has a rule already, and for what is no function.
    """

    # At once: a decorator without its brackets is given the function itself, and never one to enter.
    if not names:
        raise ConfigError("op rule: expected the name of at least one operation, found none")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f'op rule: expected the name of an operation, found {name!r}; write it in brackets, ("mm")'
            )

    def enter(function: Rule) -> Rule:
        if not callable(function):
            raise ConfigError(f"op rule: expected a function, found {function!r}")
        for name in names:
            known = RULES.get(name.replace("::", "."))
            if known is not None:
                raise ConfigError(
                    f"op rule: {name!r} has one already, {known.__qualname__}; take it out of RULES first"
                )
        for name in names:
            RULES[name.replace("::", ".")] = function
        if segments:
            SEGMENT_RULES.add(function)
        return function

    return enter


def wrap(dim: int, rank: int) -> int:
    """A dimension counted from the end, counted from the start."""
    return dim + rank if dim < 0 else dim


def wrap_all(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    """The dimensions meant by an ATen `dim` list; none given means all."""
    # A tensor without dimensions takes 0 and -1 for one: there is nothing along it.
    if not rank or dims is None or (not isinstance(dims, int) and not len(dims)):
        return list(range(rank))
    return [wrap(d, rank) for d in ([dims] if isinstance(dims, int) else dims)]
