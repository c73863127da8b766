"""Whitening: what the gradients of a hidden matrix's rows, and of its columns, have in common, evened out.

Second moments of both sides are followed, L <- b L + (1 - b) G G^T and R <- b R + (1 - b) G^T G, and their roots stand
around a matrix X, A X B with A = (L / l + s^2)^(-1/4), l the mean eigenvalue of L, and B of R: Shampoo's (Gupta, Koren
and Singer 2018, arXiv 1802.09568, algorithm 1) but for the mean in place of the sum. In coordinates Z = A^-1 P B^-1
gradients are A G B, so that A O(A M B) B, where O orthogonalises, is steepest descent there in the spectral norm, seen
from P. With diagonal moments this is what `directions.evening` does entry by entry; unlike eigenbases (SOAP), roots
keep every symmetry: permuting rows permutes A.

Shapes: M members of a tensor of r rows and c columns each, n of a side; B parameters (tensors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.config import Count, Decay, Settings
from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.tensor_classes import Matrices, hidden_matrices
from lopt.numerics.moments import LIMIT, TINY
from lopt.numerics.newton_schulz import orthogonalised
from lopt.rules.base import State, Tensors
from lopt.rules.shards import Beside, OneProcess

FLOOR = 0.3
"""s: of the root of the mean eigenvalue, what is added to all: rare gradients do not make the longest steps."""

POWER = 0.25
"""Of the inverse roots: both sides together take out half of the difference in size, as the root of a root does."""

KEPT = ("_moment", "_root")
"""How the names of a side's state end. Moments first: over ranks, roots that were not due need not be sent back."""


class Whitening(Settings):
    """How hidden matrices are whitened."""

    decay: Decay = 0.99
    """b, of both sides' second moments."""
    every: Count = 4
    """Steps from one making of the roots to the next: it takes about as long as orthogonalisation."""
    largest: Count = 256
    """Rows or columns above which a side has but the diagonal of its moment: else n^2 memory and n^3 time. A matrix
    with both sides longer is not whitened."""


