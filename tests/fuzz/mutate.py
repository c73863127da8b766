"""Damage: to bytes, to text, and to trees of values as they stand in headers, configs and states."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t[..., None], lambda t: t.flatten(), lambda t: t.new_zeros(0), lambda t: t.new_zeros(10**4),
    lambda t: t.double(), lambda t: t.half(), lambda t: t.long(), lambda t: t.bool(), lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.float8_e5m2), lambda t: t.to(torch.uint8), lambda t: t * math.nan, lambda t: t / 0.0,
    lambda t: t * 0 + 3e38, lambda t: t * 0 - 3e38, lambda t: t * 1e30, lambda t: -t, lambda t: t * 0 + 1e-45,
    lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t[..., None].expand(*t.shape, 2)[..., 0],
    lambda t: t.mT.contiguous().mT if t.dim() > 1 else t, lambda t: t.clone().requires_grad_(), lambda t: t.tolist(),
    lambda t: t.numpy(), lambda t: torch.nn.Parameter(t), lambda t: torch.nested.nested_tensor([t]),
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), lambda t: torch.conj(t.to(torch.complex64)).real,
    lambda t: torch.cat([t.flatten(), t.flatten()])[: t.numel()].view(t.shape),
)  # fmt: skip
"""Other tensors for one, and what is none."""


def tensors(original: Any, draw: random.Random) -> Any:
    """A copy of an optimizer's state with one to three tensors or entries that are not what they were."""
    changed = copy.deepcopy(original)
    states = changed["state"]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        owner = draw.choice(list(states))
        state = states[owner]
        key = draw.choice(list(state) or [""])
        kind = draw.random()
        if kind < 0.6 and _is_whole(state.get(key)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that these kinds of tensors are not for use
                state[key] = draw.choice(TENSORS)(state[key])
        elif kind < 0.7:
            other = draw.choice(list(states))
            states[owner], states[other] = states[other], states[owner]
        elif kind < 0.75:
            other = draw.choice(list(state) or [""])
            state[key], state[other] = state.get(other), state.get(key)
        elif kind < 0.8:
            state.pop(key, None)
        elif kind < 0.85:
            states[draw.choice((99, -1, "0", 1.5, None))] = state
        elif kind < 0.9:
            state[draw.choice(("exp_avg", 0, "trained", "step"))] = torch.ones(3)
        elif kind < 0.95:
            groups = changed["param_groups"]
            draw.choice((groups.pop, groups.clear, groups.reverse, lambda g=groups: g.append(g[0])))()
        else:
            del states[owner]
            if not states:
                break
    return changed


def _is_whole(found: Any) -> bool:
    plain = type(found) is Tensor and found.dtype is torch.float32 and not found.requires_grad
    return plain and not found.is_meta and not found.is_nested and found.layout is torch.strided
