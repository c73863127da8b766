"""Matrix products and their kin: a contracted axis ties the two operands."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lopt.graph.tracing.ops.indexing import tie_chosen
from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.table import rule
from lopt.graph.tracing.speech import NoRuleError, Speech
from lopt.graph.tracing.values import NOWHERE, Dim, Mark, Value


def contract(s: Speech, operands: Sequence[Value], labels: Sequence[str], output: str) -> tuple[Dim, ...]:
    """A generalised product in Einstein notation: one label per dimension, equal labels are tied."""
    meets: dict[str, list[Dim]] = {}
    for value, names in zip(operands, labels, strict=True):
        for dim, name in zip(value.dims, names, strict=True):
            meets.setdefault(name, []).append(dim)
        for name in names:
            if names.count(name) > 1:  # a diagonal
                s.fix(meets[name][-1])
    sizes = {name: max(d.size for d in dims) for name, dims in meets.items()}  # others are 1: broadcast
    tied = {name: s.tie(*[d for d in dims if d.size == sizes[name]]) for name, dims in meets.items()}
    data = [v for v in operands if not v.pure]
    if data and len(data) < len(operands):
        _name_weights(s, operands, labels, output)
    elif len(data) == 2:
        _name_attention(s, *data)
    if not data:
        return tuple(tied[name] for name in output)
    # The output of a layer is indexed by the axes of its weight, not by those of its input.
    weights = [(v, names) for v, names in zip(operands, labels, strict=True) if v.pure]
    origins = [[v.dims[names.index(name)].origin for v, names in weights if name in names] for name in output]
    return tuple(replace(tied[n], origin=NOWHERE.union(*own)) for n, own in zip(output, origins, strict=True))


def _name_weights(s: Speech, operands: Sequence[Value], labels: Sequence[str], output: str) -> None:
    attended = any(v.mark is not None and v.mark.kind == "attended" for v in operands if not v.pure)
    data_labels = {name for v, names in zip(operands, labels, strict=True) if not v.pure for name in names}
    for value, names in zip(operands, labels, strict=True):
        if value.pure:
            s.kind(value, "output" if attended else "weight")
            read = [name for name in names if name in data_labels and name not in output]
            for dim, name in zip(value.dims, names, strict=True):
                # A weight that reads data has a matrix for each entry of what it only shares with them (experts).
                shared = bool(read) and name in data_labels and name in output
                s.role(dim, "tap" if shared else "in" if name in read else "out")
    s.mark = None


def _name_attention(s: Speech, a: Value, b: Value) -> None:
    """softmax(q k^T) v makes queries, keys and values of the layers that q, k and v came out of."""
    for probabilities, values in ((a, b), (b, a)):
        mark = probabilities.mark
        if mark is not None and mark.kind == "probabilities":
            name_attention(s, mark.queries, mark.keys, values)
            return
    s.mark = Mark("scores", a.origins, b.origins)


def name_attention(s: Speech, queries: Any, keys: Any, values: Value) -> None:
    """Give the layers their kinds, and mark the result as attended values."""
    s.refine(queries, "query")
    s.refine(keys, "key")
    s.refine(values.origins, "value")
    s.mark = Mark("attended")


PRODUCTS = {
    "mm": ("ik", "kj", "ij"), "_sparse_mm": ("ik", "kj", "ij"), "_int_mm": ("ik", "kj", "ij"),
    "bmm": ("nik", "nkj", "nij"), "mv": ("ik", "k", "i"), "dot": ("k", "k", ""), "vdot": ("k", "k", ""),
    "addmm": ("ik", "kj", "ij"), "_sparse_addmm": ("ik", "kj", "ij"), "_addmm_activation": ("ik", "kj", "ij"),
    "addmv": ("ik", "k", "i"), "baddbmm": ("nik", "nkj", "nij"), "addbmm": ("nik", "nkj", "ij"),
    "addr": ("i", "j", "ij"),
}  # fmt: skip
"""Products of two tensors a and b in Einstein notation: a, b -> result."""


@rule("mm", "_sparse_mm", "_int_mm", "bmm", "mv", "dot", "vdot")
def product(s: Speech, a: Value, b: Value, **_: Any) -> tuple[Dim, ...]:
    """A product of `PRODUCTS`."""
    *labels, output = PRODUCTS[s.call.name]
    return contract(s, [a, b], labels, output)


@rule("addmm", "_sparse_addmm", "_addmm_activation", "addmv", "baddbmm", "addbmm", "addr")
def bias_and_product(s: Speech, bias: Value, a: Value, b: Value, **_: Any) -> tuple[Dim, ...]:
    """bias + a product of `PRODUCTS`."""
    return plus(s, bias, product(s, a, b), [a, b])


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(
    s: Speech, a: Value, b: Value, offs: Value | None = None, *_: Any, **__: Any
) -> tuple[Dim, ...]:
    """Rows of a, in runs, each times its own matrix (experts): (n, k) (e, k, j) -> (n, j)."""
    if (a.rank, b.rank) != (2, 3):
        raise NoRuleError
    s.fix(a.dims[0], b.dims[0])
    tie_chosen(s, b.dims[0], offs)
    if b.pure:
        s.role(b.dims[0], "tap")
    return contract(s, [a, b], ["nk", "ekj"], "nj")


def plus(s: Speech, bias: Value | None, dims: tuple[Dim, ...], operands: Sequence[Value]) -> tuple[Dim, ...]:
    """A product and the bias that is added to it."""
    if bias is None:
        return dims
    mark = s.mark
    summed = pointwise(s, bias, Value(dims, all(v.pure for v in operands), mark=mark), op="add")
    s.mark = mark
    return tuple(summed)


@rule("linear")
def linear(s: Speech, x: Value, weight: Value, bias: Value | None = None) -> tuple[Dim, ...]:
    """x W^T + b over the last dimension of x."""
    batch = string.ascii_uppercase[: x.rank - 1]
    out = batch + ("o" if weight.rank == 2 else "")
    return plus(s, bias, contract(s, [x, weight], [batch + "i", "oi"[-weight.rank :]], out), [x, weight])


@rule("einsum")
def einsum(s: Speech, equation: str, *operands: Any, **_: Any) -> tuple[Dim, ...]:
    """Einstein summation; an ellipsis stands for dimensions aligned from the right."""
    values = (
        list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    )
    terms, arrow, output = equation.replace(" ", "").partition("->")
    labels = [_spelled(term, v.rank) for term, v in zip(terms.split(","), values, strict=True)]
    if not arrow:
        # As in NumPy: the ellipsis, then what occurs once, in the order of the alphabet.
        every = "".join(labels)
        once = sorted(name for name in set(every) if every.count(name) == 1 and ord(name) < 0x100)
        output = "".join(sorted({name for name in every if ord(name) >= 0x100}, reverse=True)) + "".join(once)
    elif "..." in output:
        output = _spelled(output, len(s.shapes[0]))
    return contract(s, values, labels, output)


def _spelled(term: str, rank: int) -> str:
    """An ellipsis replaced by labels that no equation uses, counted from the right."""
    if "..." not in term:
        return term
    extra = rank - len(term.replace("...", ""))
    return term.replace("...", "".join(chr(0x100 + k) for k in reversed(range(extra))))


@rule("_trilinear")
def trilinear(
    s: Speech, a: Value, b: Value, c: Value, new_a: Any, new_b: Any, new_c: Any, summed: Any, *_: Any
) -> tuple[Dim, ...]:
    """sum of a * b * c after new dimensions of size 1: what `nn.Bilinear` is made of."""
    rank = a.rank + len(new_a)
    labels = []
    for value, new in ((a, new_a), (b, new_b), (c, new_c)):
        labels.append("".join(chr(0x100 + d) for d in range(rank) if d not in new))
        if len(labels[-1]) != value.rank:
            raise NoRuleError
    output = "".join(chr(0x100 + d) for d in range(rank) if d not in summed)
    return contract(s, [a, b, c], labels, output)


@rule("_cdist_forward", "cdist", "_euclidean_dist")
def distances(s: Speech, a: Value, b: Value, *_: Any) -> tuple[Dim, ...]:
    """(n, i, k) (n, j, k) -> (n, i, j): distances between rows."""
    batch = string.ascii_uppercase[: max(a.rank, b.rank) - 2]
    own_a, own_b = (batch[len(batch) - v.rank + 2 :] for v in (a, b))
    return contract(s, [a, b], [own_a + "ik", own_b + "jk"], batch + "ij")


@rule("_pdist_forward")
def pdist(s: Speech, x: Value, *_: Any) -> tuple[Dim, ...]:
    """Distances between all rows of one matrix."""
    s.fix(x.dims[0])
    return (s.fixed(s.shapes[0][0]),)


@rule("linalg_solve_triangular")
def solve_triangular(s: Speech, a: Value, b: Value, *, left: bool = True, **_: Any) -> tuple[Dim, ...]:
    """x with a x = b (or x a = b): what is above and what below the diagonal stays so."""
    if a.rank != b.rank:
        raise NoRuleError
    s.fix(*a.dims[-2:], b.dims[-2 if left else -1])
    batch = string.ascii_uppercase[: a.rank - 2]
    if left:
        return contract(s, [a, b], [batch + "ij", batch + "jk"], batch + "ik")
    return contract(s, [b, a], [batch + "ki", batch + "ij"], batch + "kj")
