"""Look-ups and scatters: the axis that is indexed must stay in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lopt.graph.tracing.axes import find
from lopt.graph.tracing.ops.pointwise import pointwise
from lopt.graph.tracing.ops.table import rule, wrap
from lopt.graph.tracing.speech import Speech, fixed_dims
from lopt.graph.tracing.values import Dim, Value


def look_up(s: Speech, table: Value, index: Value | None, at: int) -> None:
    """Fix the indexed dimension of a table, and say what the table is to the network."""
    by_position = index is None or index.pure
    s.fix(table.dims[at], why="position" if by_position else "vocabulary")
    if table.pure:
        s.kind(table, "position" if by_position else "embedding")
        for i, dim in enumerate(table.dims):
            s.role(dim, "in" if i == at else "out")


def look_up_chosen(s: Speech, table: Value, index: Value, at: int) -> None:
    """`look_up`, but where the index is the choice of a router the table holds the members that it chooses from."""
    if table.pure and not index.pure and tie_chosen(s, table.dims[at], index):
        s.kind(table, "weight" if table.rank > 2 else "bias")
        others = iter(("out", "in", *["tap"] * table.rank))
        for i, dim in enumerate(table.dims):
            s.role(dim, "tap" if i == at else next(others))
        s.fix(table.dims[at])
    else:
        look_up(s, table, index, at)


def tie_chosen(s: Speech, members: Dim, index: Value | None) -> bool:
    """Tie the axis of what is chosen (experts' weights) to the one it is chosen along (the router's); whether it is.

    A table that is chosen from by its own entries (the nearest of a codebook) is a table as any other.

    The axis stays in place, though a permutation of the experts would change no output: choices are numbers that name
    places, and what is done with them next (sorting tokens by expert, running sums of counts, one turn of a loop for
    each expert) is equivariant only as a whole, which no rule of a single operation can show.
    """
    chosen = index.mark.chosen if index is not None and index.mark is not None else None
    if chosen is None or members.axis is None or chosen.size != members.size:
        return False
    if find(chosen) is find(members.axis):
        return False
    s.tie(members, Dim(members.size, chosen))
    return True


@rule("embedding")
def embedding(s: Speech, table: Value, index: Value, *args: Any) -> tuple[Dim, ...]:
    """Rows of a table."""
    look_up(s, table, index, 0)
    rows = [Dim(d.size, d.axis) if d.axis is not None else s.fixed(d.size) for d in index.dims]
    return (*rows, *table.dims[1:])


@rule("_embedding_bag", "_embedding_bag_forward_only", "embedding_bag")
def embedding_bag(s: Speech, table: Value, index: Value, *args: Any, **kwargs: Any) -> list[Any]:
    """Sums or means of rows of a table."""
    look_up(s, table, index, 0)
    # Its rows, their numbers and their weights stand beside one another, in bags.
    s.fix(*[d for v in (index, *args, *kwargs.values()) if isinstance(v, Value) for d in v.dims])
    return [(s.fixed(s.shapes[0][0]), *table.dims[1:]), *[None] * (len(s.shapes) - 1)]


@rule("embedding_renorm")
def embedding_renorm(s: Speech, table: Value, *args: Any) -> tuple[Dim, ...]:
    """Rescales rows in place."""
    return table.dims


@rule("index_select")
def index_select(s: Speech, x: Value, dim: int, index: Value) -> tuple[Dim, ...]:
    """Entries of one dimension, in another order."""
    at = wrap(dim, x.rank)
    look_up_chosen(s, x, index, at) if not index.pure else s.fix(x.dims[at])
    s.fix(*index.dims)
    return (*x.dims[:at], s.fixed(s.shapes[0][at]), *x.dims[at + 1 :])


def indexed(s: Speech, x: Value, indices: Sequence[Value | None]) -> list[tuple[int, Value]]:
    """(dimension of x, its index); a boolean mask stands for as many dimensions as it has."""
    places: list[tuple[int, Value]] = []
    at = 0
    for number, i in enumerate(indices):
        width = i.rank if i is not None and s.is_mask(1, number) else 1
        places += [(at + k, i) for k in range(width) if i is not None]
        at += width
    return places


@rule("index", "_unsafe_index")
def index(s: Speech, x: Value, indices: Sequence[Value | None]) -> tuple[Dim, ...]:
    """x[..., i, ..., j, ...]: the indexed dimensions give way to those of the indices, broadcast."""
    lookups = indexed(s, x, indices)
    for at, i in lookups:
        look_up_chosen(s, x, i, at)
        s.fix(*i.dims)
    places = [at for at, _ in lookups]
    shape = s.shapes[0]
    new = len(shape) - (x.rank - len(places))
    # As in NumPy: new dimensions stand where the indexed ones were if those are neighbours, and in front if not.
    adjacent = places == list(range(places[0], places[-1] + 1))
    first = places[0] if adjacent else 0
    kept = [d for at, d in enumerate(x.dims) if at not in places]
    return (*kept[:first], *[s.fixed(n) for n in shape[first : first + new]], *kept[first:])


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(
    s: Speech, x: Value, indices: Sequence[Value | None], values: Value, *args: Any, **kwargs: Any
) -> tuple[Dim, ...]:
    """x[indices] = values."""
    lookups = indexed(s, x, indices)
    if len({id(i) for _, i in lookups}) == 1 and s.is_mask(1, 0) and values.shape in ((), (1,)):
        return _masked(s, x, lookups[0][1])
    for at, i in lookups:
        s.fix(x.dims[at])
        s.fix(*i.dims)
    if [at for at, _ in lookups] != list(range(len(lookups))):
        s.fix(*x.dims, *values.dims)
        return _in_place(s, x.dims, *range(x.rank))
    # Leading dimensions only: those behind are the value's last ones, in their places.
    count = len(lookups)
    behind = list(x.dims[count:])
    for k, v in enumerate(values.dims[::-1], 1):
        if k > len(behind):
            s.fix(v)
        elif behind[-k].size == v.size:
            behind[-k] = s.tie(behind[-k], v)
    return _in_place(s, [*x.dims[:count], *behind], *range(count))


def _masked(s: Speech, x: Value, mask: Value) -> tuple[Dim, ...]:
    """x[mask] = one number: which entries are written to goes along with them."""
    behind = [Dim(1, None)] * (x.rank - mask.rank)
    result: tuple[Dim, ...] = pointwise(s, x, mask.with_dims((*mask.dims, *behind)), op="masked_fill")
    return result


@rule("gather", "take_along_dim")
def gather(s: Speech, x: Value, dim: int, index: Value, **kwargs: Any) -> tuple[Dim, ...]:
    """x[..., index, ...] along one dimension; along the others, equal places."""
    s.mark = x.mark  # what is read is no choice because the index is one
    return _along(s, x, wrap(dim, x.rank), index)


def _along(s: Speech, x: Value, at: int, index: Value) -> tuple[Dim, ...]:
    dims = []
    for i, (d, other) in enumerate(zip(x.dims, index.dims, strict=True)):
        if i != at and d.size == other.size:
            dims.append(s.tie(d, other))
        else:
            s.fix(other)
            if i != at or not _of_the_same(s, d, index):
                s.fix(d)
            dims.append(s.fixed(other.size))
    return tuple(dims)


def _of_the_same(s: Speech, dim: Dim, index: Value) -> bool:
    """Whether the numbers name places of the axis that they were chosen along, which the dimension then has."""
    chosen = index.mark.chosen if index.mark is not None else None
    if chosen is None:
        return False
    if chosen.size != dim.size:
        s.fix(Dim(chosen.size, chosen))
        return False
    s.tie(dim, Dim(chosen.size, chosen))
    return True


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(s: Speech, x: Value, dim: int, index: Value, source: Any = None, *_: Any, **kwargs: Any) -> Any:
    """The inverse of `gather`, on top of x."""
    s.mark = x.mark
    at = wrap(dim, x.rank)
    written = _along(s, x, at, index)
    if isinstance(source, Value) and source.rank == x.rank:
        s.fix(source.dims[at])
        others = zip(written, source.dims, strict=True)
        written = tuple(d if i == at else _meeting(s, d, other) for i, (d, other) in enumerate(others))
    dims = [
        d if i == at else _meeting(s, d, other)
        for i, (d, other) in enumerate(zip(x.dims, written, strict=True))
    ]
    if not _of_the_same(s, dims[at], index):
        return _in_place(s, dims, at)
    assert index.mark is not None
    dims[at] = s.beside(dims[at], Dim(dims[at].size, index.mark.chosen))
    return tuple(dims)


def _meeting(s: Speech, dim: Dim, other: Dim) -> Dim:
    """The same neurons; where only some of them are there, all stay in place."""
    if dim.size == other.size:
        return s.tie(dim, other)
    s.fix(other)
    return s.placed(dim)


def _in_place(s: Speech, dims: Sequence[Dim], *places: int) -> tuple[Dim, ...]:
    """The dimensions, of which those at some places are written to here and there."""
    return tuple(s.placed(d) if i in places else d for i, d in enumerate(dims))


@rule("index_add", "index_copy", "index_reduce")
def index_add(
    s: Speech, x: Value, dim: int, index: Value, source: Value, *_: Any, **kw: Any
) -> tuple[Dim, ...]:
    """Adds or writes entries of `source` to those of one dimension."""
    at = wrap(dim, x.rank)
    s.fix(x.dims[at], source.dims[at], *index.dims)
    tied = [
        s.tie(d, other) if i != at else d
        for i, (d, other) in enumerate(zip(x.dims, source.dims, strict=True))
    ]
    return _in_place(s, tied, at)


@rule("index_fill")
def index_fill(s: Speech, x: Value, dim: int, *args: Any) -> tuple[Dim, ...]:
    """Writes one number to some entries of a dimension."""
    at = wrap(dim, x.rank)
    s.fix(x.dims[at])
    return _in_place(s, x.dims, at)


@rule("slice_scatter", "select_scatter")
def slice_scatter(s: Speech, x: Value, source: Value, dim: int = 0, *args: Any) -> tuple[Dim, ...]:
    """Writes `source` over a slice of x."""
    at = wrap(dim, x.rank)
    s.fix(x.dims[at])
    whole = list(source.dims)
    if source.rank == x.rank:
        s.fix(whole[at])
    else:
        whole.insert(at, x.dims[at])
    tied = [d if i == at else s.tie(d, other) for i, (d, other) in enumerate(zip(x.dims, whole, strict=True))]
    return _in_place(s, tied, at)


@rule("masked_fill")
def masked_fill(s: Speech, x: Value, mask: Value, value: Any) -> Any:
    """One number wherever the mask is set."""
    return pointwise(s, x, mask, op="masked_fill")


@rule("masked_scatter")
def masked_scatter(s: Speech, x: Value, mask: Value, source: Value) -> tuple[Dim, ...]:
    """Entries of `source`, in order, wherever the mask is set."""
    s.fix(*x.dims, *mask.dims, *source.dims)
    return _in_place(s, x.dims, *range(x.rank))


@rule("one_hot")
def one_hot(s: Speech, x: Value, *args: Any) -> tuple[Dim, ...]:
    """A new dimension with a one at the place that the number names."""
    return (*x.dims, s.fixed(s.shapes[0][-1]))


@rule(
    "_sparse_coo_tensor_with_dims_and_tensors", "_sparse_coo_tensor_unsafe", "sparse_compressed_tensor",
    "_sparse_compressed_tensor_unsafe",
)  # fmt: skip
def sparse_tensor(s: Speech, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """A tensor of numbers and their places (the edges of a graph): nothing in it can be moved."""
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    s.fix(*[dim for value in given for dim in value.dims])
    return fixed_dims(s.shapes[0])


@rule("_to_dense", "_to_sparse", "_to_sparse_csr", "_coalesce", "_coalesced", "_sparse_softmax")
def other_layout(s: Speech, x: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """The entries that a sparse tensor has, stored otherwise."""
    return x.dims


@rule("bucketize", "searchsorted")
def searchsorted(s: Speech, a: Value, b: Value, *args: Any, **kwargs: Any) -> tuple[Dim, ...]:
    """Places of numbers in a sorted sequence."""
    s.fix(*a.dims, *b.dims)
    return fixed_dims(s.shapes[0])
