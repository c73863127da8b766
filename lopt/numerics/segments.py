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
    return means_of(segment_sum(flat, sizes), sizes)


def segment_sum(flat: Tensor, sizes: list[int]) -> Tensor:
    """(S, P) -> (S, B): the sum of each row over each tensor."""
    return torch.stack([part.sum(-1) for part in flat.split(sizes, -1)], -1)


def segment_sums(rows: Iterable[Tensor], sizes: list[int]) -> Tensor:
    """S rows (P,) -> (S, B): `segment_sum` of all of them, one at a time if they are of one tensor or `LONG`."""
    if len(sizes) > 1 and sum(sizes) < LONG:
        return segment_sum(torch.stack(list(rows)), sizes)
    return torch.cat([segment_sum(row[None], sizes) for row in rows])


def means_of(sums: Tensor, sizes: list[int]) -> Tensor:
    """(S, B) sums over tensors of these sizes -> (S, B) means."""
    return sums * sums.new_tensor([1 / max(n, 1) for n in sizes])


def segment_expand(values: Tensor, sizes: list[int], index: Tensor | None = None) -> Tensor:
    """(..., B) -> (..., P): each tensor's value repeated for all of its scalars.

    Slices and `cat` instead of an index: their derivative is a sum, not a scatter. Where no derivative is wanted an
    `index` (P,), which tensor each scalar is of, is faster. Of one tensor it is a view.
    """
    if len(sizes) == 1:
        return values.expand(*values.shape[:-1], sizes[0])
    if index is not None:
        return values.index_select(-1, index)
    columns = values.split(1, -1)
    return torch.cat([c.expand(*values.shape[:-1], n) for c, n in zip(columns, sizes, strict=True)], -1)
