"""What a learned rule sees of a step, piece by piece: the gradient history, and statistics of each tensor.

Shapes: P scalars, N of one tensor, n of a piece; B parameters (tensors), b those in a piece; K decays, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopt.features import per_scalar
from lopt.features.log_sign import log_sign_features
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import Matrices
from lopt.metanets.pieces import Piece, gathered
from lopt.numerics import moments, rounding
from lopt.numerics.fused import SHORTEST, fused
from lopt.numerics.segments import LONG, means_of, segment_sum, segment_sums
from lopt.rules import ranges
from lopt.rules.base import State, Tensors, working_dtype
from lopt.rules.directions import History
from lopt.rules.ranges import Range, Seen
from lopt.rules.shards import OneProcess
from lopt.rules.timing import Decays
from lopt.rules.whitening import Around


@dataclass(frozen=True)
class Given:
    """What a step is given, every tensor flat: (N,), momenta (K, N)."""

    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    second: list[Tensor]
    dtype: torch.dtype
    """What is computed in."""
    shapes: list[torch.Size]
    """(B,) of what is held of each tensor: all of it, or some rows."""
    salts: Sequence[Tensor] = ()
    """(B,) of `rounding`, if momenta and second moments are kept in fewer bits."""

    @classmethod
    def of(
        cls,
        graph: ParameterGraph,
        grads: Tensors,
        state: State,
        params: Tensors,
        kept_in: torch.dtype | None = None,
    ) -> Given:
        """`kept_in` is the dtype of momenta and second moments; None: what is computed in."""
        names, dtype = list(graph.parameters), working_dtype(*params.values())
        kept = kept_in or dtype
        momenta = [state[name]["momenta"] for name in names]
        momenta = [m.flatten(1) if m.dim() > 1 else m[:, None] for m in momenta]
        second = [state[name]["second"].flatten() for name in names]
        # State may come from a file, or from steps of other parameters, of another precision.
        if any(x.dtype != kept for x in (*momenta, *second)):
            momenta, second = [m.to(kept) for m in momenta], [v.to(kept) for v in second]
        steps = [state[name]["step"] for name in names] if kept_in else []
        return cls(
            [params[name].flatten() for name in names],
            [grads[name].flatten() for name in names],
            momenta,
            second,
            dtype,
            [params[name].shape for name in names],
            rounding.salts(torch.stack(steps)).split(1) if steps else (),
        )

    def values(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        """(n,) parameters or gradients."""
        return piece.take(tensors).to(self.dtype).clamp(-moments.LIMIT, moments.LIMIT)

    def after(self, piece: Piece, decays: Decays) -> Seen:
        """The scalars of a piece with their new history."""
        p, g = self.values(piece, self.params), self.values(piece, self.grads)
        before = piece.take(self.momenta).to(self.dtype)
        momenta = before.lerp(g, _for_scalars(decays.new, piece))
        second = piece.take(self.second).to(self.dtype).lerp(g * g, _for_scalars(decays.new_second, piece))
        corrections = _for_scalars(decays.corrections, piece)
        unbiased = moments.corrected(momenta, second, corrections)
        return Seen(p, g, momenta, second, unbiased, ranges.inverse_of(unbiased.root), before[0])

    def range(self, piece: Piece, weights: Sequence[Tensor]) -> Range:
        """A piece of one tensor, with weights (2 K + 2,) of each of B."""
        params, grads, momenta, second = (
            piece.take(tensors) for tensors in (self.params, self.grads, self.momenta, self.second)
        )
        salt = rounding.at(self.salts[piece.owners[0]], piece.start) if self.salts else None
        # Kernels run through memory, which a flat view of every other column, or of one number expanded, does not.
        params, grads = params.contiguous(), grads.contiguous()
        return Range(params, grads, momenta.unbind(), second, weights[piece.owners[0]], salt)

    def kept(self, piece: Piece, seen: Seen) -> tuple[Tensor, Tensor]:
        """(K, n) momenta and (n,) second moment as they are kept."""
        if not self.salts:
            return seen.momenta, seen.second
        *momenta, second = rounding.rounded([*seen.momenta, seen.second], self.salts[piece.owners[0]])
        return torch.stack(momenta), second

    def keep(self, piece: Piece, seen: Seen, gate: Tensor | None) -> None:
        """Write the new history over the old one; not where a gate, () bool, is false."""
        for values, tensors in zip(self.kept(piece, seen), (self.momenta, self.second), strict=True):
            piece.put(values if gate is None else torch.where(gate, values, piece.take(tensors)), tensors)


def _for_scalars(weights: Tensor, piece: Piece) -> Tensor:
    """(..., B) for each tensor -> (..., n); what is the same for all tensors as it is."""
    if weights.shape[-1] == 1:
        return weights
    return piece.spread(weights)


class Statistics(NamedTuple):
    """Of each tensor, (B,): root-mean-squares, and the cosine of gradient and fastest momentum."""

    param: Tensor
    grad: Tensor
    momentum: Tensor
    """Of the fastest one."""
    root: Tensor
    """Of the root of the second moment."""
    agreement: Tensor
    headway: Tensor | None = None
    """The cosine of the gradient and the direction of the steps before it; None where no rule asks for it."""

    @classmethod
    def of(cls, means: Tensor, paced: bool) -> Statistics:
        """Of the means (5, B) or (7, B) of the products of `ranges.pairs`."""
        squares = 5 if paced else 4
        roots = torch.sqrt(means[:squares] + moments.TINY)
        grad, others = roots[1], roots[2::2]  # of the momentum, and of the way so far
        cosines = means[squares:] / ((grad + per_scalar.FLOOR) * (others + per_scalar.FLOOR))
        return cls(*roots[:4], *cosines)


class View:
    """All that there is to see at one step, of any piece at any time."""

    def __init__(
        self,
        graph: ParameterGraph,
        given: Given,
        decays: Decays,
        pieces: Sequence[Piece],
        with_noise: bool,
        paced: bool,
        held: OneProcess,
        fuse: bool,
        around: Sequence[Around | None] = (),
    ) -> None:
        self.graph, self.given, self.pieces, self.held = graph, given, pieces, held
        self._decays, self._fuse = decays, fuse
        self.around = around or [None] * len(graph.sizes)
        """(B,) what stands around hidden matrices that are whitened."""
        self._seen: dict[tuple[int, int], Seen] = {}
        self._ranges: dict[tuple[int, int], Range] = {}
        self._weights: Sequence[Tensor] = ()
        sums = [self._sums(piece, paced, with_noise) for piece in pieces]
        self.means = means_of(held.summed(gathered(sums, pieces, len(graph.sizes))), graph.sizes)
        """(S, B): what all that is said of tensors is made of."""
        count = 7 if paced else 5
        self.stats = Statistics.of(self.means[:count], paced)
        self.noise = self.means[count:]
        """(K + 1, B) the means of `ranges.noise`."""

    @property
    def whole(self) -> bool:
        """Whether all is one piece."""
        return self.pieces[0].all

    def _sums(self, piece: Piece, paced: bool, with_noise: bool) -> Tensor:
        """(S, b) over each tensor."""
        if piece.is_range:
            return torch.stack(self.on_range(ranges.sums, piece, paced, with_noise))[:, None]
        seen = self.look(piece)
        if not self.whole:
            return segment_sum(ranges.summands(seen, paced, with_noise), piece.sizes)
        pairs = chain(ranges.pairs(seen, paced), ranges.noise(seen) if with_noise else ())
        return segment_sums((a * b for a, b in pairs), piece.sizes)

    def on_range(self, function: Callable[..., Any], piece: Piece, *args: Any) -> Any:
        """A function in `ranges` of a piece of one tensor; fused, it sees the history by itself."""
        if self._fuse and piece.sizes[0] >= SHORTEST:
            return fused(function)(self._range(piece), None, *args)
        return function(self._range(piece), self.look(piece), *args)

    def _range(self, piece: Piece) -> Range:
        """What is given of a piece of one tensor: views, made once."""
        if piece.place not in self._ranges:
            self._weights = self._weights or self._decays.of_tensors(len(self.graph.sizes)).unbind()
            self._ranges[piece.place] = self.given.range(piece, self._weights)
        return self._ranges[piece.place]

    def look(self, piece: Piece) -> Seen:
        """The scalars of a piece: remembered, but not in larger graphs, where memory is worth more than time."""
        if piece.place in self._seen:
            return self._seen[piece.place]
        if piece.is_range:
            seen = ranges.after(self._range(piece))
        else:
            seen = self.given.after(piece, self._decays)
        if self.whole or self.graph.numel < LONG:
            self._seen[piece.place] = seen
        return seen

    def params(self, piece: Piece) -> Tensor:
        """(n,)."""
        seen = self._seen.get(piece.place)
        return self.given.values(piece, self.given.params) if seen is None else seen.params

    def rms(self, piece: Piece, step: Tensor) -> Tensor:
        """(n,) of a piece of whole tensors -> (b,) root-mean-squares over them."""
        sums = self.held.summed(segment_sum((step * step)[None], piece.sizes)[0])
        sizes = [self.graph.sizes[owner] for owner in piece.owners]
        return torch.sqrt(means_of(sums[None], sizes)[0] + moments.TINY)

    def features(self, piece: Piece, factored: Tensor | None = None) -> Tensor:
        """(F, n)."""
        stats = self.stats
        relations = torch.stack([stats.param, torch.sqrt(stats.root + per_scalar.FLOOR)])
        if piece.is_range:
            own = piece.of(relations)[:, 0].contiguous()
            features: Tensor = self.on_range(ranges.features, piece, own)
            return features
        seen, spread = self.look(piece), piece.spread(relations)
        return per_scalar.per_scalar_features(seen.params, seen.grads, seen.moments, factored, *spread)

    def raw_features(self, piece: Piece) -> Tensor:
        """(F, n) of `lopt.features.log_sign`, of a piece of whole tensors."""
        seen = self.look(piece)
        # What a mean takes in of each gradient, a sum has whole.
        sums = seen.momenta / _for_scalars(self._decays.new, piece)
        return log_sign_features(seen.params, seen.grads, sums)

    def history(
        self,
        piece: Piece,
        hidden: list[Matrices | None],
        by_tensor: bool,
        factored: Tensor | None = None,
    ) -> History:
        """What directions see of a piece; `hidden` (B,) of all tensors."""
        seen = self.look(piece)
        return History(
            seen.params,
            seen.grads,
            seen.moments,
            seen.inverse,
            factored,
            piece.of(self.stats.momentum),
            piece.of(self.stats.root),
            piece.sizes,
            [hidden[owner] for owner in piece.owners],
            by_tensor,
            piece.index(seen.params.device),
            [self.around[owner] for owner in piece.owners],
        )
