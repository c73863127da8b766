"""A network's scalars in pieces that a processor's cache holds, and the tensors that are finished together.

Shapes: N scalars of a tensor, n scalars of a piece, B parameters (tensors), b those that a piece has scalars of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import ParameterSpec
from lopt.graph.tensor_classes import Matrices, hidden_matrices, is_hidden_matrix, matrices_of
from lopt.metanets.plan import in_rows, plan_of
from lopt.numerics.segments import segment_expand

CACHED = 1 << 16
"""Scalars of a piece: a dozen rows of float32 fit the second-level cache, and calls cost less than arithmetic."""

LARGE = 1 << 14
"""Scalars from which a tensor is a piece by itself. Smaller ones are gathered: a copy costs less than the calls."""

WAVE = 1 << 18
"""Scalars of large tensors that are finished together, unless one has more: what is said of a tensor is then said of
several in one call, and no more memory is held."""


@dataclass(frozen=True, eq=False)
class Piece:
    """n scalars: a range of one tensor, or several whole tensors one after another."""

    owners: list[int]
    """(b,) which of the graph's parameters."""
    sizes: list[int]
    """(b,) how many scalars of each."""
    start: int = 0
    """Where the range starts in what this process holds of its tensor."""
    all: bool = False
    """Whether it is the whole graph in order."""
    offsets: tuple[int, ...] = ()
    """(b,) where in each tensor that begins which this process holds; none: at 0."""

    @property
    def place(self) -> tuple[int, int]:
        """Tensor and scalar that it begins with: a key, as `torch.compile` takes no hash of an object."""
        return self.owners[0], self.start

    @property
    def is_range(self) -> bool:
        """Whether it is of one tensor, of several in the graph."""
        return len(self.owners) == 1 and not self.all

    def take(self, tensors: Sequence[Tensor]) -> Tensor:
        """(*batch, N) of every parameter -> (*batch, n), a view where it is of one tensor."""
        if len(self.owners) == 1:
            tensor, size = tensors[self.owners[0]], self.sizes[0]
            return tensor if tensor.shape[-1] == size else tensor.narrow(-1, self.start, size)
        return torch.cat([tensors[owner] for owner in self.owners], -1)

    def put(self, values: Tensor, tensors: Sequence[Tensor]) -> None:
        """The inverse of `take`, in place."""
        if len(self.owners) == 1:
            tensors[self.owners[0]].narrow(-1, self.start, self.sizes[0]).copy_(values)
        else:
            torch._foreach_copy_([tensors[owner] for owner in self.owners], values.split(self.sizes, -1))

    def of(self, values: Tensor) -> Tensor:
        """(..., B) -> (..., b)."""
        if self.all or len(self.owners) == values.shape[-1]:  # in the order of the graph, so these are all
            return values
        if len(self.owners) == 1:
            return values.narrow(-1, self.owners[0], 1)
        return values.index_select(-1, self._index.to(values.device))

    def spread(self, values: Tensor) -> Tensor:
        """(..., B) for each tensor -> (..., n) for each scalar."""
        return segment_expand(self.of(values), self.sizes, self.index(values.device))

    def index(self, device: torch.device) -> Tensor | None:
        """(n,) which of the piece's tensors each scalar is of; None if there is one, or derivatives may be wanted."""
        return None if self.all or len(self.owners) == 1 else self._index_of_scalars.to(device)

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self.owners, device="cpu")

    @cached_property
    def _index_of_scalars(self) -> Tensor:
        sizes = torch.tensor(self.sizes, device="cpu")
        return torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Tensors that are finished together: one in several pieces, or several in one piece."""

    pieces: list[Piece]

    @property
    def owners(self) -> list[int]:
        return self.pieces[0].owners

    @property
    def parted(self) -> bool:
        """Whether no piece, or no process, need hold all of a tensor."""
        return len(self.pieces) > 1 or bool(self.pieces[0].offsets)

    @property  # not cached: what is compiled reads it, and below Python 3.12 a cached_property takes a lock
    def sizes(self) -> list[int]:
        """Scalars held of each tensor."""
        return self.pieces[0].sizes if len(self.pieces) == 1 else [sum(p.sizes[0] for p in self.pieces)]


@dataclass(frozen=True, eq=False)
class Wave:
    """Bundles that are finished at the same time."""

    bundles: list[Bundle]
    reads: dict[int, Matrices | None]
    """How each tensor is read as matrices, if it feeds hidden neurons."""
    numels: dict[int, int]
    """N of each tensor, held here or not."""

    @classmethod
    def of(cls, graph: ParameterGraph, bundles: list[Bundle]) -> Wave:
        owners = [owner for bundle in bundles for owner in bundle.owners]
        reads = hidden_matrices(graph)
        return cls(bundles, {i: reads[i] for i in owners}, {i: graph.sizes[i] for i in owners})

    @property
    def in_ranges(self) -> bool:
        """Whether it is of tensors in ranges of one member each, of all which feed hidden neurons, or none."""
        return all(_in_ranges(bundle, self.reads[bundle.owners[0]]) for bundle in self.bundles)


def _in_ranges(bundle: Bundle, read: Matrices | None) -> bool:
    # One piece may be of a tensor with several members, each to be orthogonalised by itself.
    return bundle.pieces[0].is_range and (read is None or read.members == 1 or bundle.parted)


@made_once
def uncut(graph: ParameterGraph) -> list[Wave]:
    """The whole graph as one piece."""
    return [Wave.of(graph, [Bundle([Piece(list(range(len(graph.sizes))), graph.sizes, all=True)])])]


@made_once
def cut(graph: ParameterGraph, most: int = CACHED, alone: int = LARGE) -> list[Bundle]:
    """Large tensors each in pieces of about `most` scalars, tensors below `alone` scalars gathered up to as many.

    A piece holds whole rows of its tensor, as metanets read it, and the scalars of one member where hidden matrices are
    stacked.
    """
    large: list[Bundle] = []
    small: list[int] = []
    for owner, (spec, unit) in enumerate(zip(graph.parameters.values(), units(graph), strict=True)):
        if spec.numel < alone:
            small.append(owner)
            continue
        sizes = _lengths(graph, spec, unit, most)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        large.append(Bundle([Piece([owner], [n], s) for n, s in zip(sizes, starts, strict=True)]))
    numels = graph.sizes
    groups = together(small, numels, most)
    return [*large, *(Bundle([Piece(owners, [numels[owner] for owner in owners])]) for owners in groups)]


def in_waves(graph: ParameterGraph, bundles: Sequence[Bundle], most: int = WAVE) -> list[Wave]:
    """Together go tensors in ranges, of which all are hidden or none is."""
    waves: list[list[Bundle]] = []
    last: dict[bool, list[Bundle]] = {}
    held: dict[bool, int] = {}
    for bundle in bundles:
        read, size = hidden_matrices(graph)[bundle.owners[0]], sum(bundle.sizes)
        hidden = read is not None
        if not _in_ranges(bundle, read):
            waves.append([bundle])
        elif hidden in last and held[hidden] + size <= most:
            last[hidden].append(bundle)
            held[hidden] += size
        else:
            last[hidden], held[hidden] = [bundle], size
            waves.append(last[hidden])
    return [Wave.of(graph, wave) for wave in waves]


def together(owners: Sequence[int], sizes: Sequence[int], most: int = CACHED) -> list[list[int]]:
    """Tensors one after another, in groups of at most `most` scalars."""
    groups: list[list[int]] = []
    held = 0
    for owner in owners:
        if not groups or held + sizes[owner] > most:
            groups.append([])
            held = 0
        groups[-1].append(owner)
        held += sizes[owner]
    return groups


def units(graph: ParameterGraph) -> list[int]:
    """Scalars that are not parted: a row of a tensor's only block as a matrix, or of the whole tensor."""
    plan = plan_of(graph)
    numels = {name: spec.numel for name, spec in graph.parameters.items()}
    blocks = enumerate(plan.blocks)
    alone = {block.parameter: i for i, block in blocks if plan.sizes[i] == numels[block.parameter]}
    return [
        in_rows(graph, plan, alone[name]).shape[1]
        if name in alone
        else spec.numel // max(spec.shape[0] if spec.shape else 1, 1)
        for name, spec in graph.parameters.items()
    ]


def _lengths(graph: ParameterGraph, spec: ParameterSpec, unit: int, most: int) -> list[int]:
    members = matrices_of(graph, spec.name).members if is_hidden_matrix(graph, spec.name) else 1
    member = spec.numel // members
    if member % unit or (members > 1 and member <= most):
        return [spec.numel]
    rows, step = member // unit, max(most // unit, 1)
    pieces = -(-rows // step)
    lengths = [unit * (rows * (i + 1) // pieces - rows * i // pieces) for i in range(pieces)]
    return lengths * members


def gathered(sums: Sequence[Tensor], pieces: Sequence[Piece], count: int) -> Tensor:
    """(S, b) sums over each piece's tensors -> (S, B) over the tensors of all pieces."""
    if len(sums) == 1 and sums[0].shape[-1] == count:
        return sums[0]
    owners = torch.tensor([owner for piece in pieces for owner in piece.owners], device=sums[0].device)
    return sums[0].new_zeros(len(sums[0]), count).index_add(1, owners, torch.cat(list(sums), 1))
