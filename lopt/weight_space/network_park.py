"""Trained networks of many architectures as data: a `NetworkSet` for each, never padded to one shape.

    park = load_park("park.safetensors")
    park.split("train").columns["accuracy"]

Shapes: N networks in all, B of them in a batch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from lopt import files
from lopt.errors import DataError, RuleFileError
from lopt.weight_space.architecture import Architecture, architecture_of
from lopt.weight_space.network_set import (
    GRAPH,
    GRAPHS,
    PARAMETER,
    NetworkSet,
    Tensors,
    in_split,
    load,
    told_of,
)

FORMAT, VERSION = "lopt-park", 1
TOGETHER = 8
"""Networks of one architecture in a batch, where there are as many: each is not a graph of its own to run."""


class Part(NamedTuple):
    """Those networks of a batch that have one architecture."""

    of: Architecture
    params: Tensors
    """(b, *shape) of every parameter."""


class Mixed(NamedTuple):
    """A batch of networks of several architectures."""

    parts: tuple[Part, ...]
    order: Tensor
    """(B): where in the batch that was asked for each of them is, part by part."""

    def placed(self, found: Sequence[Tensor]) -> Tensor:
        """What was found for each part (b, ...) -> (B, ...), in the order of the batch."""
        whole = torch.cat(list(found))
        return torch.empty_like(whole).index_copy(0, self.order.to(whole.device), whole)


@dataclass(frozen=True, eq=False, repr=False)
class NetworkPark:
    """N networks, those of one architecture one behind another."""

    sets: tuple[NetworkSet, ...]
    header: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: how they were made, and where they come from."""

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def __repr__(self) -> str:
        return f"NetworkPark({told_of(self.splits, self.columns)}; {len(self.sets)} architectures)"

    @cached_property
    def columns(self) -> Tensors:
        """(N) each: whatever is known of all of them."""
        return {
            name: torch.cat([own.columns[name] for own in self.sets])
            for name in self.sets[0].columns
            if all(name in own.columns for own in self.sets)
        }

    @cached_property
    def splits(self) -> Tensor:
        """(N) index in `SPLITS`."""
        return torch.cat([own.splits for own in self.sets])

    @cached_property
    def architectures(self) -> Tensor:
        """(N): the number of each network's architecture among those here."""
        counts = torch.tensor([len(own) for own in self.sets], device=self.splits.device)
        return torch.repeat_interleave(counts)

    @property
    def widest(self) -> NetworkSet:
        """The first of those that see most, such as images in colour."""
        return self.sets[max(range(len(self.sets)), key=lambda own: self._each[own].inputs)]

    @cached_property
    def _each(self) -> tuple[Architecture, ...]:
        return tuple(map(architecture_of, self.sets))

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return tuple(itertools.accumulate([0, *map(len, self.sets)]))

    def select(self, index: Tensor) -> NetworkPark:
        """Those that an index or a mask chooses, architecture by architecture."""
        found = [(own, own_index) for own, own_index, _ in self._chosen(index)]
        if not found:
            raise DataError("networks: expected one or more, found none")
        return replace(self, sets=tuple(self.sets[own].select(rows) for own, rows in found))

    def split(self, name: str) -> NetworkPark:
        """Those of one of the `SPLITS`. Raises `DataError` if there are none."""
        return self.select(in_split(self.splits, name))

    def joined(self, other: NetworkPark) -> NetworkPark:
        """These and then the others, which have other architectures."""
        return replace(self, sets=(*self.sets, *other.sets))

    def headed(self, header: Mapping[str, Any]) -> NetworkPark:
        """The same with another header, tensors in the order in which a file has them."""
        return replace(self, sets=tuple(own.headed(own.header) for own in self.sets), header=header)

    def batch(self, index: Tensor) -> Mixed:
        """Those that an index (B) chooses, for a reader."""
        chosen = list(self._chosen(index))
        parts = tuple(Part(self._each[own], self.sets[own].batch(rows)) for own, rows, _ in chosen)
        return Mixed(parts, torch.cat([places for _, _, places in chosen]))

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """(N): all in a random order, of each architecture `TOGETHER` behind each other."""
        lots = [
            lot
            for start, own in zip(self._starts, self.sets, strict=False)
            for lot in (start + torch.randperm(len(own), generator=generator)).split(TOGETHER)
        ]
        return torch.cat([lots[n] for n in torch.randperm(len(lots), generator=generator).tolist()])

    @cached_property
    def finite(self) -> Tensor:
        """(N): whether all weights are."""
        return torch.cat([own.finite for own in self.sets])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        tensors = {f"{n}:{name}": v for n, own in enumerate(self.sets) for name, v in own.tensors().items()}
        sets = [{**own.header, **own.told()} for own in self.sets]
        files.write(path, tensors, FORMAT, {**self.header, "sets": sets, "version": VERSION})

    def _chosen(self, index: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Of each architecture concerned: its number, the rows in its set, and their places in the index."""
        index = index.nonzero().flatten() if index.dtype == torch.bool else index
        owners = self.architectures[index]
        found = []
        for own in owners.unique().tolist():
            places = (owners == own).nonzero().flatten()
            found.append((own, index[places] - self._starts[own], places))
        return found


def load_any(path: str | os.PathLike[str]) -> NetworkSet | NetworkPark:
    """A park or a set of networks, whichever a file has."""
    return load_park(path) if files.is_of(files.user_path(path), FORMAT) else load(path)


def load_park(path: str | os.PathLike[str]) -> NetworkPark:
    """What `NetworkPark.save` wrote. Raises `DataError` if it isn't there, `RuleFileError` if it is damaged."""
    path = files.user_path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of networks, found none; `lopt weights make` makes one")
    tensors, header = files.read(path, FORMAT, VERSION)
    own: dict[str, Tensors] = {}
    for name, value in tensors.items():
        place, _, rest = name.partition(":")
        own.setdefault(place, {})[rest] = value
    sets = []
    for number, said in enumerate(header.pop("sets", [])):
        try:
            found = own[str(number)]
            graph = GRAPHS.validate_python(said.pop(GRAPH)) if GRAPH in said else None
            params = {n.removeprefix(PARAMETER): v for n, v in found.items() if n.startswith(PARAMETER)}
            columns = {n: v for n, v in found.items() if not n.startswith(PARAMETER) and n != "split"}
            sets.append(NetworkSet(params, columns, found["split"], said, graph))
        except (ValidationError, KeyError):
            raise RuleFileError(f"{path}: set {number} of these networks is damaged") from None
    if not sets:
        raise RuleFileError(f"{path}: expected networks, found none")
    return NetworkPark(tuple(sets), header)
