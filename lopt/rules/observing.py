"""What a learned rule sees of a step, piece by piece: the gradient history, and statistics of each tensor.

Shapes: P scalars, N of one tensor, n of a piece; B parameters (tensors), b those in a piece; K decays, S statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.features import per_scalar
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import Matrices
from lopt.metanets.pieces import Bundle, Piece, gathered
from lopt.numerics import moments
from lopt.numerics.moments import Moments
from lopt.numerics.segments import LONG, means_of, segment_expand, segment_sums
from lopt.rules.base import State, Tensors, working_dtype
from lopt.rules.directions import EPS, History
from lopt.rules.shards import OneProcess

LIMIT = 1e15
"""Larger gradients and parameters are read as this, so that their squares stay finite in float32."""


class Decays(NamedTuple):
    """Of running means at one step."""

    new: Tensor
    """(K, 1) or (K, B) weights 1 - decay of what is new, for the momenta."""
    new_second: Tensor | float
    """The same for the second moment: a number or (B,)."""
    corrections: Tensor
    """(K + 1, B) corrections of the bias, the last one of the second moment."""


class Clock(NamedTuple):
    """Where in a run each tensor is."""

    steps: Tensor
    """(B,) with this one."""
    horizon: Tensor
    """(B,) planned; 0: unknown."""


class Seen(NamedTuple):
    """The scalars of a piece after the gradient has entered their history."""

    params: Tensor
    """(n,)"""
    grads: Tensor
    """(n,)"""
    momenta: Tensor
    """(K, n) running means, to be the next state."""
    second: Tensor
    """(n,) the same."""
    moments: Moments
    """The history without bias."""


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

    @classmethod
    def of(cls, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors) -> Given:
        dtype, shapes = working_dtype(*params.values()), [params[name].shape for name in graph.parameters]

        def flat(tensors: Tensors) -> list[Tensor]:
            return [_flat(tensors[n], shape) for n, shape in zip(graph.parameters, shapes, strict=True)]

        # State may come from a file, or from steps of other parameters, of another precision.
        momenta, second = (
            [tensor.to(dtype) for tensor in flat({name: state[name][key] for name in graph.parameters})]
            for key in ("momenta", "second")
        )
        return cls(flat(params), flat(grads), momenta, second, dtype, shapes)

    def values(self, piece: Piece, tensors: Sequence[Tensor]) -> Tensor:
        """(n,) parameters or gradients."""
        return piece.take(tensors).to(self.dtype).clamp(-LIMIT, LIMIT)

    def after(self, piece: Piece, decays: Decays) -> Seen:
        """The scalars of a piece with their new history."""
        p, g = self.values(piece, self.params), self.values(piece, self.grads)
        momenta = piece.take(self.momenta).lerp(g, _for_scalars(decays.new, piece))
        second = piece.take(self.second).lerp(g * g, _for_scalars(decays.new_second, piece))
        corrections = segment_expand(piece.of(decays.corrections), piece.sizes)
        return Seen(p, g, momenta, second, moments.corrected(momenta, second, corrections))

    def keep(self, piece: Piece, seen: Seen, gate: Tensor | None) -> None:
        """Write the new history over the old one; not where a gate, () bool, is false."""
        for values, tensors in ((seen.momenta, self.momenta), (seen.second, self.second)):
            piece.put(values if gate is None else torch.where(gate, values, piece.take(tensors)), tensors)


def _flat(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor.reshape(*tensor.shape[: tensor.dim() - len(shape)], shape.numel())


def _for_scalars(weights: Tensor | float, piece: Piece) -> Tensor | float:
    """(..., B) for each tensor -> (..., n); what is the same for all tensors as it is."""
    if isinstance(weights, float) or weights.shape[-1] == 1:
        return weights
    return segment_expand(piece.of(weights), piece.sizes)


def products(seen: Seen) -> Iterator[Tensor]:
    """Five rows (n,), whose means `Statistics` are made of."""
    p, g, m, root = seen.params, seen.grads, seen.moments.momenta[0], seen.moments.root
    return (a * b for a, b in ((p, p), (g, g), (m, m), (root, root), (g, m)))


def noise(seen: Seen) -> Iterator[Tensor]:
    """K + 1 rows (n,): the squares of squashed momenta and gradient over the root of the second moment."""
    reciprocal = per_scalar.reciprocal(seen.moments.root)
    return (per_scalar.squashed_square(row * reciprocal) for row in (*seen.moments.momenta, seen.grads))


class Statistics(NamedTuple):
    """Of each tensor, (B,): root-mean-squares, and the cosine of gradient and fastest momentum."""

    param: Tensor
    grad: Tensor
    momentum: Tensor
    """Of the fastest one."""
    root: Tensor
    """Of the root of the second moment."""
    agreement: Tensor

    @classmethod
    def of(cls, means: Tensor) -> Statistics:
        """Of the means (5, B) of `products`."""
        param, grad, momentum, root = torch.sqrt(means[:4].clamp(min=0) + moments.TINY)
        agreement = means[4] / ((grad + per_scalar.FLOOR) * (momentum + per_scalar.FLOOR))
        return cls(param, grad, momentum, root, agreement)


class View:
    """All that there is to see at one step, of any piece at any time."""

    def __init__(
        self,
        graph: ParameterGraph,
        given: Given,
        decays: Decays,
        pieces: Sequence[Piece],
        with_noise: bool,
        held: OneProcess,
    ) -> None:
        self.graph, self.given, self.pieces, self.held = graph, given, pieces, held
        self._decays = decays
        self._seen: dict[tuple[int, int], Seen] = {}
        sums = []
        for piece in pieces:
            seen = self.look(piece)
            sums.append(segment_sums(chain(products(seen), noise(seen) if with_noise else ()), piece.sizes))
        means = means_of(held.summed(gathered(sums, pieces, len(graph.sizes))), graph.sizes)
        self.stats = Statistics.of(means[:5])
        self.noise = means[5:]
        """(K + 1, B) the means of `noise`."""

    @property
    def whole(self) -> bool:
        """Whether all is one piece."""
        return self.pieces[0].all

    def look(self, piece: Piece) -> Seen:
        """The scalars of a piece: remembered, but not in larger graphs, where memory is worth more than time."""
        if piece.place in self._seen:
            return self._seen[piece.place]
        seen = self.given.after(piece, self._decays)
        if self.whole or self.graph.numel < LONG:
            self._seen[piece.place] = seen
        return seen

    def params(self, piece: Piece) -> Tensor:
        """(n,)."""
        seen = self._seen.get(piece.place)
        return self.given.values(piece, self.given.params) if seen is None else seen.params

    def rms(self, wave: Sequence[Bundle], steps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """(n,) of each piece of each bundle -> (b,) root-mean-squares over the tensors of each bundle."""
        squares = [bundle.squares(rows) for bundle, rows in zip(wave, steps, strict=True)]
        sizes = [self.graph.sizes[owner] for bundle in wave for owner in bundle.owners]
        means = means_of(self.held.summed(torch.cat(squares))[None], sizes)[0]
        return list(torch.sqrt(means + moments.TINY).split([len(bundle.owners) for bundle in wave]))

    def features(self, piece: Piece, seen: Seen, factored: Tensor | None = None) -> Tensor:
        """(F, n)."""
        stats = self.stats
        relations = torch.stack([stats.param, torch.sqrt(stats.root + per_scalar.FLOOR)])
        spread = segment_expand(piece.of(relations), piece.sizes)
        return per_scalar.per_scalar_features(seen.params, seen.grads, seen.moments, factored, *spread)

    def history(
        self,
        piece: Piece,
        seen: Seen,
        hidden: list[Matrices | None],
        by_tensor: bool,
        factored: Tensor | None = None,
    ) -> History:
        """What directions see of a piece; `hidden` (B,) of all tensors."""
        return History(
            seen.params,
            seen.grads,
            seen.moments,
            1 / (seen.moments.root + EPS),
            factored,
            piece.of(self.stats.momentum),
            piece.of(self.stats.root),
            piece.sizes,
            [hidden[owner] for owner in piece.owners],
            by_tensor,
        )
