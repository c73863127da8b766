"""UNF: universal neural functionals (Zhou, Finn & Harrison 2024, arXiv 2402.05232).

The paper's layer sums, over all pairs of tensors and all ways to match axes that permute together, "average over
the sender's other axes, map the channels, repeat along the receiver's other axes". Its architecture of axes is
written by hand; here it is the traced graph. Shapes: P scalars, B blocks, D width, F features, C context values,
R raw outputs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import PARAMETER_KINDS, Block
from lopt.metanets.base import Layers, Metanet, Size
from lopt.metanets.layers import Pointwise, zeroed
from lopt.metanets.plan import plan_of

ROLES = ("out", "in")
OWN = ("all", "out", "in", "both", "taps")
"""Which axes of a tensor's own average are kept."""
RELATIONS = 15
"""Non-empty sets of (receiver's role, sender's role) pairs."""


class Unf(Metanet):
    """For each block e_r, with the averages of itself and of all blocks e_s that share neurons with it:

        e_r' = relu(W e_r + sum over S of own axes: W_S mean_S(e_r) + W_0 mean of all blocks' means
                    + sum over S of shared axes, in each relation: W_relation mean over s of mean_S(e_s) + b)

    where mean_S averages over all axes but S. The paper has a W for every pair of tensors of one architecture; so
    that any architecture will do, pairs share theirs when they are related alike: by the set of pairs of roles
    (out or in, at the receiver and at the sender) of the matched axes. Kinds of tensors are told apart by an
    embedding. Matches between the two axes of one tensor (diagonals) are left out, and taps match no other
    tensor's.
    """

    def __init__(
        self, features: int, context: int, outputs: int, width: Size = 16, layers: Layers = 2
    ) -> None:
        super().__init__()
        self.scalar = Pointwise(features, width, bias=False)
        self.context = Pointwise(context, width)
        self.scalar.fan_in = self.context.fan_in = features + context
        self.kinds = nn.Parameter(0.1 * torch.randn(width, len(PARAMETER_KINDS)))
        self.layers = nn.ModuleList(UnfLayer(width) for _ in range(layers))
        self.head = zeroed(Pointwise(width, outputs))

    def prepare(self, graph: ParameterGraph) -> None:
        axes_of(graph)

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        plan, axes = plan_of(graph), axes_of(graph)
        order, inverse = plan.order, plan.inverse
        scalars = self.scalar(features if order is None else features[:, order.to(features.device)])
        known = self.context(context)[:, plan.owners.to(features.device)]
        known = known + self.kinds[:, plan.kinds.to(features.device)]
        parts = [
            relu(part + known[:, index : index + 1])
            for index, part in enumerate(scalars.split(plan.sizes, -1))
        ]
        for layer in self.layers:
            parts = layer(axes, parts)
        raw = self.head(torch.cat(parts, -1))
        return (raw if inverse is None else raw[:, inverse.to(raw.device)]), None


class UnfLayer(nn.Module):
    """The layer in `Unf`: (D, scalars) of each block, in and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scalar = Pointwise(width, width)
        self.own = nn.Parameter(torch.randn(len(OWN), width, width) / math.sqrt(4 * width))
        self.others = nn.Parameter(torch.randn(1 + RELATIONS, width, width) / math.sqrt(4 * width))

    def forward(self, axes: tuple[BlockAxes, ...], parts: list[Tensor]) -> list[Tensor]:
        means = [self._means(a, part) for a, part in zip(axes, parts, strict=True)]
        overall = torch.stack([mean[()] for mean in means]).mean(0)
        shared: dict[Match, list[Tensor]] = {}
        for a, mean in zip(axes, means, strict=True):
            for match, kept in a.offers:
                ascending = tuple(sorted(kept))
                order = [1 + ascending.index(axis) for axis in kept]
                shared.setdefault(match, []).append(mean[ascending].permute(0, *order))
        averages = {match: torch.stack(values).mean(0) for match, values in shared.items()}
        owns = self.scalar(torch.cat(parts, -1)).split([part.shape[-1] for part in parts], -1)
        return [
            relu(self._received(a, own, mean, overall, averages))
            for a, own, mean in zip(axes, owns, means, strict=True)
        ]

    def _means(self, a: BlockAxes, part: Tensor) -> dict[tuple[int, ...], Tensor]:
        """The mean over all but S, for every set S of neuron axes."""
        value = part.reshape(-1, *a.block.shape)
        taps = [1 + axis for axis in range(len(a.block.shape)) if axis not in a.neurons]
        value = value.mean(taps) if taps else value
        means = {a.neurons: value}
        for kept in a.subsets:
            if kept != a.neurons:
                # From a mean that is known already and has one axis more.
                more = next(s for s in means if len(s) == len(kept) + 1 and set(kept) < set(s))
                means[kept] = means[more].mean(1 + next(i for i, axis in enumerate(more) if axis not in kept))
        return means

    def _received(
        self,
        a: BlockAxes,
        own: Tensor,
        means: dict[tuple[int, ...], Tensor],
        overall: Tensor,
        averages: dict[Match, Tensor],
    ) -> Tensor:
        # Small terms first: each sum is as small as it can be.
        total = mapped(self.others[0], overall).reshape(-1, *[1] * len(a.block.shape))
        for kept in reversed(a.subsets):
            terms = [mapped(self.own[OWN.index(name)], means[kept]) for name in a.own_terms(kept)]
            terms += [
                mapped(self.others[ask.relation], averages[ask.match]).permute(0, *ask.order)
                for ask in a.requests.get(kept, ())
            ]
            if terms:
                total = total + sum(terms[1:], terms[0]).reshape(a.view(kept))
        return (own.reshape(-1, *a.block.shape) + total).reshape(own.shape)


Match = tuple[tuple[int, ...], tuple[str, ...]]
"""Groups of the matched axes in ascending order, and the sender's roles of them."""


