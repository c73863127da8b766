"""How long the steps of tensors become that are finished together: grafted, decayed, bounded, all by numbers of each.

Shapes: n scalars of a piece, B parameters (tensors); of a wave W tensors, M members of theirs and Q ranges; S sums.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.graph.made_once import made_once
from lopt.graph.tensor_classes import Matrices
from lopt.metanets.pieces import Bundle, Wave
from lopt.numerics.moments import TINY
from lopt.rules.directions import EPS
from lopt.rules.observing import View


class Ends(NamedTuple):
    """How a wave is read, and which sums belong together."""

    reads: dict[int, Matrices]
    """Of each tensor that is orthogonalised."""
    # Tensors are on the CPU and go to the values' device at each use: a graph has none.
    member: Tensor
    """(Q,) which member each range is of, or (n,) each scalar of tensors that are gathered."""
    tensor: Tensor
    """(M,) which of the wave's tensors each member is of."""
    owner: Tensor
    """(W,) which of the graph's parameters each tensor is."""
    each: Tensor
    """(M,) scalars of each member."""
    numel: Tensor
    """(W,) scalars of each tensor."""
    sizes: list[int]
    """(M,) scalars held here of each member, where tensors are gathered."""
    grafted: Tensor | None
    """(M,) whether each member is orthogonalised, where some are and some are not."""

    @property
    def hidden(self) -> bool:
        """Whether anything is orthogonalised: of a wave in ranges all or nothing."""
        return bool(self.reads)


class Limits(NamedTuple):
    """(B,) what becomes of each tensor's step: factor (step - decay p), at most as long as the bound.

    Lengths are rms over the tensor; no decay is None.
    """

    factor: Tensor
    bound: Tensor
    decay: Tensor | None


@made_once
def ends_of(wave: Wave, orthogonal: bool, dtype: torch.dtype) -> Ends:
    """With an update form that may be `orthogonal`; numbers of scalars are of a dtype."""
    owners = [owner for bundle in wave.bundles for owner in bundle.owners]
    numels = [max(wave.numels[owner], 1) for owner in owners]
    found = {owner: wave.reads[owner] for owner in owners if orthogonal and wave.numels[owner]}
    reads = {owner: read for owner, read in found.items() if read is not None}
    members = [reads[owner].members if owner in reads else 1 for owner in owners]
    sizes: list[int] = []
    if wave.in_ranges:
        firsts = accumulate(members, initial=0)
        ranged = zip(firsts, wave.bundles, strict=False)
        member = [
            first + i for first, bundle in ranged for i in _members_of(bundle, reads.get(bundle.owners[0]))
        ]
    else:
        (bundle,) = wave.bundles
        sizes = [size // m for size, m in zip(bundle.sizes, members, strict=True) for _ in range(m)]
        member = [i for i, size in enumerate(sizes) for _ in range(size)]
    grafted = [owner in reads for owner, m in zip(owners, members, strict=True) for _ in range(m)]
    with torch.device("cpu"):
        return Ends(
            reads,
            torch.tensor(member, dtype=torch.long),  # a rank may hold none of their scalars
            torch.arange(len(owners)).repeat_interleave(torch.tensor(members)),
            torch.tensor(owners),
            torch.tensor(
                [n // m for n, m in zip(numels, members, strict=True) for _ in range(m)], dtype=dtype
            ),
            torch.tensor(numels, dtype=dtype),
            sizes,
            torch.tensor(grafted) if len(set(grafted)) > 1 else None,
        )


def _members_of(bundle: Bundle, read: Matrices | None) -> list[int]:
    """Which member each range of a tensor is of. One without scalars may lie behind the last."""
    if read is None:
        return [0] * len(bundle.pieces)
    numel, last = max(read.rows * read.columns, 1), read.members - 1
    return [min((sum(piece.offsets) + piece.start) // numel, last) for piece in bundle.pieces]


def scales_of(
    sums: Tensor, ends: Ends, view: View, limits: Limits, length: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """What rows are multiplied by (M,), and what of the parameters is added to them (W,).

    Of each member's rows `sums` (S, M) over all of its scalars are those of squares and of products with the
    parameters; before these, if anything is orthogonalised, of the squares that give it its rms and of its own. Steps
    are rows, or `length` (W,) times them, grafted.
    """
    factor, bound, decay = limits
    param, device, one_each = view.stats.param, sums.device, ends.each.shape == ends.owner.shape
    within, owner, each = (x.to(device) for x in (ends.tensor, ends.owner, ends.each))
    means = sums / each
    squares, products = means[-2:].unbind()
    scale = length if length is None or one_each else length.index_select(0, within)
    if ends.hidden:
        like, own = torch.sqrt(means[:2] + TINY).unbind()
        graft = like / (own + EPS)
        if ends.grafted is not None:
            graft = graft.where(ends.grafted.to(device), 1.0)
        scale = graft if scale is None else scale * graft
    if scale is not None:
        squares, products = scale * scale * squares, scale * products
    if not one_each:
        parts = torch.stack([squares, products]) * each
        total = sums.new_zeros(2, owner.shape[0]).index_add_(1, within, parts)
        squares, products = (total / ends.numel.to(device)).unbind()
    if owner.shape != factor.shape:
        factor, bound, param = (x.index_select(0, owner) for x in (factor, bound, param))
        decay = None if decay is None else decay.index_select(0, owner)
    if decay is not None:
        # Of the square of a difference, as the difference itself is made only once its factor is known.
        squares = squares.addcmul(decay, torch.sub(decay * param * param, products, alpha=2))
    factor = torch.minimum(factor, bound * torch.rsqrt(squares.clamp(min=TINY)))
    scales = factor if one_each else factor.index_select(0, within)
    return scales if scale is None else scales * scale, None if decay is None else -factor * decay
