"""Symbolic tensors: what the rules of operations work on instead of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from lopt.graph.tracing.axes import Axis


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
    """What is known of the data flow: attention scores, probabilities, attended values, gating activations, choices."""

    kind: str
    queries: Origins = NOWHERE
    keys: Origins = NOWHERE
    chosen: Axis | None = None
    """Of a "choice": the axis whose places the numbers name (a router's experts), or along which it counts them."""


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
    claims: dict[str, dict[tuple[int, int, int], set[str]]] = field(default_factory=dict)
    """Weight -> (axis, start, stop) -> what the data flow says of that part of it: query, key, gate..."""
    roles: dict[str, dict[int, str]] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    state: set[str] = field(default_factory=set)
    """Buffers that go along with the neurons, as running statistics do; all others are constants."""
    unknown: dict[str, set[str]] = field(default_factory=dict)
    """Operation without a rule -> parameters whose axes it touched."""
    failed: dict[str, str] = field(default_factory=dict)
    """Operation whose rule raised something else than `NoRuleError` -> what it raised: a mistake in the rule."""

    def part_kinds(self, tensor: str) -> dict[tuple[int, int, int], str]:
        """The parts of a weight of which one thing was said; contradictions are left out."""
        return {part: min(kinds) for part, kinds in self.claims.get(tensor, {}).items() if len(kinds) == 1}
