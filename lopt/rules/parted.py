"""The end of a step on a tensor in ranges: orthogonalised where it feeds hidden neurons, bounded, decayed.

Shapes: n scalars of a range, N of the tensor, B parameters (tensors), M members of a tensor, S sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    sums: list[Tensor] = field(default_factory=list)
    """(S,) over the range: of the step's squares and its products with the parameters; before these, where it is
    orthogonalised, of the squares that its rms comes from, and of its own before it is scaled."""
    lengths: list[Tensor] = field(default_factory=list)
    """(n,) or (1,) of what is orthogonalised."""
    conditioners: list[Tensor | None] = field(default_factory=list)
    """(n,) or nothing: of the same."""

    def add(self, draft: ranges.Draft) -> None:
        """The next range."""
        self.rows.append(draft.row)
        self.sums.append(torch.stack([x for x in (draft.squares, draft.products) if x is not None]))
        if draft.length is not None:
            self.lengths.append(draft.length)
            self.conditioners.append(draft.conditioner)

    @property
    def owner(self) -> int:
        return self.bundle.owners[0]

    @property
    def members(self) -> list[int]:
        """Of the ranges. One without scalars may lie behind the last."""
        if self.read is None:
            return [0] * len(self.bundle.pieces)
        numel, last = max(self.read.rows * self.read.columns, 1), self.read.members - 1
        return [min((sum(piece.offsets) + piece.start) // numel, last) for piece in self.bundle.pieces]

    def by_member(self) -> Tensor:
        """(S, M) sums."""
        sums = torch.stack(self.sums, 1)
        if self.read is None or self.read.members == 1:
            return sums.sum(1, keepdim=True)
        members = torch.tensor(self.members, device=sums.device)
        return sums.new_zeros(len(sums), self.read.members).index_add(1, members, sums)


def finished(
    wave: Sequence[Parted], view: View, factor: Tensor, bound: Tensor, decay: Tensor | None
) -> list[Tensor]:
    """(N,) deltas of tensors that go together, of which all are hidden or none is: factor (step - decay p).

    `factor`, `bound` and `decay` are (B,); deltas are at most as long as the bound, in the rms over the tensor. Rows
    are written in place, as all but one matrix of a wave are somebody's rows at the same time.
    """
    whole = _orthogonalised(wave, view) if wave[0].read is not None else None
    sums = [tensor.by_member() for tensor in wave]
    totals = view.held.summed(torch.cat(sums, 1)).split([own.shape[1] for own in sums], 1)
    for tensor, total in zip(wave, totals, strict=True):
        _end(tensor, total, view, factor, bound, decay)
    return whole or [_joined(tensor.rows) for tensor in wave]


def _orthogonalised(wave: Sequence[Parted], view: View) -> list[Tensor]:
    """(N,) what rows are views of from here on."""
    reads = {tensor.owner: tensor.read for tensor in wave}

    def orthogonal(owner: int, whole: Tensor) -> Tensor:
        read = reads[owner]
        assert read is not None
        matrices = list(whole.reshape(*read).unbind())
        return _joined([matrix.reshape(-1) for matrix in orthogonalised(matrices)])

    whole = view.held.of_whole(list(reads), [tensor.rows for tensor in wave], orthogonal)
    for tensor, row in zip(wave, whole, strict=True):
        pieces = tensor.bundle.pieces
        tensor.rows[:] = row.split([sum(piece.sizes) for piece in pieces])
        for i, piece in enumerate(pieces):
            args = tensor.conditioners[i], tensor.lengths[i], piece.take(view.given.params)
            own = view.run(ranges.turned, piece, tensor.rows[i], *args)
            tensor.sums[i] = torch.cat([tensor.sums[i], torch.stack(own)])
    return whole


def _end(
    tensor: Parted, total: Tensor, view: View, factor: Tensor, bound: Tensor, decay: Tensor | None
) -> None:
    """Rows, made deltas in place, by sums (S, M) over the members."""
    owner, numel = tensor.owner, max(view.graph.sizes[tensor.owner], 1)
    squares, products = total[-2], total[-1]
    scale = torch.ones_like(squares)
    if tensor.read is not None:
        like, own = torch.sqrt(total[:2] / max(numel // tensor.read.members, 1) + TINY)
        scale = like / (own + EPS)
    mean = (scale * scale * squares).sum() / numel
    if decay is not None:
        # Of the square of a difference, as the difference itself is made only once its factor is known.
        shorter, param = decay[owner], view.stats.param[owner]
        mean = mean + shorter * (shorter * param * param - 2 * (scale * products).sum() / numel)
    own_factor = torch.minimum(factor[owner], bound[owner] / torch.sqrt(mean.clamp(min=0) + TINY))
    scales = (own_factor * scale)[:, None].unbind()
    shrink = None if decay is None else (-own_factor * decay[owner])[None]
    for row, piece, member in zip(tensor.rows, tensor.bundle.pieces, tensor.members, strict=True):
        given = None if shrink is None else piece.take(view.given.params)
        view.run(ranges.ended, piece, row, given, scales[member], shrink)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)
