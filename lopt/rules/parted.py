"""The end of a step on a tensor in ranges: orthogonalised where it feeds hidden neurons, bounded, decayed.

Shapes: n scalars of a range, N of a tensor, B parameters (tensors), M members, S sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain

import torch
from torch import Tensor

from lopt.graph.tensor_classes import Matrices
from lopt.metanets.pieces import Bundle
from lopt.numerics.moments import TINY
from lopt.numerics.newton_schulz import orthogonalised
from lopt.rules import ranges
from lopt.rules.directions import EPS
from lopt.rules.observing import View


@dataclass(frozen=True)
class Parted:
    """A tensor in ranges of one member each, of which lists hold something for each range."""

    bundle: Bundle
    read: Matrices | None
    """How a hidden tensor is read as matrices."""
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

    @property
    def owner(self) -> int:
        return self.bundle.owners[0]

    @property
    def members(self) -> int:
        """M."""
        return 1 if self.read is None else self.read.members

    @property
    def member_of(self) -> list[int]:
        """Which member each range is of. One without scalars may lie behind the last."""
        if self.read is None:
            return [0] * len(self.bundle.pieces)
        numel, last = max(self.read.rows * self.read.columns, 1), self.read.members - 1
        return [min((sum(piece.offsets) + piece.start) // numel, last) for piece in self.bundle.pieces]


def finished(
    wave: Sequence[Parted], view: View, factor: Tensor, bound: Tensor, decay: Tensor | None
) -> list[Tensor]:
    """(N,) deltas of tensors that go together, of which all are hidden or none is: factor (step - decay p).

    `factor`, `bound` and `decay` are (B,); deltas are at most as long as the bound, in the rms over the tensor. Rows
    are written in place, as over ranks all but one matrix of a wave are somebody's rows at the same time.
    """
    whole = _orthogonalised(wave, view) if wave[0].read is not None else None
    _end(wave, view, factor, bound, decay)
    return whole or [_joined(tensor.rows) for tensor in wave]


def _orthogonalised(wave: Sequence[Parted], view: View) -> list[Tensor]:
    """(N,) what rows are views of from here on."""
    reads = {tensor.owner: tensor.read for tensor in wave}

    def orthogonal(owners: Sequence[int], wholes: Sequence[Tensor]) -> list[Tensor]:
        around = [view.around[owner] for owner in owners]
        given = [_members(whole, reads[owner]) for owner, whole in zip(owners, wholes, strict=True)]
        given = [own(matrices) if own else matrices for own, matrices in zip(around, given, strict=True)]
        results = iter(orthogonalised(list(chain(*given))))
        found = [[next(results) for _ in matrices] for matrices in given]
        found = [own(matrices) if own else matrices for own, matrices in zip(around, found, strict=True)]
        return [_joined([matrix.reshape(-1) for matrix in matrices]) for matrices in found]

    whole = view.held.of_whole(list(reads), [tensor.rows for tensor in wave], orthogonal)
    for tensor, row in zip(wave, whole, strict=True):
        pieces = tensor.bundle.pieces
        tensor.rows[:] = row.split([sum(piece.sizes) for piece in pieces])
        for i, piece in enumerate(pieces):
            args = tensor.conditioners[i], tensor.lengths[i], piece.take(view.given.params)
            tensor.sums[i] += ranges.turned(tensor.rows[i], *args)
    return whole


def _members(whole: Tensor, read: Matrices | None) -> Sequence[Tensor]:
    assert read is not None
    return whole.reshape(*read).unbind()


def _end(wave: Sequence[Parted], view: View, factor: Tensor, bound: Tensor, decay: Tensor | None) -> None:
    """Rows, made deltas in place. W tensors with M members in Q ranges, all of the wave together."""
    sums = torch.stack(list(chain(*(own for tensor in wave for own in tensor.sums))))
    sums = sums.reshape(-1, len(wave[0].sums[0])).T  # (S, Q)
    index = partial(torch.tensor, device=sums.device)
    firsts = accumulate((tensor.members for tensor in wave), initial=0)
    member = index([first + i for first, tensor in zip(firsts, wave, strict=False) for i in tensor.member_of])
    owner = index([tensor.owner for tensor in wave])
    within = index([i for i, tensor in enumerate(wave) for _ in range(tensor.members)])
    numels = [max(view.graph.sizes[tensor.owner], 1) for tensor in wave]
    total = view.held.summed(sums.new_zeros(len(sums), len(within)).index_add(1, member, sums))
    squares, products = total[-2:]
    scale = torch.ones_like(squares)
    if wave[0].read is not None:
        each = [max(n // tensor.members, 1) for n, tensor in zip(numels, wave, strict=True)]
        like, own = torch.sqrt(total[:2] / sums.new_tensor(each)[within] + TINY)
        scale = like / (own + EPS)
    scaled = torch.stack([scale * scale * squares, scale * products])
    mean, along = sums.new_zeros(2, len(wave)).index_add(1, within, scaled) / sums.new_tensor(numels)
    if decay is not None:
        # Of the square of a difference, as the difference itself is made only once its factor is known.
        shorter, param = decay[owner], view.stats.param[owner]
        mean = mean + shorter * (shorter * param * param - 2 * along)
    own_factor = torch.minimum(factor[owner], bound[owner] / torch.sqrt(mean.clamp(min=0) + TINY))
    scales = iter((own_factor[within] * scale)[member][:, None].unbind())
    shrinks = None if decay is None else (-own_factor * decay[owner])[:, None].unbind()
    for i, tensor in enumerate(wave):
        for row, piece in zip(tensor.rows, tensor.bundle.pieces, strict=True):
            given = None if shrinks is None else piece.take(view.given.params)
            ranges.ended(row, given, next(scales), None if shrinks is None else shrinks[i])


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
