"""The end of a step on a tensor in ranges: orthogonalised where it feeds hidden neurons, bounded, decayed.

Shapes: n scalars of a range, N of a tensor, B parameters (tensors); of a wave W tensors, M members of theirs and Q
ranges; S sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.graph.made_once import made_once
from lopt.graph.tensor_classes import Matrices
from lopt.metanets.pieces import Bundle, Wave
from lopt.numerics.moments import TINY
from lopt.rules import ranges
from lopt.rules.directions import EPS
from lopt.rules.observing import View
from lopt.rules.whitening import orthogonalised_members


class Ends(NamedTuple):
    """How a wave of tensors in ranges is read, and which sums over ranges belong together."""

    reads: dict[int, Matrices]
    """Of each tensor that is orthogonalised; all of the wave are, or none is."""
    # Tensors are on the CPU and go to the values' device at each use: a graph has none.
    member: Tensor
    """(Q,) which member each range is of."""
    tensor: Tensor
    """(M,) which of the wave's tensors each member is of."""
    owner: Tensor
    """(W,) which of the graph's parameters each tensor is."""
    each: Tensor
    """(M,) scalars of each member."""
    numel: Tensor
    """(W,) scalars of each tensor."""

    @property
    def hidden(self) -> bool:
        return bool(self.reads)


@made_once
def ends_of(wave: Wave, orthogonal: bool) -> Ends | None:
    """None of tensors that are not in ranges of one member each, where an update form may be `orthogonal`."""
    reads = [read if orthogonal else None for read in wave.reads]
    for bundle, read in zip(wave.bundles, reads, strict=True):
        # One piece may be of a tensor with several members, each to be orthogonalised by itself.
        if not bundle.pieces[0].is_range or (read and read.members > 1 and not bundle.parted):
            return None
    members = [1 if read is None else read.members for read in reads]
    firsts = accumulate(members, initial=0)
    ranged = zip(firsts, wave.bundles, reads, strict=False)
    member = [first + i for first, bundle, read in ranged for i in _members_of(bundle, read)]
    owners = [bundle.owners[0] for bundle in wave.bundles]
    numels = [max(numel, 1) for numel in wave.numels]
    each = [max(n // m, 1) for n, m in zip(numels, members, strict=True) for _ in range(m)]
    with torch.device("cpu"):
        return Ends(
            {owner: read for owner, read in zip(owners, reads, strict=True) if read is not None},
            torch.tensor(member),
            torch.arange(len(owners)).repeat_interleave(torch.tensor(members)),
            torch.tensor(owners),
            torch.tensor(each),
            torch.tensor(numels),
        )


def _members_of(bundle: Bundle, read: Matrices | None) -> list[int]:
    """Which member each range of a tensor is of. One without scalars may lie behind the last."""
    if read is None:
        return [0] * len(bundle.pieces)
    numel, last = max(read.rows * read.columns, 1), read.members - 1
    return [min((sum(piece.offsets) + piece.start) // numel, last) for piece in bundle.pieces]


@dataclass(frozen=True)
class Parted:
    """A tensor in ranges of one member each, of which lists hold something for each range."""

    bundle: Bundle
    rows: list[Tensor] = field(default_factory=list)
    """(n,) the step, or what is orthogonalised; its deltas at last."""
    sums: list[list[Tensor]] = field(default_factory=list)
    """S of () over the range: of the step's squares and its products with the parameters; before these, where it is
    orthogonalised, of the squares that its rms comes from, and of its own before it is scaled."""
    lengths: list[Tensor] = field(default_factory=list)
    """(n,) or (1,) of what is orthogonalised."""
    conditioners: list[Tensor | None] = field(default_factory=list)
    """(n,) or nothing: of the same."""

    def add(self, draft: ranges.Draft) -> None:
        """The next range."""
        self.rows.append(draft.row)
        self.sums.append([x for x in (draft.squares, draft.products) if x is not None])
        if draft.length is not None:
            self.lengths.append(draft.length)
            self.conditioners.append(draft.conditioner)


def finished(
    wave: Sequence[Parted], ends: Ends, view: View, factor: Tensor, bound: Tensor, decay: Tensor | None
) -> list[Tensor]:
    """(N,) deltas of tensors that go together: factor (step - decay p).

    `factor`, `bound` and `decay` are (B,); deltas are at most as long as the bound, in the rms over the tensor. Rows
    are written in place, as over ranks all but one matrix of a wave are somebody's rows at the same time.
    """
    whole = _orthogonalised(wave, ends, view) if ends.hidden else None
    _end(wave, ends, view, factor, bound, decay)
    return whole or [_joined(tensor.rows) for tensor in wave]


def _orthogonalised(wave: Sequence[Parted], ends: Ends, view: View) -> list[Tensor]:
    """(N,) what rows are views of from here on."""

    def orthogonal(owners: Sequence[int], wholes: Sequence[Tensor]) -> list[Tensor]:
        given = [
            whole.reshape(*ends.reads[owner]).unbind() for owner, whole in zip(owners, wholes, strict=True)
        ]
        found = orthogonalised_members(given, [view.around[owner] for owner in owners])
        return [_joined([matrix.reshape(-1) for matrix in matrices]) for matrices in found]

    whole = view.held.of_whole(list(ends.reads), [tensor.rows for tensor in wave], orthogonal)
    for tensor, row in zip(wave, whole, strict=True):
        pieces = tensor.bundle.pieces
        tensor.rows[:] = row.split([sum(piece.sizes) for piece in pieces])
        for i, piece in enumerate(pieces):
            args = tensor.conditioners[i], tensor.lengths[i], piece.take(view.given.params)
            tensor.sums[i] += ranges.turned(tensor.rows[i], *args)
    return whole


def _end(
    wave: Sequence[Parted], ends: Ends, view: View, factor: Tensor, bound: Tensor, decay: Tensor | None
) -> None:
    """Rows, made deltas in place, of which all numbers are made together."""
    sums = torch.stack(list(chain(*(own for tensor in wave for own in tensor.sums))))
    member, within, owner = (x.to(sums.device) for x in (ends.member, ends.tensor, ends.owner))
    sums = sums.reshape(len(member), -1).T  # (S, Q)
    total = view.held.summed(sums.new_zeros(len(sums), len(within)).index_add_(1, member, sums))
    squares, products = total[-2:]
    if ends.hidden:
        like, own = torch.sqrt(total[:2] / ends.each.to(sums) + TINY)
        scale = like / (own + EPS)
        squares, products = scale * scale * squares, scale * products
    scaled = torch.stack([squares, products])
    mean, along = sums.new_zeros(2, len(owner)).index_add_(1, within, scaled) / ends.numel.to(sums)
    given = [factor, bound] if decay is None else [factor, bound, decay, view.stats.param]
    factor, bound, *shorter = torch.stack(given).index_select(1, owner)
    if decay is not None:
        # Of the square of a difference, as the difference itself is made only once its factor is known.
        mean = mean + shorter[0] * (shorter[0] * shorter[1].square() - 2 * along)
    factor = torch.minimum(factor, bound / torch.sqrt(mean.clamp(min=0) + TINY))
    scales = factor.index_select(0, within)
    scales = (scales * scale if ends.hidden else scales).index_select(0, member)
    shrinks = [None] * len(wave) if decay is None else (-factor * shorter[0]).split(1)
    numbers = iter(scales.split(1))
    for tensor, shrink in zip(wave, shrinks, strict=True):
        for row, piece in zip(tensor.rows, tensor.bundle.pieces, strict=True):
            ranges.ended(row, piece.take(view.given.params), next(numbers), shrink)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
