"""AxisNet: dense message passing between scalars and neurons along the axes of each parameter.

The layer is that of an edge-updating graph network (Battaglia et al. 2018, section 3) on the parameter graph,
written without gather and scatter: a weight with axes (out, in, tap) is its own adjacency structure, so neurons
are broadcast along axes and messages are means over axes.

Shapes: P scalars, B blocks, N neurons (all elements of all axis groups, one group after another), F features,
C context values, D hidden width per scalar, H hidden width per neuron and per block, R raw outputs, n scalars of
one block (or of all vectors together), r rows and c columns of a block read as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import PARAMETER_KINDS
from lopt.metanets.base import SPARING, Heard, Layers, Metanet, Size, SizeOrZero
from lopt.metanets.cutouts import Cutout, Strip, cutout
from lopt.metanets.layers import affine_of
from lopt.metanets.paths import Paths
from lopt.metanets.pieces import Piece
from lopt.metanets.plan import (
    MESSAGE_ROLES,
    BlockAxis,
    Matrix,
    Plan,
    as_matrix,
    axes_of_block,
    in_rows,
    plan_of,
    rows_and_columns,
)


class AxisNet(Metanet):
    """Per layer, with relu as phi, for the scalars e of each block, the neurons n and the blocks' contexts c:

        e' = phi(W_e e + sum over out and in axes of W_role n_axis + W_c c)
        m_role = mean of e' over all other axes, averaged over the blocks that share the neuron
        n' = phi(W_n n + W_out m_out + W_in m_in)
        c' = phi(W_cc c + W_g mean(c) + W_ce mean(e'))

    and at last raw = W_e e + sum of W_role n_axis + W_c c with W = 0 at first.

    With `paths` channels the scalars of the first layer and of the last line are [e, o], where o are messages along
    paths of the features (`lopt.metanets.paths`): what orthogonalises momentum in Muon, on learned channels.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: Size = 16,
        neuron_width: Size = 32,
        layers: Layers = 2,
        paths: SizeOrZero = 0,
    ) -> None:
        super().__init__()
        self.paths = Paths(features, paths) if paths else None
        self.kind_embedding = nn.Parameter(0.1 * torch.randn(len(PARAMETER_KINDS), neuron_width))
        self.encode_context = affine_of(context, neuron_width)
        self.layers = nn.ModuleList(
            AxisLayer(width if layer else features + paths, neuron_width if layer else 0, width, neuron_width)
            for layer in range(layers)
        )
        self.head = ScalarUpdate(width + paths, neuron_width, neuron_width, outputs)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.in_pieces = not paths  # these go through whole matrices

    def prepare(self, graph: ParameterGraph) -> None:
        layout_of(graph)

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        layout = layout_of(graph)
        neurons, contexts = None, self._contexts(layout, context)
        scalars = layout.split(features)
        heard = None if self.paths is None else self.paths(layout.path_shapes, scalars)
        scalars = _beside(scalars, heard)
        for layer in self._rounds():
            scalars = layer.update.of(layout, scalars, layer.update.terms(neurons, contexts), hidden=True)
            neurons, contexts = layer.answer(neurons, contexts, *collect(layout, scalars))
        scalars = _beside(scalars, heard)
        return layout.join(self.head.of(layout, scalars, self.head.terms(neurons, contexts))), None

    def listen(
        self,
        graph: ParameterGraph,
        pieces: Sequence[Piece],
        features: Callable[[Piece], Tensor],
        context: Tensor,
        summed: Callable[[Tensor], Tensor],
    ) -> Heard:
        """Every layer goes through all pieces: from what they were before it, or, in large networks, made anew."""
        layout, keeps = layout_of(graph), graph.numel < SPARING
        cutouts = cutouts_of(graph, pieces)
        neurons, contexts = None, self._contexts(layout, context)
        before: list[tuple[ScalarUpdate, Terms]] = []
        kept: dict[tuple[int, int], list[Tensor]] = {}

        def scalars_of(piece: Piece) -> list[Tensor]:
            """After the last of the layers before."""
            own, scalars, rounds = cutouts[piece.place], kept.pop(piece.place, None), before[-1:]
            if scalars is None:
                scalars, rounds = own.split(features(piece)), before
            for update, terms in rounds:
                scalars = update.of(own, scalars, terms, hidden=True)
            return scalars

        for layer in self._rounds():
            before.append((layer.update, layer.update.terms(neurons, contexts)))
            sums = Sums(graph, layout, len(layer.update.scalar), context)
            for piece in pieces:
                scalars = scalars_of(piece)
                sums.add(cutouts[piece.place], scalars)
                if keeps:
                    kept[piece.place] = scalars
            neurons, contexts = layer.answer(neurons, contexts, *sums.means(summed))
        last = self.head.terms(neurons, contexts)

        def raw(piece: Piece) -> Tensor:
            own = cutouts[piece.place]
            scalars = kept.pop(piece.place, None) or scalars_of(piece)
            return own.join(self.head.of(own, scalars, last), sum(piece.sizes))

        return Heard([last.shared, *last.neurons.values(), self.head.scalar], raw)

    def _rounds(self) -> list[AxisLayer]:
        return [layer for layer in self.layers if isinstance(layer, AxisLayer)]

    def _contexts(self, layout: Layout, context: Tensor) -> Tensor:
        """(C, B) of tensors -> (H, B) of blocks."""
        contexts = affine(self.encode_context, context)[:, layout.plan.owners.to(context.device)]
        return relu(contexts + self.kind_embedding[layout.plan.kinds.to(context.device)].T)


