"""Views, permutations, slices and concatenations: where axes are split, merged, cut and joined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from lopt.graph.tracing.axes import Axis, cut, is_fixed, join, leaves, merge, split
from lopt.graph.tracing.ops.table import rule, wrap, wrap_all
from lopt.graph.tracing.speech import Speech, fixed_dims
from lopt.graph.tracing.values import Dim, Origin, Origins, Value

# -- values with segments --------------------------------------------------------------------------------------


def segmented(parts: Sequence[Value], at: int) -> Value:
    """A value made of parts along dimension `at`; a single part is itself."""
    if len(parts) == 1:
        return parts[0]
    dims = list(parts[0].dims)
    dims[at] = Dim(sum(p.dims[at].size for p in parts), None)
    return Value(tuple(dims), all(p.pure for p in parts), 0, None, tuple(parts), at)


def each_segment(x: Value, at: int, f: Callable[[Value], tuple[Dim, ...]]) -> Value:
    """Apply `f` to all segments; they lie along dimension `at` of the result."""
    return segmented([x.with_dims(f(p)) for p in x.segments], at)


# -- dimensions that only change places -------------------------------------------------------------------------


def reorder(x: Value, order: Sequence[int]) -> Value:
    """Dimension i of the result is dimension order[i]."""
    if x.segments:
        return each_segment(x, order.index(x.segment_dim), lambda p: tuple(p.dims[i] for i in order))
    return x.with_dims(tuple(x.dims[i] for i in order))


@rule("permute", "permute_copy", segments=True)
def permute(s: Speech, x: Value, order: Sequence[int]) -> Value:
    """Dimensions in another order."""
    return reorder(x, [wrap(d, x.rank) for d in order])


@rule("transpose", "swapaxes", segments=True)
def transpose(s: Speech, x: Value, a: int, b: int) -> Value:
    """Two dimensions change places."""
    order = list(range(x.rank))
    if order:
        a, b = wrap(a, x.rank), wrap(b, x.rank)
        order[a], order[b] = order[b], order[a]
    return reorder(x, order)


@rule("t", segments=True)
def t(s: Speech, x: Value) -> Value:
    """The transpose of a matrix."""
    return reorder(x, list(reversed(range(x.rank))))


@rule("unsqueeze", segments=True)
def unsqueeze(s: Speech, x: Value, dim: int) -> Value:
    """A new dimension of size 1."""
    at = wrap(dim, x.rank + 1)

    def grow(p: Value) -> tuple[Dim, ...]:
        return (*p.dims[:at], Dim(1, None), *p.dims[at:])

    if x.segments:
        return each_segment(x, x.segment_dim + (at <= x.segment_dim), grow)
    return x.with_dims(grow(x))


@rule("squeeze", segments=True)
def squeeze(s: Speech, x: Value, dim: int | Sequence[int] | None = None) -> Value:
    """Without (the given) dimensions of size 1."""
    gone = {d for d in wrap_all(dim, x.rank) if x.dims[d].size == 1}

    def shrink(p: Value) -> tuple[Dim, ...]:
        return tuple(d for i, d in enumerate(p.dims) if i not in gone)

    if x.segments:
        return each_segment(x, x.segment_dim - sum(g < x.segment_dim for g in gone), shrink)
    return x.with_dims(shrink(x))


@rule(
    "clone", "alias", "detach", "_to_copy", "contiguous", "lift_fresh_copy", "_conj", "positive", segments=True
)  # fmt: skip
def same(s: Speech, x: Value, *args: Any, **kwargs: Any) -> Value:
    """The same entries."""
    return x


@rule("expand", "expand_copy")
def expand(s: Speech, x: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Repeats dimensions of size 1; the result is constant along them."""
    new = len(s.shapes[0]) - x.rank
    old = [d if d.size == n else Dim(n, None) for d, n in zip(x.dims, s.shapes[0][new:], strict=True)]
    return (*[Dim(n, None) for n in s.shapes[0][:new]], *old)


