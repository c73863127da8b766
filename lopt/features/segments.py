"""Per-tensor statistics of a flat vector that holds many tensors one after another.

Shapes: P scalars of all parameters together, B parameters (tensors), S rows of values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_mean(flat: Tensor, sizes: list[int]) -> Tensor:
    """(S, P) -> (S, B): the mean of each row over each tensor; 0 for an empty tensor."""
    sums = torch.stack([part.sum(-1) for part in flat.split(sizes, -1)], -1)
    return sums * sums.new_tensor([1 / max(n, 1) for n in sizes])


def segment_expand(values: Tensor, sizes: list[int]) -> Tensor:
    """(S, B) -> (S, P): each tensor's value repeated for all of its scalars.

    Slices and `cat` instead of an index: their derivative is a sum, not a scatter.
    """
    columns = values.split(1, -1)
    return torch.cat([c.expand(*values.shape[:-1], n) for c, n in zip(columns, sizes, strict=True)], -1)