class Around(NamedTuple):
    """The roots around each of the M members of one tensor: (n, n), or their diagonals (n,)."""

    rows: Sequence[Tensor]
    columns: Sequence[Tensor]

    def put(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """(r, c) of each member -> A X B."""
        around = zip(matrices, self.rows, self.columns, strict=True)
        return [_between(a @ x if a.dim() == 2 else a[:, None] * x, b) for x, a, b in around]


def orthogonalised_members(
    tensors: Sequence[Sequence[Tensor]], around: Sequence[Around | None]
) -> list[list[Tensor]]:
    """O(X) of the matrix X (r, c) of each member of several tensors, or A O(A X B) B of those that are whitened."""
    given = [own.put(members) if own else members for own, members in zip(around, tensors, strict=True)]
    results = iter(orthogonalised([matrix for members in given for matrix in members]))
    found = [[next(results) for _ in members] for members in given]
    return [own.put(members) if own else members for own, members in zip(around, found, strict=True)]


def _between(x: Tensor, b: Tensor) -> Tensor:
    """X B with B (n, n), or of its diagonal (n,)."""
    return x @ b if b.dim() == 2 else x * b


def prepare(graph: ParameterGraph, settings: Whitening) -> None:
    """Make now what is kept on the graph."""
    for read in whitened(graph, settings.largest).values():
        for n in (read.rows, read.columns):
            if n <= settings.largest:
                triangle(graph, n)


@made_once
def whitened(graph: ParameterGraph, largest: int) -> dict[str, Matrices]:
    """The hidden tensors that are whitened, and how they are read."""
    specs = zip(graph.parameters.values(), hidden_matrices(graph), strict=True)
    return {
        spec.name: read
        for spec, read in specs
        if read is not None and spec.numel and min(read.rows, read.columns) <= largest
    }


def started(graph: ParameterGraph, settings: Whitening, like: Tensor) -> State:
    """By tensor the state before the first step: moments of zero, roots that change nothing.

    Flat, the upper triangles (M n (n + 1) / 2,) or the diagonals (M n,): half the memory, and none has the shape of a
    parameter, by which states are laid out over ranks.
    """
    state: State = {}
    for name, read in whitened(graph, settings.largest).items():
        state[name] = {}
        for side, n in (("rows", read.rows), ("columns", read.columns)):
            if n > settings.largest:
                state[name][f"{side}_moment"] = like.new_zeros(read.members * n)
                continue
            one = torch.eye(n, dtype=like.dtype, device=like.device).repeat(read.members, 1, 1)
            held = triangle(graph, n).packed(one)
            state[name] |= {f"{side}_moment": torch.zeros_like(held), f"{side}_root": held}
    return state


class Whitened(NamedTuple):
    """The roots at one step."""

    around: Sequence[Around | None]
    """(B,)"""
    moved: Mapping[str, Mapping[str, Tensor]]
    """By tensor its next state."""

    def onto(self, state: State) -> State:
        """With the next moments and roots in the place of these."""
        return {**state, **{name: {**state[name], **own} for name, own in self.moved.items()}}


def followed(
    graph: ParameterGraph,
    settings: Whitening,
    grads: Tensors,
    state: State,
    steps: Tensor,
    share: Tensor,
    host: bool,
    held: OneProcess,
) -> Whitened:
    """Moments with these gradients, and roots where they are due, in the dtype of steps (B,), with this one.

    The exponent of roots is `share` (B,) of a quarter. Over ranks each tensor's are made where it is whole, and known
    only there; of the others' roots there is nothing.

    On the `host` nothing is made that is not due; else, as under vmap, all is, and chosen.
    """
    known = steps.tolist() if host and _has_values(steps) else [None] * steps.shape[0]
    now = [None if step is None else (step - 1) % settings.every == 0 for step in known]
    powers = (-POWER * share).unbind()
    reads, names = whitened(graph, settings.largest), list(graph.parameters)
    elsewhere = Around((), ())
    around = [elsewhere if name in reads else None for name in names]
    keys: dict[int, list[str]] = {}
    given: dict[int, Beside] = {}
    for i, name in enumerate(names):
        if name not in reads:
            continue
        keys[i] = [key for end in KEPT for key in state[name] if key.endswith(end)]
        lengths = [_length(reads[name], key, settings) for key in keys[i]]
        changed = sum(key.endswith(KEPT[0]) for key in keys[i]) if now[i] is False else len(lengths)
        # State may come from a file of another precision.
        tensors = [state[name][key].to(steps.dtype) for key in keys[i]]
        given[i] = Beside(grads[name].to(steps.dtype).flatten(), tensors, lengths, changed)

    def next_of(i: int, grad: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        read, before = reads[names[i]], dict(zip(keys[i], tensors, strict=True))
        own: dict[str, Tensor] = {}
        roots: list[Sequence[Tensor]] = []
        grad = grad.clamp(-LIMIT, LIMIT).reshape(read)
        for side, n, seen in (("rows", read.rows, grad), ("columns", read.columns, grad.mT)):
            packed = triangle(graph, n) if f"{side}_root" in before else None
            product = packed.packed(torch.bmm(seen, seen.mT)) if packed else (seen * seen).sum(-1).flatten()
            own[f"{side}_moment"] = moment = before[f"{side}_moment"].lerp(product, 1 - settings.decay)
            if packed is None:
                roots.append(inverse_root_of_diagonal(moment.reshape(-1, n), powers[i]).unbind())
                continue
            root = before[f"{side}_root"]
            if now[i] is not False:
                made = packed.packed(inverse_root(packed.unpacked(moment), powers[i]))
                due = (steps[i] - 1) % settings.every == 0
                root = made if now[i] else torch.where(due, made, root)
            own[f"{side}_root"] = root
            roots.append(packed.unpacked(root).unbind())
        around[i] = Around(*roots)
        return [own[key] for key in keys[i]]

    moved = held.with_owners(given, next_of)
    return Whitened(
        around, {names[i]: dict(zip(keys[i], tensors, strict=False)) for i, tensors in moved.items()}
    )


def _length(read: Matrices, key: str, settings: Whitening) -> int:
    """Scalars of a side's moment or root."""
    n = read.rows if key.startswith("rows") else read.columns
    return read.members * (n if n > settings.largest else n * (n + 1) // 2)


class Triangle(NamedTuple):
    """How symmetric matrices (M, n, n) are held as their upper triangles, row by row, (M n (n + 1) / 2,)."""

    n: int
    # On the CPU, as a graph has no device; they go to the values' at each use.
    upper: Tensor
    """(n (n + 1) / 2,) where in a matrix each entry of its triangle is."""
    place: Tensor
    """(n^2,) where in a triangle each entry of its matrix is."""

    @classmethod
    def of(cls, n: int) -> Triangle:
        with torch.device("cpu"):
            rows, columns = torch.triu_indices(n, n)
            place = torch.empty(n, n, dtype=torch.int64)
            place[rows, columns] = place[columns, rows] = torch.arange(len(rows))
            return cls(n, rows * n + columns, place.flatten())

    def packed(self, matrices: Tensor) -> Tensor:
        """(M, n, n) -> (M n (n + 1) / 2,)."""
        upper = self.upper.to(matrices.device)
        if matrices.shape[0] == 1:
            return matrices.reshape(-1).index_select(0, upper)
        return matrices.flatten(1).index_select(1, upper).flatten()

    def unpacked(self, triangles: Tensor) -> Tensor:
        """The inverse of `packed`."""
        each, place = self.upper.shape[0], self.place.to(triangles.device)
        if triangles.shape[0] == each:
            return triangles.index_select(0, place).reshape(1, self.n, self.n)
        return triangles.reshape(-1, each).index_select(1, place).unflatten(1, (self.n, self.n))


@made_once
def triangle(graph: ParameterGraph, n: int) -> Triangle:
    """Kept, as making one takes longer than ten uses."""
    return Triangle.of(n)


def _has_values(tensor: Tensor) -> bool:
    """Whether it may be asked for its values: a graph of kernels in the making has none, nor has the meta device."""
    return not (tensor.is_meta or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()))


def inverse_root(moment: Tensor, power: Tensor | float) -> Tensor:
    """(M, n, n) L -> (L / l + s^2)^power, to derivatives of L a constant; what is not finite counts as 0."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    even = (moment / (mean + TINY)).detach().nan_to_num(0.0, 0.0, 0.0)
    values, vectors = torch.linalg.eigh(even)
    return torch.bmm(vectors * _evened(values, power)[..., None, :], vectors.mT)


def inverse_root_of_diagonal(moment: Tensor, power: Tensor | float) -> Tensor:
    """(M, n) -> (M, n): the same of a diagonal matrix."""
    return _evened((moment / (moment.mean(-1, keepdim=True) + TINY)).detach(), power)


def _evened(values: Tensor, power: Tensor | float) -> Tensor:
    return (values.clamp(min=0) + FLOOR * FLOOR) ** power
