"""What one piece of a network holds of its blocks: rows of some, read as matrices, and neurons of vectors.

Shapes: n scalars of a piece, r rows and c columns of a block as a matrix, F channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.metanets.pieces import Piece
from lopt.metanets.plan import Matrix, Plan, axes_of_block, in_rows


class Strip(NamedTuple):
    """The rows from `start` to `stop` of a block as a matrix."""

    matrix: Matrix
    start: int
    stop: int


class Place(NamedTuple):
    """Where scalars of a block lie in a piece: from `start` to `stop`, or in a box of these, read as a tensor."""

    start: int
    stop: int
    shape: tuple[int, ...] = ()
    box: tuple[slice, ...] = ()

    def of(self, flat: Tensor) -> Tensor:
        """(F, n) -> (F, m), or a box (F, ...) of it, as a view."""
        own = flat[:, self.start : self.stop]
        return own.reshape(-1, *self.shape)[(slice(None), *self.box)] if self.box else own


@dataclass(frozen=True, eq=False)
class Cutout:
    """The parts of a piece: one for each strip, and at last, if there are any, one of all vectors."""

    strips: tuple[Strip, ...]
    places: tuple[Place, ...]
    """Of the strips, then of the vectors."""
    vectors: tuple[tuple[int, int], ...]
    """Blocks of one out axis, and which of their scalars is the first here."""
    vector_blocks: Tensor
    """(m,) the block of each scalar of vectors."""
    vector_neurons: Tensor
    """(m,) its neuron."""

    def split(self, flat: Tensor) -> list[Tensor]:
        """(F, n) -> the parts, (F, m) each."""
        parts = [place.of(flat).reshape(len(flat), -1) for place in self.places]
        return self._together(parts)

    def join(self, parts: Sequence[Tensor], n: int) -> Tensor:
        """The inverse of `split`."""
        if len(parts) == 1 and parts[0].shape[1] == n and not self.places[0].box:
            return parts[0]
        flat = parts[0].new_empty(len(parts[0]), n)
        own = [*parts[: len(self.strips)], *(vector for *_, vector in self.of_vectors(parts))]
        for place, part in zip(self.places, own, strict=True):
            target = place.of(flat)
            target.copy_(part.reshape(target.shape))
        return flat

    def of_vectors(self, parts: Sequence[Tensor]) -> list[tuple[int, int, Tensor]]:
        """Block, first scalar and (F, m) of each vector."""
        if not self.vectors:
            return []
        sizes = [place.stop - place.start for place in self.places[len(self.strips) :]]
        vectors = zip(self.vectors, parts[-1].split(sizes, -1), strict=True)
        return [(*vector, part) for vector, part in vectors]

    def _together(self, parts: list[Tensor]) -> list[Tensor]:
        strips, vectors = parts[: len(self.strips)], parts[len(self.strips) :]
        return [*strips, torch.cat(vectors, -1)] if vectors else strips


def cutout(graph: ParameterGraph, plan: Plan, piece: Piece) -> Cutout:
    """The parts of one piece."""
    names = list(graph.parameters)
    blocks: dict[str, list[int]] = {}
    for index, block in enumerate(plan.blocks):
        blocks.setdefault(block.parameter, []).append(index)
    strips: list[tuple[Strip, Place]] = []
    vectors: list[tuple[int, int, Place]] = []
    offset = 0
    offsets = piece.offsets or (0,) * len(piece.owners)
    for owner, size, before in zip(piece.owners, piece.sizes, offsets, strict=True):
        own = blocks.get(names[owner], [])
        shape, alone, at = graph.shapes[owner], len(own) == 1, piece.start + before
        for index in own:
            block = plan.blocks[index]
            matrix = in_rows(graph, plan, index)
            if alone:
                place = Place(offset, offset + size)
                rows = slice(at // matrix.shape[1], (at + size) // matrix.shape[1])
            else:
                row = prod(shape[1:])
                first, last = at // row, (at + size) // row
                leading = block.slices[0]
                begin, end = max(leading.start, first), min(leading.stop, last)
                if begin >= end:
                    continue
                box = (slice(begin - first, end - first), *block.slices[1:])
                place = Place(offset, offset + size, (last - first, *shape[1:]), box)
                rows = slice(begin - leading.start, end - leading.start)
                if len(shape) == 1:
                    place = Place(offset + box[0].start, offset + box[0].stop)
            if block.roles == ("out",):
                vectors.append((index, rows.start, place))
            else:
                strips.append((Strip(matrix, rows.start, rows.stop), place))
        offset += size
    starts = [axes_of_block(plan, plan.blocks[index])[0].start + begin for index, begin, _ in vectors]
    sizes = [place.stop - place.start for *_, place in vectors]
    empty = torch.arange(0)
    return Cutout(
        tuple(strip for strip, _ in strips),
        (*(place for _, place in strips), *(place for *_, place in vectors)),
        tuple((index, begin) for index, begin, _ in vectors),
        torch.cat([empty, *(torch.full((n,), i) for (i, *_), n in zip(vectors, sizes, strict=True))]),
        torch.cat([empty, *(torch.arange(s, s + n) for s, n in zip(starts, sizes, strict=True))]),
    )