@dataclass(frozen=True, eq=False)
class BlockAxes:
    """The neuron axes of one block, what it offers to others and what it asks of them."""

    block: Block
    neurons: tuple[int, ...]
    """Axes with a role out or in."""
    subsets: tuple[tuple[int, ...], ...]
    """Every set of them, large ones first."""
    offers: tuple[tuple[Match, tuple[int, ...]], ...]
    """Matches that another block (or another axis of this one) asks for, and the axes that make them, in order."""
    requests: dict[tuple[int, ...], list[Request]]
    """What others offer for sets of axes."""

    def own_terms(self, kept: tuple[int, ...]) -> list[str]:
        """The name in `OWN` of a set of axes, unless its mean is the block itself."""
        if kept == self.neurons:
            return ["taps"] if len(self.neurons) < len(self.block.shape) else []
        roles = {self.block.roles[axis] for axis in kept}
        return ["both" if len(roles) == 2 else roles.pop() if roles else "all"]

    def view(self, kept: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (-1, ...) that broadcasts values along a set of axes to the block."""
        return (-1, *(size if axis in kept else 1 for axis, size in enumerate(self.block.shape)))


@dataclass(frozen=True)
class Request:
    """A match to read."""

    match: Match
    relation: int
    """1 to 15, see `relation`."""
    order: tuple[int, ...]
    """Dimensions of the average, channels left out, in the order of the block's axes, from 1 on."""


def mapped(weight: Tensor, value: Tensor) -> Tensor:
    """(D, D), (D, ...) -> (D, ...)."""
    return (weight @ value.flatten(1)).reshape(value.shape) if value.dim() > 1 else weight @ value


@made_once
def axes_of(graph: ParameterGraph) -> tuple[BlockAxes, ...]:
    """The axes of all blocks and how they match, found once."""
    blocks = plan_of(graph).blocks
    matches = [list(_matches(block)) for block in blocks]
    asked = Counter(groups for own in matches for (groups, _), _ in own)
    # A match that one block alone has, with itself, is among its own means.
    offers = [tuple(m for m in own if asked[m[0][0]] > 1) for own in matches]
    offered: dict[tuple[int, ...], set[tuple[str, ...]]] = {}
    for (groups, roles), _ in itertools.chain(*offers):
        offered.setdefault(groups, set()).add(roles)
    return tuple(
        BlockAxes(block, _neurons(block), _subsets(block), offer, _requests(block, offered))
        for block, offer in zip(blocks, offers, strict=True)
    )


def _requests(
    block: Block, offered: dict[tuple[int, ...], set[tuple[str, ...]]]
) -> dict[tuple[int, ...], list[Request]]:
    requests: dict[tuple[int, ...], list[Request]] = {}
    for kept in _subsets(block):
        ascending = sorted(kept, key=lambda axis: (block.groups[axis], axis))
        groups = tuple(block.groups[axis] for axis in ascending)
        order = tuple(1 + ascending.index(axis) for axis in kept)
        own = [block.roles[axis] for axis in ascending]
        for roles in sorted(offered.get(groups, ())):
            request = Request((groups, roles), relation(own, roles), order)
            requests.setdefault(kept, []).append(request)
    return requests


def relation(receiver: list[str], sender: tuple[str, ...]) -> int:
    """1 to 15: one bit for each pair of roles that occurs."""
    pairs = {(ROLES.index(r), ROLES.index(s)) for r, s in zip(receiver, sender, strict=True)}
    return sum(1 << (2 * r + s) for r, s in pairs)


def _matches(block: Block) -> Iterator[tuple[Match, tuple[int, ...]]]:
    """Every ordered choice of neuron axes whose groups ascend; the same group twice gives both orders."""
    for size in range(1, len(_neurons(block)) + 1):
        for kept in itertools.permutations(_neurons(block), size):
            groups = tuple(block.groups[axis] for axis in kept)
            if list(groups) == sorted(groups):
                yield (groups, tuple(block.roles[axis] for axis in kept)), kept


def _neurons(block: Block) -> tuple[int, ...]:
    return tuple(axis for axis, role in enumerate(block.roles) if role in ROLES)


def _subsets(block: Block) -> tuple[tuple[int, ...], ...]:
    axes = _neurons(block)
    return tuple(s for size in range(len(axes), -1, -1) for s in itertools.combinations(axes, size))
