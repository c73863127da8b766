"""Tables in memory, split into train, validation and test, every column standardised by the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meta_tasks.data.images import rank_within_class

Table = Literal["breast_cancer", "wine", "diabetes"]
"""The tables by the names that scikit-learn gives them."""


@dataclass(frozen=True)
class TableSet:
    """Inputs (N, columns) of each split and their targets: labels (N,), or values (N, 1) of mean 0 and variance 1."""

    name: str
    classes: int
    """Number of classes; 0 if the targets are values."""
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]

    @property
    def columns(self) -> int:
        return self.inputs["train"].shape[1]


def load_table(name: str, device: str | torch.device = "cpu") -> TableSet:
    """A table that comes with scikit-learn, split 7 : 1 : 2 (within each class); kept for the whole process."""
    return _load(name, str(device))


@cache
def _load(name: str, device: str) -> TableSet:
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")()
    values = torch.from_numpy(np.asarray(table.data, dtype=np.float64))
    classes = len(table.target_names) if "target_names" in table else 0
    targets = torch.from_numpy(np.asarray(table.target))
    targets = targets.long() if classes else targets.double().unsqueeze(1)
    rank = rank_within_class(targets if classes else torch.zeros(len(targets))) % 10
    masks = {"train": rank >= 3, "validation": rank == 2, "test": rank < 2}
    inputs = _standardised(values, masks["train"])
    targets = targets if classes else _standardised(targets, masks["train"])
    by_split = [{split: x[mask].to(device) for split, mask in masks.items()} for x in (inputs, targets)]
    return TableSet(name, classes, *by_split)


def _standardised(columns: Tensor, train: Tensor) -> Tensor:
    """(N, C) -> (N, C) in float32, of mean 0 and variance 1 over the training rows."""
    mean, std = columns[train].mean(0), columns[train].std(0)
    return ((columns - mean) / std).float()