@rule("repeat", "tile")
def repeat(s: Speech, x: Value, repeats: Sequence[int]) -> tuple[Dim, ...]:
    """Several copies one behind another."""
    new = len(repeats) - x.rank
    dims = [Dim(1, None)] * new + list(x.dims)
    return tuple(_times(d, r) for d, r in zip(dims, repeats, strict=True))


def _times(dim: Dim, copies: int) -> Dim:
    axis = dim.axis
    if copies != 1 and axis is not None:
        axis = merge([Axis(copies, "position"), axis])
    return Dim(dim.size * copies, axis, dim.origin)


# -- views ------------------------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "_reshape_copy", segments=True)
def view(s: Speech, x: Value, shape: Any, *args: Any) -> Any:
    """The same entries in row-major order under another shape."""
    if not isinstance(shape, list | tuple):  # reinterprets the bits as another dtype
        s.fix(s.whole(x).dims[-1])
        return x if s.shapes[0] == x.shape else None
    target = s.shapes[0]
    blocks = matching_blocks(x.shape, target)
    if 0 in target:  # products of 0 do not tell which dimension a segment went to
        x = s.whole(x)
    if x.segments:
        at = x.segment_dim
        source, result = next(block for block in blocks if at in block[0])
        if len(result) == 1 and source[0] == at:
            return _view_segments(s, x, blocks, target, result[0])
        x = s.whole(x)
    return _view_whole(s, x, blocks, target)


Blocks = list[tuple[list[int], list[int]]]


def matching_blocks(source: Sequence[int], target: Sequence[int]) -> Blocks:
    """The finest pairing of runs of dimensions with equal products; dimensions of size 1 belong to none.

    Pairs are sought from the last dimension on. Where there are no entries the products say too little from the
    dimension of size 0 on: what is left there is one run, whose products may differ.
    """
    left = [i for i, n in enumerate(source) if n != 1]
    right = [i for i, n in enumerate(target) if n != 1]
    blocks: Blocks = []
    while left and right:
        a, b = [left.pop()], [right.pop()]
        while (x := _count(source, a)) != (y := _count(target, b)) and (left if x < y else right):
            a.insert(0, left.pop()) if x < y else b.insert(0, right.pop())
        blocks.insert(0, (a, b))
    if blocks and (left or right):
        blocks[0] = ([*left, *blocks[0][0]], [*right, *blocks[0][1]])
    return blocks


def _count(shape: Sequence[int], places: Sequence[int]) -> int:
    """Entries of a run of dimensions; a size of 0 counts as a prime of its own, so that it meets itself alone."""
    return math.prod(shape[i] or 2**61 - 1 for i in places)


def _view_whole(s: Speech, x: Value, blocks: Blocks, target: Sequence[int]) -> Any:
    dims: list[Dim] = [Dim(1, None)] * len(target)
    pieces: tuple[int, list[list[Dim]]] | None = None
    for source, result in blocks:
        if len(source) + len(result) > 2 and any(x.dims[i].size == 0 for i in source):
            s.fix(*[x.dims[i] for i in source])
            for i in result:
                dims[i] = s.fixed(target[i])
            continue
        old = [x.dims[i] for i in source]
        origin = frozenset().union(*[d.origin for d in old])
        axis = merge([d.axis or Axis(d.size) for d in old]) if any(d.axis for d in old) else None
        sizes = [target[i] for i in result]
        if len(result) == 1:
            dims[result[0]] = Dim(sizes[0], axis, origin, old[0].view if len(source) == 1 else None)
            continue
        segments = _segments(s, axis, result, sizes, origin) if pieces is None else None
        if segments is not None:
            pieces = segments
            continue
        cuttable = axis is not None and not is_fixed(axis)
        axes = split(axis, sizes) if axis is not None else [None] * len(sizes)
        for k, (i, part) in enumerate(zip(result, axes, strict=True)):
            tag = (s.position, i) if cuttable and k < len(result) - 1 else None
            dims[i] = Dim(target[i], part, origin, tag)
    if pieces is None:
        return tuple(dims)
    at, alternatives = pieces
    block = next(result for _, result in blocks if at in result)
    parts = []
    for alternative in alternatives:
        new = dict(zip(block, alternative, strict=True))
        parts.append(x.with_dims(tuple(new.get(i, d) for i, d in enumerate(dims))))
    return segmented(parts, at)


