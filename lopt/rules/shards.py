"""Who holds what of a network's tensors: one process all of them, or each of several ranks some rows of every one.

A step over rows that are spread over ranks needs three things of the others: sums over tensors, matrices that come
together where they are orthogonalised, and agreement. Shapes: B parameters (tensors), N ranks, n scalars held here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import is_hidden_matrix, matrices_of
from lopt.metanets.pieces import CACHED, LARGE, Bundle, Piece, Wave, together, units

FEW = 1 << 14
"""Numbers, counted once for each rank, up to which a sum costs its waits and not its bytes."""

Function = Callable[[Sequence[int], Sequence[Tensor]], list[Tensor]]
"""Of tensors by their numbers, each (numel,) -> (numel,)."""
Rows = Sequence[list[Tensor]]
"""For each tensor of a wave the pieces (n,) that are held of it."""


class Beside(NamedTuple):
    """What goes with a hidden matrix to where it is made whole. All flat, and of each what is held here."""

    gradient: Tensor
    """(n,) cut as the parameter is."""
    state: list[Tensor]
    """Of any lengths, cut evenly."""
    lengths: list[int]
    """Of each of the state, over all ranks."""
    changed: int
    """How many of the state, from the first on, come back."""


BesideFunction = Callable[[int, Tensor, list[Tensor]], list[Tensor]]
"""A parameter's number, its gradient and its state, whole -> its next state."""


class OneProcess:
    """One process holds all of every tensor."""

    def summed(self, values: Tensor) -> Tensor:
        """Contiguous sums over the scalars held here, made in place those over the scalars of all ranks."""
        return values

    def with_owners(self, given: Mapping[int, Beside], function: BesideFunction) -> dict[int, list[Tensor]]:
        """`function` of what goes with each hidden matrix, where that is made whole: what is held of its results."""
        return {owner: function(owner, beside.gradient, beside.state) for owner, beside in given.items()}

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
        ranks = len(self.held[0])
        if ranks * values.numel() > FEW:
            torch.distributed.all_reduce(values, group=self.group)
            return values
        # A ring waits 2 (N - 1) times for its neighbour; what everyone tells everyone else is there at once.
        heard = values.new_empty(ranks, *values.shape)
        told = values.expand(ranks, *values.shape).contiguous()
        torch.distributed.all_to_all_single(heard, told, group=self.group)
        return torch.sum(heard, 0, out=values)

    def agree(self, here: Tensor | bool) -> Any:
        """Whether it is so on every rank, as a value or () bool as it was given."""
        told = isinstance(here, Tensor)
        flag = here.int() if isinstance(here, Tensor) else torch.tensor(int(here), device="cpu")
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, self.group)
        return flag.bool() if told else bool(flag)

    def with_owners(self, given: Mapping[int, Beside], function: BesideFunction) -> dict[int, list[Tensor]]:
        found: dict[int, list[Tensor]] = {}
        for wave in self.waves:
            owners = [bundle.owners[0] for bundle in wave.bundles]
            if not given.keys().isdisjoint(owners):
                found |= self._with_owners(owners, given, function)
        return found

    def _with_owners(
        self, owners: list[int], given: Mapping[int, Beside], function: BesideFunction
    ) -> dict[int, list[Tensor]]:
        ranks = len(self.held[owners[0]])
        mine = owners[self.rank] if self.rank < len(owners) else None
        none = next(iter(given.values())).gradient[:0]
        # By owner, what each rank holds of every tensor.
        parts = {
            owner: [self.held[owner], *(_chunks(length, ranks) for length in given[owner].lengths)]
            for owner in owners
            if owner in given
        }
        sent, got = _sizes(owners, parts, mine, self.rank, ranks)
        values = torch.cat([none, *(x for owner in parts for x in self._held(given[owner]))])
        arrived = self._exchanged(values, sent, got).split(got)
        result = none
        back = {owner: own[1 : 1 + given[owner].changed] for owner, own in parts.items()}
        if mine in parts:
            each = [x.split(list(n)) for x, n in zip(arrived, zip(*parts[mine], strict=True), strict=True)]
            gradient, *state = [torch.cat(tensor) for tensor in zip(*each, strict=True)]
            cut = [x.split(n) for x, n in zip(function(mine, gradient, state), back[mine], strict=False)]
            result = torch.cat([none, *(part for rank in zip(*cut, strict=True) for part in rank)])
        sent, got = _sizes(owners, back, mine, self.rank, ranks)
        rows = iter(
            self._exchanged(result, got, sent).split([n[self.rank] for own in back.values() for n in own])
        )
        return {owner: [next(rows) for _ in own] for owner, own in back.items()}

    def _held(self, beside: Beside) -> list[Tensor]:
        """The gradient, and this rank's part of state that a step on gathered tensors may have left whole."""
        parts = [beside.gradient]
        for values, length in zip(beside.state, beside.lengths, strict=True):
            sizes = _chunks(length, len(self.held[0]))
            whole = len(values) != sizes[self.rank]
            parts.append(values.split(sizes)[self.rank] if whole else values)
        return parts

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


def _sizes(
    owners: list[int], parts: Mapping[int, list[list[int]]], mine: int | None, rank: int, ranks: int
) -> tuple[list[int], list[int]]:
    """How many scalars a rank sends to each other one, which has the owner of its place, and gets for its own."""
    sent = [sum(n[rank] for n in parts.get(owner, ())) for owner in owners]
    own = [] if mine is None else parts.get(mine, [])
    return sent + [0] * (ranks - len(owners)), [sum(n[other] for n in own) for other in range(ranks)]


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
