"""What an op rule may say: which dimensions are the same neurons, which must stay in place, what parameters are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from lopt.graph.tracing.axes import Axis, fix, join, unify
from lopt.graph.tracing.tape import Call, Ref, Tape
from lopt.graph.tracing.values import Dim, Knowledge, Mark, Origins, Value

Views = dict[tuple[int, int], set[int]]
"""(call, dimension) of a view -> where that dimension is cut into segments."""


class NoRuleError(Exception):
    """Raised by an op rule for a use of its operation that it says nothing about: the axes concerned stay in place."""


class Speech:
    """Passed to every op rule as `s`: the call that is looked at, and the words for what it does to axes."""

    def __init__(self, tape: Tape, views: Views) -> None:
        self.tape = tape
        self.known_views = {key: set(cuts) for key, cuts in views.items()}
        self.views = views
        """The cuts that are known, and those asked for in this pass."""
        self.know = Knowledge()
        self.position = -1
        """Number of the current call on the tape."""
        self.shapes: list[tuple[int, ...]] = []
        """Shapes of the outputs of the current call."""
        self.mark: Mark | None = None
        self.constant = False
        """Whether the result of the current call does not depend on what its arguments hold."""
        self.used = {
            ref.index for call in tape.calls for ref in tree_leaves((call.args, call.kwargs)) if is_ref(ref)
        }

    @property
    def call(self) -> Call:
        """The current call, with its arguments as they were passed."""
        return self.tape.calls[self.position]

    def tie(self, *dims: Dim) -> Dim:
        """One dimension for several of one size: their axes are the same neurons."""
        axes = [d.axis for d in dims if d.axis is not None]
        for other in axes[1:]:
            unify(axes[0], other)
        origin = frozenset().union(*[d.origin for d in dims])
        return Dim(dims[0].size, axes[0] if axes else None, origin, dims[0].view)

    def fix(self, *dims: Dim, why: str = "position") -> None:
        """The entries of each dimension must stay in place."""
        for dim in dims:
            if dim.axis is not None:
                fix(dim.axis, why)

    def beside(self, dim: Dim, other: Dim) -> Dim:
        """The dimension, tied to one of what acts on its entries one by one, whose axis a constant has from then on."""
        self.tie(dim, other)
        return dim if dim.axis is not None else Dim(dim.size, other.axis, dim.origin, dim.view)

    def placed(self, dim: Dim) -> Dim:
        """The dimension, whose entries are told apart by their places: constant it is no more."""
        self.fix(dim)
        return dim if dim.axis is not None else self.fixed(dim.size)

    def fixed(self, size: int, why: str = "position") -> Dim:
        """A new dimension whose entries must stay in place."""
        return Dim(size, Axis(size, why))

    def free(self, size: int) -> Dim:
        """A new dimension whose entries can be exchanged."""
        return Dim(size, Axis(size))

    def is_mask(self, argument: int, position: int) -> bool:
        """Whether entry `position` of argument number `argument` of the current call is a boolean tensor."""
        ref = self.call.args[argument][position]
        return is_ref(ref) and self.tape.infos[ref.index].dtype == torch.bool

    def is_used(self, output: int) -> bool:
        """Whether output number `output` of the current call is read later."""
        refs = [ref for ref in tree_leaves(self.call.outputs) if is_ref(ref)]
        return refs[output].index in self.used or refs[output].index in self.tape.outputs

    def readers(self, output: int) -> list[Call] | None:
        """The calls that read output number `output` of the current call; None if not only calls do."""
        ref = [ref for ref in tree_leaves(self.call.outputs) if is_ref(ref)][output]
        if self.tape.real or ref.index in self.tape.asked or ref.index in self.tape.outputs:
            return None
        return [call for call in self.tape.calls if ref in tree_leaves((call.args, call.kwargs))]

    def cut_view(self, dim: Dim, *places: int) -> None:
        """Ask for the view that made `dim` to be cut into segments there, in the next pass."""
        if dim.view is not None:
            self.views.setdefault(dim.view, set()).update(p for p in places if 0 < p < dim.size)

    def view_cuts(self, dim: int) -> list[int]:
        """Where the current call, a view, cuts its output dimension, as asked for by an earlier pass."""
        return sorted(self.known_views.get((self.position, dim), ()))

    def kind(self, value: Value, kind: str) -> None:
        """What the parameters inside a pure value are to the network; the first use says it."""
        for origin in value.origins:
            self.know.kinds.setdefault(origin.tensor, kind)

    def refine(self, origins: Origins, kind: str) -> None:
        """Say more of what so far is just a weight, or of a part of it."""
        for o in origins:
            if self.know.kinds.get(o.tensor) == "weight":
                parts = self.know.claims.setdefault(o.tensor, {})
                parts.setdefault((o.axis, o.start, o.stop), set()).add(kind)

    def role(self, dim: Dim, role: str) -> None:
        """The direction of the parameter axes behind a dimension of a pure value; the first use decides it."""
        for origin in dim.origin:
            self.know.roles.setdefault(origin.tensor, {}).setdefault(origin.axis, role)

    def whole(self, value: Any) -> Any:
        """A value without segments: what they have in common is tied."""
        if not isinstance(value, Value) or not value.segments:
            return value
        at = value.segment_dim
        parts = value.segments
        dims = [self.tie(*[p.dims[d] for p in parts]) for d in range(value.rank) if d != at]
        if all(p.dims[at].size == 1 for p in parts):
            axis = Axis(len(parts), "position")
        else:
            axis = join([p.dims[at].axis or Axis(p.dims[at].size) for p in parts])
        dims.insert(at, Dim(axis.size, axis, frozenset().union(*[p.dims[at].origin for p in parts])))
        return value.with_dims(tuple(dims))


def fixed_dims(shape: Sequence[int], why: str = "position") -> tuple[Dim, ...]:
    """Dimensions that share nothing with any other."""
    return tuple(Dim(n, Axis(n, why)) for n in shape)


def is_ref(x: Any) -> bool:
    """Whether an argument of a call stands for a tensor."""
    return isinstance(x, Ref)
