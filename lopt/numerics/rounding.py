"""Stochastic rounding: float32 to bfloat16, up or down by chance, so that the mean of what comes out is what went in.

bfloat16 keeps eight bits, so that a running mean of decay .999, which a step changes by a thousandth, would stand still
if it were rounded to the nearest. Chance comes from a hash of place and step, not from a generator: runs repeat, and a
resumed one goes on as if it had not been interrupted.

Shapes: n scalars, B tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK = (1 << 31) - 1
"""Numbers below 2^31 in int64, so that no product overflows."""

PLACE, STEP, TENSOR, START, FIRST, SECOND, ROW = (
    0x3C6EF375, 0x1B873593, 0x165667B1, 0x27D4EB2F, 0x45D9F3B1, 0x119DE1F3, 0x2545F491,
)  # fmt: skip
"""Odd multipliers."""


def salts(steps: Tensor) -> Tensor:
    """(B,) step counts -> (B,) what the numbers of each tensor begin with at that step."""
    tensors = torch.arange(len(steps), device=steps.device)
    return (steps.long() * STEP + tensors * TENSOR) & MASK


def at(salt: Tensor, start: int) -> Tensor:
    """(1,) that of a range of the tensor."""
    return (salt + start * START) & MASK


def rounded(rows: Sequence[Tensor], salt: Tensor) -> list[Tensor]:
    """Rows (n,) of numbers in bfloat16, each by chance of its own; `salt` (1,) is that of their place and step."""
    chance = _mixed(torch.arange(rows[0].shape[0], device=rows[0].device) * PLACE + salt)
    return [_moved(row, chance * (ROW + 2 * i) & MASK) for i, row in enumerate(rows)]


def _mixed(numbers: Tensor) -> Tensor:
    numbers = numbers & MASK
    for factor in (FIRST, SECOND):
        numbers = ((numbers ^ (numbers >> 15)) * factor) & MASK
    return numbers ^ (numbers >> 13)


def _moved(row: Tensor, chance: Tensor) -> Tensor:
    """Towards zero, with chance (n,), 31 bits, of one more in the last place."""
    bits = row.float().view(torch.int32) + (chance >> 15).int()
    return (bits & ~0xFFFF).view(torch.float32).bfloat16()