def _segments(
    s: Speech, axis: Axis | None, result: Sequence[int], sizes: Sequence[int], origin: Origins
) -> tuple[int, list[list[Dim]]] | None:
    """The alternatives for a block of dimensions, one of which an earlier pass found taken apart."""
    k = next((k for k, i in enumerate(result[:-1]) if s.view_cuts(i)), None)
    if k is None or axis is None or is_fixed(axis):
        return None
    inner = math.prod(sizes[k + 1 :])
    ends = [0, *s.view_cuts(result[k]), sizes[k]]
    widths = [stop - start for start, stop in itertools.pairwise(ends)]
    outer, rest = split(axis, [math.prod(sizes[:k]), sizes[k] * inner])
    parts = cut(rest, [w * inner for w in widths])
    if parts is None:
        return None
    outers = split(outer, sizes[:k]) if k else []
    alternatives = []
    for start, width, part in zip(ends, widths, parts, strict=False):
        own = narrowed(origin, axis.size, start * inner, (start + width) * inner) if not k else origin
        axes = [*outers, *split(part, [width, *sizes[k + 1 :]])]
        alternatives.append([Dim(a.size, a if a.size > 1 else None, own) for a in axes])
    return result[k], alternatives


def _view_segments(s: Speech, x: Value, blocks: Blocks, target: Sequence[int], at: int) -> Any:
    source = next(source for source, result in blocks if x.segment_dim in source)
    inner = math.prod(x.shape[i] for i in source[1:])
    parts = []
    for p in x.segments:
        shape = list(target)
        shape[at] = p.dims[x.segment_dim].size * inner
        part = _view_whole(s, p, _with_segment(blocks, p, x.segment_dim, shape), shape)
        if isinstance(part, Value):  # segments inside segments are more than is kept
            part = s.whole(part).dims
        parts.append(p.with_dims(part))
    if len(source) == 1:
        return segmented(parts, at)
    return _joined(s, parts, at)


def _with_segment(blocks: Blocks, part: Value, dim: int, shape: Sequence[int]) -> Blocks:
    """The blocks of one segment, where its own dimension may have size 1."""
    if part.dims[dim].size > 1:
        return blocks
    kept = [([i for i in source if i != dim], result) for source, result in blocks]
    return [(source, result) for source, result in kept if source and shape[result[0]] != 1]


def _joined(s: Speech, parts: Sequence[Value], at: int) -> tuple[Dim, ...]:
    dims = []
    for i in range(parts[0].rank):
        column = [p.dims[i] for p in parts]
        if i != at:
            dims.append(s.tie(*column))
            continue
        axis = join([d.axis or Axis(d.size) for d in column])
        dims.append(Dim(axis.size, axis, frozenset().union(*[d.origin for d in column])))
    return tuple(dims)


# -- slices -----------------------------------------------------------------------------------------------------


def narrowed(origin: Origins, size: int, start: int, stop: int) -> Origins:
    """The origins of entries start..stop of a dimension, where it is the whole of their range."""
    return frozenset(
        Origin(o.tensor, o.axis, o.start + start, o.start + stop) if o.stop - o.start == size else o
        for o in origin
    )


def split_dim(s: Speech, x: Value, at: int, sizes: Sequence[int]) -> list[Value]:
    """`x` cut along dimension `at` into consecutive parts."""
    if x.segments and at == x.segment_dim:
        return _split_segments(s, x, at, sizes)
    if x.segments:
        columns = [split_dim(s, p, at, sizes) for p in x.segments]
        return [segmented([c[k] for c in columns], x.segment_dim) for k in range(len(sizes))]
    dim = x.dims[at]
    starts = [0, *itertools.accumulate(sizes)]
    if len(sizes) > 1:
        s.cut_view(dim, *starts)
    axes = _cut_axis(s, dim, sizes)
    parts = []
    for start, size, axis in zip(starts, sizes, axes, strict=False):
        piece = Dim(size, axis, narrowed(dim.origin, dim.size, start, start + size))
        parts.append(x.with_dims((*x.dims[:at], piece, *x.dims[at + 1 :])))
    return parts


