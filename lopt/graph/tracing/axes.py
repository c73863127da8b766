"""Axis variables: what operations say about which axes are the same neurons.

A variable (`Axis`) is an atom until something shows its inside: a view splits it into a *product* of factors
(heads x head size), a chunk or a concatenation into *concatenated* segments. `unify` ties two variables and
everything inside them; `fix` says that the entries must stay in place. Variables form a union-find forest, so
what one operation reveals holds for every tensor that shares the axis.

Whenever two structures do not fit, both axes are fixed instead of tied: a symmetry missed is safe, one invented
is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FIXED_KINDS = (
    "vocabulary", "input", "output", "tap", "position", "constant", "untied", "unused",
)  # fmt: skip
"""Why an axis must stay in place; where several reasons meet, the first of them is reported."""


class Axis:
    """One variable. Only its representative (`find`) carries up-to-date attributes."""

    __slots__ = ("activation", "children", "fixed", "form", "parent", "size", "unread")

    def __init__(
        self, size: int, fixed: str | None = None, form: str = "atom", children: Sequence[Axis] = ()
    ):
        self.size = size
        self.fixed = fixed
        self.form = form
        """"atom", "product" (of children, slowest first) or "concat" (of children, in order)."""
        self.children = list(children)
        self.parent: Axis | None = None
        self.activation: str | None = None
        self.unread = False
        """A part of a sliced axis that nothing has read so far."""

    def __repr__(self) -> str:
        root = find(self)
        inside = f" {root.form}{root.children}" if root.children else ""
        return f"<{root.size}{' ' + root.fixed if root.fixed else ''}{inside}>"


def find(axis: Axis) -> Axis:
    """The representative of all variables tied to this one."""
    while axis.parent is not None:
        if axis.parent.parent is not None:
            axis.parent = axis.parent.parent
        axis = axis.parent
    return axis


def leaves(axis: Axis) -> list[Axis]:
    """The atoms inside, in order."""
    root = find(axis)
    return [leaf for child in root.children for leaf in leaves(child)] if root.children else [root]


def is_fixed(axis: Axis) -> bool:
    """Whether every atom inside must stay in place."""
    return all(leaf.fixed for leaf in leaves(axis))


def fix(axis: Axis, why: str) -> None:
    """Keep the entries in place, for a reason out of `FIXED_KINDS`."""
    for leaf in leaves(axis):
        leaf.fixed = strongest(leaf.fixed, why)


def strongest(*reasons: str | None) -> str | None:
    """The first reason of `FIXED_KINDS` among those given."""
    return min((r for r in reasons if r), key=FIXED_KINDS.index, default=None)


def unify(a: Axis, b: Axis) -> Axis:
    """Tie two axes of one size; both are fixed where their structures do not fit."""
    a, b = find(a), find(b)
    if a is b:
        return a
    if a.size != b.size:
        return _give_up(a, b)
    if a.form == "atom" or b.form == "atom":
        atom, other = (a, b) if a.form == "atom" else (b, a)
        return _link(atom, other)
    if a.form == b.form:
        return _unify_products(a, b) if a.form == "product" else _unify_concats(a, b)
    product, concat = (a, b) if a.form == "product" else (b, a)
    segments = cut(product, [child.size for child in concat.children])
    if segments is None:
        return _give_up(a, b)
    for segment, child in zip(segments, concat.children, strict=True):
        unify(segment, child)
    return _link(find(product), find(concat))


def unify_all(axes: Sequence[Axis]) -> Axis:
    """Tie all of them (at least one)."""
    for other in axes[1:]:
        unify(axes[0], other)
    return axes[0]


def join(axes: Sequence[Axis]) -> Axis:
    """The concatenation of axes; a single one is itself."""
    parts: list[Axis] = []
    for axis in map(find, axes):
        parts += axis.children if axis.form == "concat" else [axis] if axis.size else []
    return parts[0] if len(parts) == 1 else Axis(sum(p.size for p in parts), form="concat", children=parts)


def merge(axes: Sequence[Axis]) -> Axis:
    """The product of axes, slowest first; factors of size 1 are dropped."""
    parts: list[Axis] = []
    for axis in map(find, axes):
        parts += axis.children if axis.form == "product" else [axis] if axis.size != 1 else []
    if not parts:
        return Axis(1, "position")
    return (
        parts[0]
        if len(parts) == 1
        else Axis(math.prod(p.size for p in parts), form="product", children=parts)
    )


def split(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Factors of the given sizes (slowest first) whose product is the axis; fixed ones where it does not fit."""
    factors: list[Axis] = []
    rest = axis
    for size in reversed(sizes[1:]):
        rest, inner = _bisect(rest, size)
        factors.append(inner)
    return [rest, *reversed(factors)]


