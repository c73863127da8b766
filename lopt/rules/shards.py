"""Who holds what of a network's tensors: one process all of them, or each of several ranks some rows of every one.

A step over rows that are spread over ranks needs three things of the others: sums over tensors, matrices that come
together where they are orthogonalised, and agreement. Shapes: B parameters (tensors), N ranks, n scalars held here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import is_hidden_matrix, matrices_of
from lopt.metanets.pieces import CACHED, LARGE, Bundle, Piece, Wave, together, units

Function = Callable[[Sequence[int], Sequence[Tensor]], list[Tensor]]
"""Of tensors by their numbers, each (numel,) -> (numel,)."""
Rows = Sequence[list[Tensor]]
"""For each tensor of a wave the pieces (n,) that are held of it."""


class OneProcess:
    """One process holds all of every tensor."""

    def summed(self, values: Tensor) -> Tensor:
        """Contiguous sums over the scalars held here, made in place those over the scalars of all ranks."""
        return values

    def whole(self, owner: int, rows: Tensor) -> Tensor:
        """What is held of a tensor -> all of it, flat, on every rank."""
        return rows

    def of_whole(self, owners: Sequence[int], rows: Rows, function: Function) -> list[Tensor]:
        """`function` of whole tensors (`owners`) of one wave: what is held of each, in pieces -> (n,).

        Takes the pieces away, for the memory.
        """
        return function(owners, [_taken([row]) for row in rows])


@dataclass(frozen=True, eq=False)
class Shards(OneProcess):
    """Every rank holds consecutive rows of each tensor's first axis, as FSDP2 cuts them.

    Each hidden matrix is made whole on one rank: those of a wave, as many as there are ranks and of about the same
    cost, at the same time. So nobody ever holds more than one of them beside its rows.
    """

    group: Any
    """A `torch.distributed.ProcessGroup`; None: the default one."""
    rank: int
    held: list[list[int]]
    """(B, N) how many scalars of each tensor each rank holds."""
    waves: list[Wave]
    """What is finished together: hidden matrices, each of which the rank of its place in the wave makes whole; or
    other tensors."""

    @classmethod
    def of(cls, graph: ParameterGraph, rank: int, ranks: int, group: Any = None) -> Shards:
        """Rows are dealt out as by `torch.chunk`, which leaves the last ranks fewer or none."""
        held = [
            [numel // max(rows, 1) * n for n in _chunks(rows, ranks)]
            for numel, rows in ((spec.numel, (*spec.shape, 1)[0]) for spec in graph.parameters.values())
        ]
        return cls(group, rank, held, _waves(graph, held, rank, ranks))

    def summed(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values, group=self.group)
        return values

    def agree(self, here: Tensor | bool) -> Any:
        """Whether it is so on every rank, as a value or () bool as it was given."""
        told = isinstance(here, Tensor)
        flag = here.int() if isinstance(here, Tensor) else torch.tensor(int(here), device="cpu")
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, self.group)
        return flag.bool() if told else bool(flag)

    def whole(self, owner: int, rows: Tensor) -> Tensor:
        held = self.held[owner]
        return self._exchanged(rows.flatten().repeat(len(held)), [rows.numel()] * len(held), held)

    def of_whole(self, owners: Sequence[int], rows: Rows, function: Function) -> list[Tensor]:
        there = [sum(map(len, row)) for row in rows]
        sent = there + [0] * (len(self.held[owners[0]]) - len(there))
        mine = owners[self.rank] if self.rank < len(owners) else None
        got = [0] * len(sent) if mine is None else self.held[mine]
        # Rows lie in the order of the ranks, so what arrives is the tensor.
        whole = self._exchanged(_taken(rows), sent, got)
        if mine is not None:
            whole = function([mine], [whole])[0].contiguous()
        return list(self._exchanged(whole, got, sent).split(there))

    def _exchanged(self, values: Tensor, sent: list[int], got: list[int]) -> Tensor:
        result = values.new_empty(sum(got))
        torch.distributed.all_to_all_single(result, values, got, sent, group=self.group)
        return result


def _taken(rows: Rows) -> Tensor:
    pieces = [piece for row in rows for piece in row]
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    del pieces
    for row in rows:
        row.clear()
    return joined


ALONE = OneProcess()


def _chunks(rows: int, ranks: int) -> list[int]:
    most = -(-rows // ranks)
    return [min(max(rows - rank * most, 0), most) for rank in range(ranks)]


def _waves(graph: ParameterGraph, held: list[list[int]], rank: int, ranks: int) -> list[Wave]:
    """The same on every rank, but for the scalars in them."""
    hidden: list[tuple[int, int]] = []
    large: list[int] = []
    small: list[int] = []
    for owner, (name, numel) in enumerate(zip(graph.parameters, graph.sizes, strict=True)):
        if is_hidden_matrix(graph, name) and numel:
            matrices = matrices_of(graph, name)
            hidden.append((numel * min(matrices.rows, matrices.columns), owner))
        else:
            (large if numel >= LARGE else small).append(owner)
    costly = [owner for _, owner in sorted(hidden, reverse=True)]
    waves = [costly[start : start + ranks] for start in range(0, len(costly), ranks)]
    waves += [[owner] for owner in large]
    before, sizes = [sum(counts[:rank]) for counts in held], [counts[rank] for counts in held]
    bundles = [
        *([_large(graph, owner, before[owner], sizes[owner]) for owner in wave] for wave in waves),
        *([_small(owners, before, sizes)] for owners in together(small, graph.sizes)),
    ]
    return [Wave.of(graph, wave) for wave in bundles]


def _small(owners: list[int], before: list[int], sizes: list[int]) -> Bundle:
    offsets = tuple(before[owner] for owner in owners)
    return Bundle([Piece(owners, [sizes[owner] for owner in owners], offsets=offsets)])


def _members(graph: ParameterGraph, name: str) -> int:
    return matrices_of(graph, name).members if is_hidden_matrix(graph, name) else 1


def in_whole_rows(graph: ParameterGraph) -> bool:
    """Whether a piece can be of one member and hold whole rows, too: not below two axes of members."""
    specs = zip(graph.parameters.values(), units(graph), strict=True)
    return all(spec.numel // _members(graph, spec.name) % max(unit, 1) == 0 for spec, unit in specs)


def _large(graph: ParameterGraph, owner: int, before: int, size: int) -> Bundle:
    """What is held of one tensor, from scalar `before` on, in pieces of whole rows of one member each."""
    members = _members(graph, list(graph.parameters)[owner])
    member = graph.sizes[owner] // members
    unit = units(graph)[owner]
    step = max(CACHED // unit, 1) * unit
    inner = {start + i for start in range(0, members * member, member) for i in range(0, member, step)}
    cuts = sorted({before, before + size, *(cut for cut in inner if before < cut < before + size)})
    bounds = list(pairwise(cuts)) or [(before, before)]
    return Bundle([Piece([owner], [b - a], a - before, offsets=(before,)) for a, b in bounds])
