"""The end of a step on a tensor in ranges: orthogonalised where it feeds hidden neurons, bounded, decayed.

Shapes: n scalars of a range, N of a tensor, B parameters (tensors); of a wave W tensors, M members of theirs and Q
ranges; S sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from lopt.metanets.pieces import Bundle
from lopt.rules import ranges
from lopt.rules.ends import Ends, Limits, scales_of
from lopt.rules.observing import View
from lopt.rules.whitening import orthogonalised_members


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


def finished(wave: Sequence[Parted], ends: Ends, view: View, limits: Limits) -> list[Tensor]:
    """(N,) deltas of tensors that go together, within limits.

    Rows are written in place, as over ranks all but one matrix of a wave are somebody's rows at the same time.
    """
    whole = _orthogonalised(wave, ends, view) if ends.hidden else None
    _end(wave, ends, view, limits)
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


def _end(wave: Sequence[Parted], ends: Ends, view: View, limits: Limits) -> None:
    """Rows, made deltas in place, of which all numbers are made together."""
    sums = torch.stack(list(chain(*(own for tensor in wave for own in tensor.sums))))
    member = ends.member.to(sums.device)
    sums = sums.reshape(len(member), -1).T  # (S, Q)
    total = view.held.summed(sums.new_zeros(len(sums), len(ends.each)).index_add_(1, member, sums))
    scales, shrinks = scales_of(total, ends, view, limits)
    numbers = iter(scales.index_select(0, member).split(1))
    for tensor, shrink in zip(wave, [None] * len(wave) if shrinks is None else shrinks.split(1), strict=True):
        for row, piece in zip(tensor.rows, tensor.bundle.pieces, strict=True):
            ranges.ended(row, piece.take(view.given.params), next(numbers), shrink)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
