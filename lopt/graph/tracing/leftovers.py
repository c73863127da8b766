"""Fake tensors that outlive a trace: whatever still holds one would hand it to the model's next real call."""

from __future__ import annotations

import functools
import gc
import traceback
import weakref
from collections import deque
from types import CellType, FrameType, FunctionType
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lopt.errors import GraphError

NESTED = 4
"""How many tuples around a fake tensor are looked through."""


def clear_frames(error: BaseException | None) -> None:
    """Let go of what the frames of an error's traceback hold; its lines stay."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def forget(fakes: list[weakref.ref[Tensor]]) -> None:
    """Take the fake tensors among the given ones out of every container that still holds one.

    What the model's own code reaches was put back before; this is for what it reaches by other ways. Entries of
    containers can go: they were added by the trace. What an attribute or a variable held before is not known.
    Raises `GraphError` naming the holder of such a one.
    """
    if not _alive(fakes):
        return
    gc.collect()  # most often they are in a cycle of garbage
    alive: list[Any] = _alive(fakes)
    named: list[str] = []
    for _ in range(NESTED):
        if not alive:
            break
        alive = _take_out(alive, named)
    if named:
        raise GraphError(
            "expected a forward pass that leaves no tensor where it cannot be put back, found one in"
            f" {', '.join(named)}: store it on the module instead, or train without a graph"
        )


def _alive(fakes: list[weakref.ref[Tensor]]) -> list[Any]:
    return [t for fake in fakes if isinstance(t := fake(), FakeTensor)]


def _take_out(fakes: list[Any], named: list[str]) -> list[Any]:
    """Take `fakes` out of what holds it; tells the tuples around it, and names what cannot be mended."""
    ids = {id(value) for value in fakes}
    around: list[Any] = []
    for holder in gc.get_referrers(*fakes):
        # The list that was handed over refers to them as well, and so do the frames of those who look.
        if holder is fakes or isinstance(holder, FrameType | FakeTensor):
            continue
        if isinstance(holder, dict):
            gone = [key for key, value in holder.items() if id(value) in ids or id(key) in ids]
            owner = _owner(holder)
            named += [f"{owner}.{key}" for key in gone if owner]
            for key in gone:
                del holder[key]
        elif isinstance(holder, list | deque):
            kept = [value for value in holder if id(value) not in ids]
            holder.clear()
            holder.extend(kept)
        elif isinstance(holder, set):
            holder.difference_update([value for value in holder if id(value) in ids])
        elif isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, CellType):
            if _of_frames_alone(holder):
                del holder.cell_contents
            else:
                named.append("a variable that a function closes over")
        elif isinstance(holder, tuple | frozenset):
            around.append(holder)
        elif type(holder).__module__.partition(".")[0] not in ("torch", "builtins"):
            gone = [key for key, value in getattr(holder, "__dict__", {}).items() if id(value) in ids]
            named += [f"{type(holder).__qualname__}.{key}" for key in gone or ["(an attribute)"]]
            for key in gone:
                delattr(holder, key)
    return around


def _of_frames_alone(cell: CellType) -> bool:
    """Whether no function has the variable but those that an error has ended: frames keep theirs, even cleared."""
    closures = [holder for holder in gc.get_referrers(cell) if isinstance(holder, tuple)]
    functions = [each for each in gc.get_referrers(*closures) if isinstance(each, FunctionType)]
    return all(
        holder is functions or isinstance(holder, FrameType) for holder in gc.get_referrers(*functions)
    )


def _owner(space: dict[Any, Any]) -> str | None:
    """The module or object whose attributes the dictionary holds, if it is such a one."""
    if "__name__" in space and "__spec__" in space:
        return str(space["__name__"])
    if "__module__" in space and "__qualname__" not in space and "__dict__" in space:
        return f"{space['__module__']} (a class)"
    for holder in gc.get_referrers(space):
        if getattr(holder, "__dict__", None) is space:
            return type(holder).__qualname__
    return None