class Terms(NamedTuple):
    """What blocks and neurons add to their scalars."""

    shared: Tensor
    """(outputs, B) W_c c."""
    neurons: dict[str, Tensor]
    """(outputs, N) W_role n, by role."""


class ScalarUpdate(nn.Module):
    """W_e e + sum over out and in axes of W_role n_axis + W_c c.

    (D, n) of each part, (H, N), (H, B) -> (outputs, n) of each part.
    """

    def __init__(self, width: int, neurons: int, contexts: int, outputs: int) -> None:
        super().__init__()
        self.fan_in = width
        self.scalar = nn.Parameter(torch.randn(outputs, width) / width**0.5)
        self.context = nn.Linear(contexts, outputs)
        self.neuron = nn.Linear(neurons, len(MESSAGE_ROLES) * outputs, bias=False) if neurons else None

    def terms(self, neurons: Tensor | None, contexts: Tensor) -> Terms:
        shared = affine(self.context, contexts)
        if self.neuron is None or neurons is None:
            return Terms(shared, {})
        halves = (self.neuron.weight @ neurons).chunk(len(MESSAGE_ROLES))
        return Terms(shared, dict(zip(MESSAGE_ROLES, halves, strict=True)))

    def of(
        self, where: Layout | Cutout, scalars: Sequence[Tensor], terms: Terms, hidden: bool = False
    ) -> list[Tensor]:
        """Parts of a network's scalars, with relu if they are `hidden` ones."""
        parts = [
            _strip_terms(strip, self.scalar @ own, terms)
            for strip, own in zip(where.strips, scalars, strict=False)
        ]
        if len(scalars) > len(parts):
            shared = terms.shared
            extra = shared[:, where.vector_blocks.to(shared.device)]
            if terms.neurons:
                extra = extra + terms.neurons["out"][:, where.vector_neurons.to(shared.device)]
            parts.append(self.scalar @ scalars[-1] + extra)
        # In place: what is passed over is new and nobody else's, and fresh memory costs more than the arithmetic.
        return [part.relu_() for part in parts] if hidden else parts


