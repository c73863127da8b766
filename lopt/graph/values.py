"""Symbolic tensors: what the rules of operations work on instead of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lopt.graph.axes import Axis


@dataclass(frozen=True)
class Origin:
    """Entries start..stop of one axis of a parameter or buffer."""

    tensor: str
    axis: int
    start: int
    stop: int


Origins = frozenset[Origin]
NOWHERE: Origins = frozenset()


@dataclass(frozen=True)
class Dim:
    """One dimension of a symbolic tensor."""

    size: int
    axis: Axis | None
    """None: the tensor is constant along it, so that no permutation can be noticed."""
    origin: Origins = NOWHERE
    """The axes of weights that index it: of the tensor itself if it is pure, of the layer it came out of if not."""
    view: tuple[int, int] | None = None
    """(call, dimension) of the view that split it off an axis with further factors inside."""


@dataclass(frozen=True)
class Mark:
    """What is known of the data flow: attention scores, probabilities, attended values, gating activations."""

    kind: str
    queries: Origins = NOWHERE
    keys: Origins = NOWHERE


@dataclass(frozen=True)
class Value:
    """A symbolic tensor.

    Where `segments` are given they are its parts along `segment_dim`, and their other dimensions need not be the
    same neurons: a fused query-key-value activation viewed as (3, heads, head size), say.
    """

    dims: tuple[Dim, ...]
    pure: bool
    """Whether it depends on parameters, buffers and constants alone."""
    depth: int = 0
    mark: Mark | None = None
    segments: tuple[Value, ...] = ()
    segment_dim: int = -1

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.size for d in self.dims)

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def origins(self) -> Origins:
        return frozenset().union(*[d.origin for part in self.parts for d in part.dims])

    @property
    def parts(self) -> tuple[Value, ...]:
        """The segments, or the value itself."""
        return self.segments or (self,)

    def axes(self) -> Iterator[Axis]:
        """Every axis variable in it."""
        for part in self.parts:
            yield from (d.axis for d in part.dims if d.axis is not None)

    def with_dims(self, dims: tuple[Dim, ...]) -> Value:
        return replace(self, dims=dims, segments=(), segment_dim=-1)


@dataclass
class Knowledge:
    """What a pass over the tape learns about parameters, beside the axes."""

    kinds: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, dict[tuple[int, int, int], str]] = field(default_factory=dict)
    """Parameter -> (axis, start, stop) -> kind, where parts of it have kinds of their own."""
    roles: dict[str, dict[int, str]] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    state: set[str] = field(default_factory=set)
    """Buffers that go along with the neurons, as running statistics do; all others are constants."""
    unknown: dict[str, set[str]] = field(default_factory=dict)
    """Operation without a rule -> parameters whose axes it touched."""

    def set_kind(self, origins: Origins, kind: str) -> None:
        """The first use names a parameter."""
        for origin in origins:
            self.kinds.setdefault(origin.tensor, kind)

    def refine_kind(self, origins: Origins, kind: str, full: dict[str, tuple[int, ...]]) -> None:
        """Say more of what so far is just a weight, or of a part of it."""
        for origin in origins:
            if self.kinds.get(origin.tensor) == "weight":
                size = full[origin.tensor][origin.axis]
                if origin.stop - origin.start == size:
                    self.kinds[origin.tensor] = kind
                else:
                    key = (origin.axis, origin.start, origin.stop)
                    self.ranges.setdefault(origin.tensor, {}).setdefault(key, kind)

    def set_role(self, origins: Origins, role: str) -> None:
        """The first use decides the direction of an axis."""
        for origin in origins:
            self.roles.setdefault(origin.tensor, {}).setdefault(origin.axis, role)
