"""Damage: to bytes, to text, and to trees of values as they stand in headers, configs and states."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

DEEP: Any = 1
for _ in range(200):
    DEEP = [DEEP]

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**20, -(10**20), 2**63, 10**39, 1e308, -1e308, 1e-320, 0.5, math.nan, math.inf,
    "", "x", "axisnet", "010", "1:30", "\0", "\ud800", "é" * 300, "a" * 5000, [], [1], ["adam"], [[]], {},
    {"name": "mlp"}, {"": 1}, {"low": 1, "high": 10**20}, {"name": "ng_t", "heads": 3}, {"name": []},
    DEEP, list(range(3000)),
)  # fmt: skip
"""Values that are wrong nearly everywhere, and dangerous somewhere."""


def tree(original: Any, draw: random.Random) -> Any:
    """A copy with one to three places replaced, removed, doubled or given another name."""
    changed = copy.deepcopy(original)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = _places(changed)
        if not places:
            return draw.choice(ODD)
        holder, key = draw.choice(places)
        kind = draw.random()
        if kind < 0.7:
            holder[key] = copy.deepcopy(draw.choice(ODD))
        elif kind < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw.choice((f"{key}x", "", "name", "options"))] = holder[key]
        else:
            holder.append(holder[key])
    return changed


def _places(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    # What ODD put there is damaged enough.
    return [
        place
        for key in keys
        for place in ((node, key), *(_places(node[key]) if node[key] is not DEEP else ()))
    ]


def raw(original: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, moved, or the end gone."""
    data = bytearray(original)
    for _ in range(draw.choice((1, 1, 2, 3))):
        start = draw.randrange(len(data) + 1)
        # The first bytes say how the rest is to be read.
        start = draw.randrange(min(len(data) + 1, 64)) if draw.random() < 0.5 else start
        length = draw.choice((1, 1, 1, 4, 8, 100))
        change: Callable[[], bytes] = draw.choice((
            lambda n=length: draw.randbytes(n), lambda: b"", lambda s=start, n=length: bytes(data[s : s + n]) * 2,
            lambda n=length: b"[" * n * 30, lambda n=length: b"9" * n * 60, lambda: b"\xff" * 8, lambda: b"\0" * 8,
        ))  # fmt: skip
        data[start : start + length] = change()
    return bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.1 else data)