class AxisLayer(nn.Module):
    """One round of messages: scalars -> neurons and contexts; see `AxisNet`."""

    def __init__(self, inputs: int, neurons: int, width: int, neuron_width: int) -> None:
        super().__init__()
        self.update = ScalarUpdate(inputs, neurons, neuron_width, width)
        self.neuron = nn.Linear(neurons + len(MESSAGE_ROLES) * width, neuron_width)
        self.context = nn.Linear(2 * neuron_width + width, neuron_width)

    def answer(
        self, neurons: Tensor | None, contexts: Tensor, messages: Tensor, means: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What neurons (H, N) and contexts (H, B) make of messages (2 D, N) and blocks' means (D, B)."""
        known = messages if neurons is None else torch.cat([neurons, messages])
        overall = contexts.mean(-1, keepdim=True).expand_as(contexts)
        contexts = relu(affine(self.context, torch.cat([contexts, overall, means])))
        return relu(affine(self.neuron, known)), contexts


def _beside(scalars: list[Tensor], heard: list[Tensor] | None) -> list[Tensor]:
    return scalars if heard is None else [torch.cat(pair) for pair in zip(scalars, heard, strict=True)]


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x + b for every column: (inputs, n) -> (outputs, n)."""
    return layer.weight @ x + layer.bias[:, None]


def _strip_terms(strip: Strip, own: Tensor, terms: Terms) -> Tensor:
    """(D, r c) and what the block's context, rows and columns add to it."""
    matrix, count = strip.matrix, strip.stop - strip.start
    shared = terms.shared[:, matrix.index, None]
    rows = _side_terms(matrix.rows, terms.neurons, strip.start, strip.stop)
    rows = shared if rows is None else rows + shared
    columns = _side_terms(matrix.columns, terms.neurons, 0, matrix.shape[1])
    result = own.reshape(own.shape[0], count, matrix.shape[1]).add_(rows[:, :, None])
    return (result if columns is None else result.add_(columns[:, None, :])).reshape(own.shape)


def _side_terms(
    axes: tuple[BlockAxis, ...], terms: dict[str, Tensor], start: int, stop: int
) -> Tensor | None:
    """(D, n) sum of the terms of the neurons along some axes, of n scalars from `start` to `stop`; None for none."""
    if len(axes) == 1:
        axis = axes[0]
        known = axis.has_neurons and axis.role in terms
        return terms[axis.role][:, axis.start + start : axis.start + stop] if known else None
    shape = [axis.size for axis in axes]
    total: Tensor | None = None
    for position, axis in enumerate(axes):
        if axis.has_neurons and axis.role in terms:
            term = terms[axis.role][:, axis.start : axis.start + axis.size]
            term = term.reshape(-1, *[1] * position, axis.size, *[1] * (len(axes) - position - 1))
            total = term if total is None else total + term
    return None if total is None else total.expand(-1, *shape).reshape(total.shape[0], -1)[:, start:stop]


class Sums:
    """What `collect` makes of all scalars, of pieces one after another."""

    def __init__(self, graph: ParameterGraph, layout: Layout, width: int, like: Tensor) -> None:
        # All memory at first: what is kept between passing tensors leaves holes that the next ones do not fit.
        self._layout = layout
        indices = [matrix.index for matrix in layout.matrices]
        self._matrices = {index: in_rows(graph, layout.plan, index) for index in indices}
        sizes = [size for matrix in self._matrices.values() for size in matrix.shape]
        sides = len(sizes)
        sizes += [layout.plan.sizes[index] for index in layout.vectors]
        self._all = like.new_zeros(width, sum(sizes))
        parts = self._all.split(sizes, 1)
        self._rows = dict(zip(indices, parts[:sides:2], strict=True))
        self._columns = dict(zip(indices, parts[1:sides:2], strict=True))
        self._vectors = dict(zip(layout.vectors, parts[sides:], strict=True))

    def add(self, where: Cutout, scalars: Sequence[Tensor]) -> None:
        """(D, n) of each part of a piece."""
        for strip, part in zip(where.strips, scalars, strict=False):
            index = strip.matrix.index
            value = part.reshape(len(part), strip.stop - strip.start, strip.matrix.shape[1])
            self._rows[index][:, strip.start : strip.stop] = value.sum(2)
            self._columns[index] += value.sum(1)
        for index, start, vector in where.of_vectors(scalars):
            self._vectors[index][:, start : start + vector.shape[1]] = vector

    def means(self, summed: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """As `collect`: (2 D, N) messages and (D, B) block means, of the scalars of all ranks."""
        summed(self._all)
        messages: list[Tensor] = []
        totals: list[Tensor] = []
        for index, rows in self._rows.items():
            matrix = self._matrices[index]
            totals.append(rows.sum(1, keepdim=True))
            sides = (matrix.rows, rows), (matrix.columns, self._columns[index])
            messages += [sums for axes, values in sides for sums in _side_sums(axes, values)]
        vectors = list(self._vectors.values())
        heard = self._layout.messages.means([*messages, *vectors], (totals + vectors)[0])
        return torch.cat(heard.chunk(2, -1)), self._layout.contexts.means(totals + vectors, heard)


def collect(layout: Layout, scalars: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(D, n) of each part -> (2 D, N) messages, first from out axes, then from in axes, and (D, B) block means."""
    width = scalars[0].shape[0]
    messages, totals = [], []
    for matrix, part in zip(layout.matrices, scalars, strict=False):
        value = part.reshape(width, *matrix.shape)
        rows, columns = value.sum(2), value.sum(1)
        totals.append(rows.sum(1, keepdim=True))
        messages += [*_side_sums(matrix.rows, rows), *_side_sums(matrix.columns, columns)]
    if len(scalars) > len(layout.matrices):
        messages.append(scalars[-1])
        totals.append(scalars[-1])
    heard = layout.messages.means(messages, scalars[0])
    return torch.cat(heard.chunk(2, -1)), layout.contexts.means(totals, scalars[0])


def _side_sums(axes: tuple[BlockAxis, ...], values: Tensor) -> list[Tensor]:
    """(D, n) -> for each axis with neurons (D, size), the sum over the other axes."""
    if len(axes) == 1:
        return [values] if axes[0].has_neurons else []
    values = values.reshape(-1, *[axis.size for axis in axes])
    return [
        values.sum([1 + other for other in range(len(axes)) if other != position])
        for position, axis in enumerate(axes)
        if axis.has_neurons
    ]


@dataclass(frozen=True, eq=False)
class Inbox:
    """Where columns of sums go, M of them, to become means in one of X boxes each."""

    boxes: Tensor
    """(M,) the box of each column."""
    weights: Tensor
    """(M,) 1 / (how many values a column sums up, times how many columns its box gets)."""
    count: int
    """X."""

    @classmethod
    def of(cls, boxes: Tensor, summed: Tensor, count: int) -> Inbox:
        """`summed` (M,): how many values each column is the sum of."""
        shared = torch.bincount(boxes, minlength=count)[boxes]
        # In float64: rounded to the dtype of what is averaged when that is known.
        return cls(boxes, 1 / (summed * shared).double(), count)

    def means(self, columns: list[Tensor], like: Tensor) -> Tensor:
        """(D, m) columns, M in all -> (D, X); zeros in a box that gets none."""
        empty = like.new_zeros(like.shape[0], self.count)
        if not columns:
            return empty
        values = torch.cat(columns, 1) * self.weights.to(like)
        return empty.index_add(1, self.boxes.to(like.device), values)


@dataclass(frozen=True, eq=False)
class Layout:
    """A graph's blocks as parts: each block of several axes a matrix, and all biases and the like one vector.

    A network has about as many vectors as matrices, and so few scalars in them that only their number costs.
    """

    plan: Plan
    matrices: tuple[Matrix, ...]
    path_shapes: tuple[tuple[int, int] | None, ...]
    """Rows and columns of each part as messages along paths read it; None for parts of one axis or none."""
    strips: tuple[Strip, ...]
    """All rows of the matrices."""
    vectors: tuple[int, ...]
    """Blocks of a single out axis."""
    vector_blocks: Tensor
    """(n,) the block of each scalar in the vectors."""
    vector_neurons: Tensor
    """(n,) its neuron."""
    messages: Inbox
    """From scalars to the (2 N,) neurons, once for each role."""
    contexts: Inbox
    """From scalars to the (B,) blocks."""

    def split(self, flat: Tensor) -> list[Tensor]:
        """(F, P) in flat order -> the parts: (F, n) for each matrix, and at last, if there are any, the vectors."""
        if self.plan.order is not None:
            flat = flat[:, self.plan.order.to(flat.device)]
        blocks = flat.split(self.plan.sizes, -1)
        parts = [blocks[matrix.index] for matrix in self.matrices]
        return [*parts, torch.cat([blocks[index] for index in self.vectors], -1)] if self.vectors else parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        blocks = {matrix.index: part for matrix, part in zip(self.matrices, parts, strict=False)}
        if self.vectors:
            sizes = [self.plan.sizes[index] for index in self.vectors]
            blocks |= dict(zip(self.vectors, parts[-1].split(sizes, -1), strict=True))
        flat = torch.cat([blocks[index] for index in range(len(self.plan.blocks))], -1)
        return flat if self.plan.inverse is None else flat[:, self.plan.inverse.to(flat.device)]


def cutouts_of(graph: ParameterGraph, pieces: Sequence[Piece]) -> dict[tuple[int, int], Cutout]:
    """What each piece holds, by its place; kept on the graph, and made anew for other pieces."""
    kept: dict[tuple[int, int], tuple[Piece, Cutout]] = graph.__dict__.setdefault("lopt.cutouts", {})
    for piece in pieces:
        if piece.place not in kept or kept[piece.place][0] is not piece:
            kept[piece.place] = piece, cutout(graph, plan_of(graph), piece)
    return {piece.place: kept[piece.place][1] for piece in pieces}


@made_once
def layout_of(graph: ParameterGraph) -> Layout:
    """The layout of a graph, made once."""
    plan = plan_of(graph)
    vectors = tuple(i for i, block in enumerate(plan.blocks) if block.roles == ("out",))
    matrices = tuple(as_matrix(plan, index) for index in range(len(plan.blocks)) if index not in vectors)
    axes = [axes_of_block(plan, plan.blocks[index])[0] for index in vectors]
    neurons = _ranges([(axis.start, axis.size) for axis in axes])
    sent = [
        (
            axis.start + plan.neurons * MESSAGE_ROLES.index(axis.role),
            axis.size,
            prod(matrix.shape) // axis.size,
        )
        for matrix in matrices
        for axis in (*matrix.rows, *matrix.columns)
        if axis.has_neurons
    ]
    summed = [torch.full((size,), others) for _, size, others in sent]
    alone = torch.ones(len(neurons), dtype=torch.long)
    blocks = torch.tensor([i for i, axis in zip(vectors, axes, strict=True) for _ in range(axis.size)]).long()
    whole = torch.tensor([matrix.index for matrix in matrices]).long()
    sizes = torch.tensor([prod(matrix.shape) for matrix in matrices]).long()
    boxes = torch.cat([_ranges([(start, size) for start, size, _ in sent]), neurons])
    return Layout(
        plan=plan,
        matrices=matrices,
        path_shapes=(
            *(rows_and_columns(plan.blocks[matrix.index]) for matrix in matrices),
            *[None] * bool(vectors),
        ),
        strips=tuple(Strip(matrix, 0, matrix.shape[0]) for matrix in matrices),
        vectors=vectors,
        vector_blocks=blocks,
        vector_neurons=neurons,
        messages=Inbox.of(boxes, torch.cat([*summed, alone]), 2 * plan.neurons),
        contexts=Inbox.of(torch.cat([whole, blocks]), torch.cat([sizes, alone]), len(plan.blocks)),
    )


def _ranges(ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Ranges given by start and size, one after another."""
    return torch.cat([torch.arange(0), *(torch.arange(start, start + size) for start, size in ranges)])