def _cut_axis(s: Speech, dim: Dim, sizes: Sequence[int]) -> Sequence[Axis | None]:
    if dim.axis is None:
        return [None] * len(sizes)
    pieces = cut(dim.axis, sizes)
    if pieces is None:
        s.fix(dim)
        pieces = cut(dim.axis, sizes) or [Axis(n, "position") for n in sizes]
    return pieces


def _split_segments(s: Speech, x: Value, at: int, sizes: Sequence[int]) -> list[Value]:
    """Cut along the dimension of the segments: whole segments where the places fit."""
    queue = list(x.segments)
    results = []
    for size in sizes:
        taken: list[Value] = []
        while size:
            head = queue.pop(0)
            if head.dims[at].size > size:
                head, rest = split_dim(s, head, at, [size, head.dims[at].size - size])
                queue.insert(0, rest)
            taken.append(head)
            size -= head.dims[at].size
        dims = x.segments[0].dims
        empty = x.with_dims((*dims[:at], Dim(0, None), *dims[at + 1 :]))
        results.append(segmented(taken, at) if taken else empty)
    return results


@rule(
    "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", segments=True
)  # fmt: skip
def split_rule(s: Speech, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """Consecutive parts along a dimension."""
    at = wrap(dim, x.rank)
    return split_dim(s, x, at, [shape[at] for shape in s.shapes])


@rule("slice", "slice_copy", segments=True)
def slice_rule(
    s: Speech, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """Entries start, start + step, ... of a dimension."""
    at = wrap(dim, x.rank)
    size, left = x.dims[at].size, s.shapes[0][at]
    if left == size:
        return x
    if step != 1:
        x = s.whole(x)
        s.fix(x.dims[at])
        return (*x.dims[:at], s.fixed(left), *x.dims[at + 1 :])
    begin = min(max(wrap(start or 0, size), 0), size)
    return _narrow(s, x, at, begin, begin + left)


def _narrow(s: Speech, x: Value, at: int, begin: int, end: int) -> Value:
    """Entries begin..end; what is left of a parameter must stay in place until somebody reads it."""
    before = {id(leaf) for axis in x.axes() for leaf in leaves(axis)} if x.pure else set()
    size = x.dims[at].size
    sizes = [begin, end - begin, size - end]
    parts = split_dim(s, x, at, sizes)
    if x.pure and not x.segments:
        for part in parts:
            axis = part.dims[at].axis
            for leaf in leaves(axis) if axis is not None else ():
                leaf.unread = part is not parts[1] and (leaf.unread or id(leaf) not in before)
    return parts[1]


@rule("select", "select_copy", segments=True)
def select(s: Speech, x: Value, dim: int, index: int) -> Any:
    """One entry of a dimension."""
    at = wrap(dim, x.rank)
    index = wrap(int(index), x.dims[at].size)
    if x.segments and x.segment_dim != at:
        return each_segment(x, x.segment_dim - (at < x.segment_dim), lambda p: _select(s, p, at, index).dims)
    if x.segments:
        for p in x.segments:
            if index < p.dims[at].size:
                return _select(s, p, at, index)
            index -= p.dims[at].size
    return _select(s, x, at, index)


def _select(s: Speech, x: Value, at: int, index: int) -> Value:
    dim = x.dims[at]
    if dim.size > 1:
        s.cut_view(dim, index, index + 1)
        s.fix(dim)
    kept = [*x.dims[:at], *x.dims[at + 1 :]]
    if at < len(kept):  # the entries of one factor: a range of what the factors came from
        inner = math.prod(d.size for d in x.dims[at + 1 :] if d.origin == dim.origin)
        for i in range(at, len(kept)):
            if kept[i].origin and kept[i].origin == dim.origin:
                new = narrowed(dim.origin, dim.size * inner, index * inner, (index + 1) * inner)
                kept[i] = Dim(kept[i].size, kept[i].axis, new, kept[i].view)
    return x.with_dims(tuple(kept))


@rule("unbind", "unbind_copy", segments=True)
def unbind(s: Speech, x: Value, dim: int = 0) -> list[Any]:
    """Every entry of a dimension by itself."""
    return [select(s, x, dim, i) for i in range(x.dims[wrap(dim, x.rank)].size)]


# -- concatenations ---------------------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate", "_cat")
def cat(s: Speech, tensors: Sequence[Value], dim: int = 0) -> tuple[Dim, ...]:
    """Parts one behind another; a parameter among activations is learned input, such as a class token."""
    tensors = [
        v for v in tensors if v.shape != (0,)
    ] or tensors  # PyTorch passes over those, whatever the others' rank
    at = wrap(dim, tensors[0].rank)
    if not all(v.pure for v in tensors):
        for v in tensors:
            if v.pure:
                s.kind(v, "embedding")
    return _joined(s, tensors, at)


@rule("stack", "_stack")
def stack(s: Speech, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Parts side by side along a new dimension."""
    at = wrap(dim, tensors[0].rank + 1)
    parts = [v.with_dims((*v.dims[:at], Dim(1, None), *v.dims[at:])) for v in tensors]
    return segmented(parts, at)


@rule("constant_pad_nd", "pad")
def pad(s: Speech, x: Value, padding: Sequence[int], *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """A constant in front of and behind each dimension, given from the last one on."""
    dims = list(x.dims)
    for at, front, back in zip(reversed(range(x.rank)), padding[::2], padding[1::2], strict=False):
        dims[at] = _padded(s, x, at, front, back)
    return tuple(dims)


def _padded(s: Speech, x: Value, at: int, front: int, back: int) -> Dim:
    dim = x.dims[at]
    if front < 0 or back < 0:
        dim = _narrow(s, x, at, max(-front, 0), dim.size - max(-back, 0)).dims[at]
    front, back = max(front, 0), max(back, 0)
    if not front and not back:
        return dim
    if not dim.size:
        return Dim(front + back, None)
    if dim.axis is None or is_fixed(dim.axis):
        return s.fixed(front + dim.size + back)
    parts = [Axis(front), dim.axis, Axis(back)]
    return Dim(front + dim.size + back, join(parts))


@rule("diagonal", "diag_embed", "diag", "diagonal_copy", "as_strided", "unfold", "unfold_copy", "trace")
def positional(s: Speech, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Reads places: all dimensions that it names (or all) must stay as they are."""
    name = s.call.name
    if name.startswith("unfold"):
        at = wrap(args[0], x.rank)
        s.fix(x.dims[at])
        return (*x.dims[:at], s.fixed(s.shapes[0][at]), *x.dims[at + 1 :], s.fixed(s.shapes[0][-1]))
    s.fix(*x.dims)
    return fixed_dims(s.shapes[0])


@rule("view_as_complex", "view_as_complex_copy")
def view_as_complex(s: Speech, x: Value) -> tuple[Dim, ...]:
    """Pairs (real, imaginary) along the last dimension."""
    s.fix(x.dims[-1])
    return x.dims[:-1]


@rule("view_as_real", "view_as_real_copy")
def view_as_real(s: Speech, x: Value) -> tuple[Dim, ...]:
    """The inverse of `view_as_complex`."""
    return (*x.dims, s.fixed(2))


@rule("meshgrid", "broadcast_tensors")
def broadcast(s: Speech, tensors: Sequence[Value], *args: Any, **kwargs: Any) -> list[Any]:
    """Each tensor as large as all together."""
    if s.call.name == "broadcast_tensors":
        return [expand(s, v) for v in tensors]
    for v in tensors:
        s.fix(*v.dims)
    return [fixed_dims(shape) for shape in s.shapes]
