"""Per-tensor statistics of a flat vector that holds many tensors one after another.

Shapes: P scalars of all parameters together, B parameters (tensors), S rows of values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LONG = 1 << 18
"""Scalars from which rows are taken one at a time. One operation on a stack of rows takes less time than many on one
row each, but a large stack is memory that the system has to provide anew at each step, and that takes longer still."""


def segment_mean(flat: Tensor, sizes: list[int]) -> Tensor:
    """(S, P) -> (S, B): the mean of each row over each tensor; 0 for an empty tensor."""
    sums = torch.stack([part.sum(-1) for part in flat.split(sizes, -1)], -1)
    return sums * sums.new_tensor([1 / max(n, 1) for n in sizes])


def segment_means(rows: Iterable[Tensor], sizes: list[int]) -> Tensor:
    """S rows (P,) -> (S, B): `segment_mean` of all of them, one at a time if they are `LONG`."""
    if sum(sizes) < LONG:
        return segment_mean(torch.stack(list(rows)), sizes)
    return torch.cat([segment_mean(row[None], sizes) for row in rows])


def segment_expand(values: Tensor, sizes: list[int]) -> Tensor:
    """(S, B) -> (S, P): each tensor's value repeated for all of its scalars.

    Slices and `cat` instead of an index: their derivative is a sum, not a scatter.
    """
    columns = values.split(1, -1)
    return torch.cat([c.expand(*values.shape[:-1], n) for c, n in zip(columns, sizes, strict=True)], -1)
