"""Blocks that repeat: stretches of parameters that follow each other and differ only in which neurons they connect.

They are found from the graph, not from names: twelve layers of a transformer have the same shapes, kinds and
activations in the same order, and going from one to the next moves every group to the one in its place, or leaves it
where it is (the residual stream). Names only decide where a block begins if several beginnings would do.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from lopt.graph.spec import AxisSpec, GraphSpec, ParameterSpec

FEWEST = 3
"""Blocks that are worth folding."""


class Fold(NamedTuple):
    """Blocks that are alike, in order of depth; each holds as many parameters, in the same order."""

    blocks: tuple[tuple[ParameterSpec, ...], ...]

    def groups(self, block: int) -> list[int]:
        """The groups on the axes of a block, in a fixed order, so that those of two blocks correspond."""
        return list(
            itertools.chain.from_iterable(s for p in self.blocks[block] for axis in p.axes for s in axis)
        )

    def shift(self) -> dict[int, int] | None:
        """The groups of each block -> those in the same places of the next one; None if this is no one-to-one map.

        One map for all blocks: a residual stream stays, h1 -> h2 -> h3 moves along a chain of layers. The two
        convolutions of a residual block, from and to the stream, are no two blocks: the stream would go to another
        group each time.
        """
        pairs = {
            pair
            for k in range(len(self.blocks) - 1)
            for pair in zip(self.groups(k), self.groups(k + 1), strict=True)
        }
        shift = dict(pairs)
        return shift if len(shift) == len(pairs) == len(set(shift.values())) else None


def folds(graph: GraphSpec) -> list[Fold]:
    """The blocks of a graph that repeat at least `FEWEST` times, the longest runs first; no two overlap."""
    order = sorted(graph.parameters.values(), key=lambda spec: spec.depth)
    looks = [_look(graph, spec) for spec in order]
    kept: list[Fold] = []
    stretches = [(0, len(order))]
    while stretches:
        start, end = stretches.pop()
        candidates = sorted(_candidates(looks[start:end]), key=lambda c: (-c.length * c.blocks, c.length))
        best = next(_best(graph, order[start:end], candidates), None)
        if best is not None:
            fold, first, last = best
            kept.append(fold)
            stretches += [(start, start + first), (start + last, end)]
    return kept


def shared_name(names: Sequence[str]) -> str:
    """What names have in common, with * for the parts that differ: blocks.*.weight."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) > 1:
        return f"{names[0]} ... {names[-1]}"
    return ".".join(column[0] if len(set(column)) == 1 else "*" for column in zip(*parts, strict=True))


class _Candidate(NamedTuple):
    """`blocks` blocks of `length` parameters that look alike, beginning anywhere from `first` to `latest`."""

    first: int
    latest: int
    length: int
    blocks: int


def _look(graph: GraphSpec, spec: ParameterSpec) -> Hashable:
    """All of a parameter but its name, its depth and which groups it connects."""

    def axis_look(axis: AxisSpec) -> Hashable:
        groups = [[graph.groups[g] for g in segment] for segment in axis]
        return tuple(
            tuple((g.size, g.kind, g.permutable, g.activation) for g in segment) for segment in groups
        )

    return spec.shape, spec.kind, spec.block_kinds, spec.roles, tuple(map(axis_look, spec.axes))


def _candidates(looks: Sequence[Hashable]) -> Iterator[_Candidate]:
    for length in range(1, len(looks) // FEWEST + 1):
        same = [a == b for a, b in zip(looks, looks[length:], strict=False)]
        start = 0
        for alike, run in itertools.groupby(same):
            size = len(list(run))
            count = size // length + 1
            if alike and count >= FEWEST:
                yield _Candidate(start, start + size + length - count * length, length, count)
            start += size


def _best(
    graph: GraphSpec, order: Sequence[ParameterSpec], candidates: Sequence[_Candidate]
) -> Iterator[tuple[Fold, int, int]]:
    """Folds that hold, and where they begin and end, best first."""
    for candidate in candidates:
        size = candidate.length * candidate.blocks
        begins = sorted(
            range(candidate.first, candidate.latest + 1), key=lambda k: _oddness(order, k, candidate)
        )
        for begin in begins:
            starts = range(begin, begin + size, candidate.length)
            fold = Fold(tuple(tuple(order[k : k + candidate.length]) for k in starts))
            if _holds(graph, fold):
                yield fold, begin, begin + size


def _oddness(order: Sequence[ParameterSpec], begin: int, candidate: _Candidate) -> int:
    """How badly a beginning suits the names: 1 where all of the first block differ from the second by one word alone.

    The words of the first block are counted: those of layers.0 and layers.1 in one are a beginning in mid-layer.
    """
    words: set[tuple[int, str]] = set()
    for k in range(begin, begin + candidate.length):
        pair = (order[k].name.split("."), order[k + candidate.length].name.split("."))
        words.update((n, a) for n, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
    return len(words)


def _holds(graph: GraphSpec, fold: Fold) -> bool:
    """Whether blocks differ by one shift of groups, and no group of those between first and last is read elsewhere."""
    if not any({"in", "out"} <= set(spec.roles) for spec in fold.blocks[0]):
        return False
    if fold.shift() is None:
        return False
    inside = {spec.name for block in fold.blocks for spec in block}
    outside = {
        g
        for spec in graph.parameters.values()
        if spec.name not in inside
        for axis in spec.axes
        for s in axis
        for g in s
    }
    ends = {*fold.groups(0), *fold.groups(len(fold.blocks) - 1)}
    middle = {g for k in range(1, len(fold.blocks) - 1) for g in fold.groups(k)}
    return not (middle - ends) & outside
