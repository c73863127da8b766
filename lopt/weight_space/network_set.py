"""Many trained networks of one architecture as data: their weights, and what is known of each.

networks = load("mnist.safetensors")
networks.split("train").columns["label"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lopt import files
from lopt.errors import DataError

Tensors = dict[str, Tensor]

FORMAT, VERSION = "lopt-networks", 1
SPLITS = ("train", "validation", "test")
PARAMETER = "parameter:"
"""Before the names of parameters in a file; columns have their own."""


@dataclass(frozen=True)
class NetworkSet:
    """N networks."""

    params: Tensors
    """(N, *shape) of every parameter."""
    columns: Tensors
    """(N) each: "label", "seed", "image", "psnr", "accuracy"..., whatever is known of them."""
    splits: Tensor
    """(N) index in `SPLITS`. Networks that share their data are in one split."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: the architecture, how they were made, and where they come from."""

    def __len__(self) -> int:
        return len(self.splits)

    def select(self, index: Tensor) -> NetworkSet:
        """Those that an index or a mask chooses."""
        params = {name: value[index] for name, value in self.params.items()}
        columns = {name: value[index] for name, value in self.columns.items()}
        return replace(self, params=params, columns=columns, splits=self.splits[index])

    def split(self, name: str) -> NetworkSet:
        """Those of one of the `SPLITS`. Raises `DataError` if there are none."""
        chosen = self.splits == SPLITS.index(name)
        if not chosen.any():
            raise DataError(f"networks: expected some of the split {name!r}, found none among {len(self)}")
        return self.select(chosen)

    def joined(self, other: NetworkSet) -> NetworkSet:
        """These and then the others, of the same architecture."""
        params = {name: torch.cat([value, other.params[name]]) for name, value in self.params.items()}
        columns = {name: torch.cat([value, other.columns[name]]) for name, value in self.columns.items()}
        return replace(self, params=params, columns=columns, splits=torch.cat([self.splits, other.splits]))

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        params = {PARAMETER + name: value for name, value in self.params.items()}
        files.write(
            path,
            {**params, **self.columns, "split": self.splits},
            FORMAT,
            {**self.header, "version": VERSION},
        )


def load(path: Path) -> NetworkSet:
    """What `NetworkSet.save` wrote. Raises `DataError` if it isn't there, `RuleFileError` if it is damaged."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file of networks, found none; `lopt weights make` makes one")
    tensors, header = files.read(path, FORMAT, VERSION)
    params = {n.removeprefix(PARAMETER): v for n, v in tensors.items() if n.startswith(PARAMETER)}
    columns = {n: v for n, v in tensors.items() if not n.startswith(PARAMETER) and n != "split"}
    return NetworkSet(params, columns, tensors["split"], header)
