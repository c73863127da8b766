"""What tests of tasks share."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(tensors: Any, index: int | slice = 0) -> Any:
    return tree_map(lambda tensor: tensor[index], tensors)


def to_double(tensors: Any) -> Any:
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, tensors)