def _bisect(axis: Axis, inner: int) -> tuple[Axis, Axis]:
    """(outer, inner) with outer x inner = axis."""
    root = find(axis)
    if inner == 1:
        return root, Axis(1, "position")
    if inner == root.size:
        return Axis(1, "position"), root
    halves = None
    if (root.children or not root.fixed) and root.size % inner == 0:
        halves = {"atom": _bisect_atom, "product": _bisect_product, "concat": _bisect_concat}[root.form](
            root, inner
        )
    if halves is None:
        why = strongest(*[leaf.fixed for leaf in leaves(root)]) or "untied"
        fix(root, why)
        return Axis(root.size // inner, why), Axis(inner, why)
    return halves


def _bisect_atom(root: Axis, inner: int) -> tuple[Axis, Axis]:
    # In place: every tensor that shares the axis has the same factors from now on.
    halves = [_like(root, root.size // inner), _like(root, inner)]
    root.form, root.children = "product", halves
    return halves[0], halves[1]


def _bisect_product(root: Axis, inner: int) -> tuple[Axis, Axis] | None:
    size, taken = 1, len(root.children)
    while size * root.children[taken - 1].size <= inner:
        taken -= 1
        size *= root.children[taken].size
    if size == inner:
        return merge(root.children[:taken]), merge(root.children[taken:])
    need, remainder = divmod(inner, size)
    if remainder or root.children[taken - 1].size % need:
        return None
    outer, part = _bisect(root.children[taken - 1], need)
    return merge([*root.children[: taken - 1], outer]), merge([part, *root.children[taken:]])


def _bisect_concat(root: Axis, inner: int) -> tuple[Axis, Axis] | None:
    if any(child.size % inner for child in root.children):
        return None
    halves = [_bisect(child, inner) for child in root.children]
    return join([outer for outer, _ in halves]), unify_all([part for _, part in halves])


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    """Consecutive segments of the given sizes; None (and nothing changed) where the structure does not allow it.

    Segments of size 0 are no part of the axis: a concatenation of one piece and nothing would hold itself as its part
    as soon as the two were tied.
    """
    pieces = _cut(find(axis), [size for size in sizes if size])
    if pieces is None:
        return None
    left = iter(pieces)
    return [next(left) if size else Axis(0, "position") for size in sizes]


def _cut(root: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    if len(sizes) <= 1:
        return [root][: len(sizes)]
    if root.form != "concat" and is_fixed(root):
        why = strongest(*[leaf.fixed for leaf in leaves(root)])
        return [Axis(size, why) for size in sizes]
    if root.form == "atom":
        root.form, root.children = "concat", [_like(root, size) for size in sizes]
        return list(root.children)
    return _cut_product(root, sizes) if root.form == "product" else _cut_concat(root, sizes)


def _cut_product(root: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    first, rest = root.children[0], root.children[1:]
    inner = root.size // first.size
    if any(size % inner for size in sizes):
        return None
    outer = cut(first, [size // inner for size in sizes])
    if outer is None:
        return None
    return [merge([piece, *rest]) for piece in outer]


def _cut_concat(root: Axis, sizes: Sequence[int]) -> list[Axis] | None:
    pieces: list[list[Axis]] = []
    queue = [find(child) for child in root.children]
    for size in sizes:
        taken: list[Axis] = []
        while size:
            child = queue.pop(0)
            if child.size > size:
                halves = cut(child, [size, child.size - size])
                if halves is None:
                    return None
                child, remainder = halves
                queue.insert(0, remainder)
            taken.append(child)
            size -= child.size
        pieces.append(taken)
    return [join(taken) for taken in pieces]


def _unify_products(a: Axis, b: Axis) -> Axis:
    if [c.size for c in a.children] == [c.size for c in b.children]:
        for x, y in zip(a.children, b.children, strict=True):
            unify(x, y)
        return _link(find(a), find(b))
    x, y = a.children[-1], b.children[-1]
    small = min(x.size, y.size)
    if x.size % small or y.size % small:
        return _give_up(a, b)
    (outer_a, inner_a), (outer_b, inner_b) = _bisect(a, small), _bisect(b, small)
    unify(inner_a, inner_b)
    unify(outer_a, outer_b)
    return _link(find(a), find(b))


def _unify_concats(a: Axis, b: Axis) -> Axis:
    sizes = _common_segments(a, b)
    pieces_a, pieces_b = cut(a, sizes), cut(b, sizes)
    if pieces_a is None or pieces_b is None:
        return _give_up(a, b)
    for x, y in zip(pieces_a, pieces_b, strict=True):
        unify(x, y)
    return _link(find(a), find(b))


def _common_segments(a: Axis, b: Axis) -> list[int]:
    ends: set[int] = set()
    for axis in (a, b):
        end = 0
        for child in axis.children:
            end += child.size
            ends.add(end)
    ordered = [0, *sorted(ends)]
    return [stop - start for start, stop in zip(ordered, ordered[1:], strict=False)]


def _give_up(a: Axis, b: Axis) -> Axis:
    reason = strongest(*[leaf.fixed for leaf in (*leaves(a), *leaves(b))]) or "untied"
    fix(a, reason)
    fix(b, reason)
    return a


def _link(a: Axis, b: Axis) -> Axis:
    """Make `b` the representative of `a`, an atom or an axis whose inside is tied to b's already."""
    if a is b:
        return b
    a.parent = b
    b.unread = b.unread and a.unread
    b.activation = b.activation or a.activation
    if a.form == "atom":
        if a.fixed:
            fix(b, a.fixed)
        for leaf in leaves(b):
            leaf.activation = leaf.activation or a.activation
            leaf.unread = leaf.unread and a.unread
    return b


def _like(axis: Axis, size: int) -> Axis:
    part = Axis(size, axis.fixed)
    part.activation, part.unread = axis.activation, axis.unread
    return part
