"""The parameter graph: which axes of which parameters belong to the same neurons.

Every axis of every parameter is a *concatenation* of segments, and every segment is a *product* of
atomic axes. An atomic axis belongs to exactly one `AxisGroup`. Three examples:

    linear (out, in)                         ((o,),), ((i,),)
    linear behind a flatten of 8 channels    ((o,),), ((channel, position),)
    fused query-key-value, 4 heads of 8      ((head, q), (head, q), (head, v)), ((stream,),)

Two axes that hold the same group must be permuted together for the network to stay the same function.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import Self

from lopt.errors import GraphError

Segment = tuple[int, ...]
"""Product of atomic axes: their group ids, outermost (slowest) first."""

AxisSpec = tuple[Segment, ...]
"""Concatenation of segments, in order."""

Permutation = dict[int, Tensor]
"""For each permuted group the index vector p of its size; axis entry i of the result is entry p[i]."""

PARAMETER_KINDS = (
    "weight", "depthwise", "bias", "scale", "shift", "embedding", "position", "query", "key", "value", "output",
    "input_gate", "forget_gate", "cell_gate", "output_gate", "reset_gate", "update_gate", "new_gate", "gate", "other",
)  # fmt: skip
"""What a parameter is to its network; the order is part of the rule file format: append only."""

AXIS_ROLES = ("out", "in", "tap")
"""What an axis is to its parameter: neurons it feeds, neurons it reads, or kernel taps and the like."""


@dataclass(frozen=True)
class AxisGroup:
    """Neurons (or taps, inputs, outputs...) that several axes have in common."""

    id: int
    size: int
    kind: str
    """"hidden", or why it must stay in place: "input", "output", "tap", "vocabulary", "position", "untied"..."""
    permutable: bool
    members: tuple[tuple[str, int], ...] = ()
    """(parameter or buffer name, axis index) pairs."""
    activation: str | None = None
    """Name of the pointwise function the neurons pass through, if one was seen."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and axes of one parameter or buffer."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[AxisSpec, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class ParameterSpec(TensorSpec):
    """A parameter: its axes, and what it is to the network."""

    kind: str = "other"
    roles: tuple[str, ...] = ()
    """One of `AXIS_ROLES` for each axis."""
    block_kinds: tuple[str, ...] = ()
    """The kind of each block where they differ (fused query-key-value, gates); empty: all are `kind`."""
    depth: float = 0.0
    """Position between the network's inputs (0) and outputs (1)."""
    aliases: tuple[str, ...] = ()
    """Further names of the same tied tensor."""

    def with_groups(self, new: Mapping[int, int]) -> ParameterSpec:
        """The same parameter on other groups; those that `new` does not name stay."""
        axes = tuple(tuple(tuple(new.get(g, g) for g in segment) for segment in axis) for axis in self.axes)
        return replace(self, axes=axes)


@dataclass(frozen=True)
class Block:
    """A part of a parameter whose axes are pure products, viewed by its atomic axes.

    `tensor[slices].reshape(shape)` is the block; axis k of it belongs to group `groups[k]`.
    """

    parameter: str
    slices: tuple[slice, ...]
    shape: tuple[int, ...]
    groups: tuple[int, ...]
    roles: tuple[str, ...]
    kind: str
    depth: float


@dataclass(frozen=True, eq=False)
class GraphSpec:
    """The parameters of one network as a graph of neurons (axis groups) and scalars; no tensor of the network.

    Graphs compare by identity, so that what is derived from one can be cached.
    """

    parameters: dict[str, ParameterSpec]
    groups: tuple[AxisGroup, ...]
    buffers: dict[str, TensorSpec]
    rung: str
    """How it was derived: "traced", or the name of a fallback."""

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, parameter by parameter, row-major over the segments of the axes."""
        return tuple(block for spec in self.parameters.values() for block in _blocks(spec, self.groups))

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each parameter."""
        return [spec.shape for spec in self.parameters.values()]

    @cached_property
    def sizes(self) -> list[int]:
        """The number of scalars of each parameter."""
        return [spec.numel for spec in self.parameters.values()]

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each parameter starts in the flat vector of all P scalars."""
        return dict(zip(self.parameters, itertools.accumulate([0, *self.sizes]), strict=False))

    @cached_property
    def numel(self) -> int:
        """P, the number of scalars."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(*batch, *shape) of each parameter -> (*batch, P), in the order of `parameters`."""
        parts = []
        for name, spec in self.parameters.items():
            tensor = tensors[name]
            parts.append(tensor.reshape(*tensor.shape[: tensor.dim() - len(spec.shape)], spec.numel))
        return torch.cat(parts, dim=-1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """(*batch, P) -> (*batch, *shape) of each parameter; the inverse of `flatten`."""
        parts = flat.split(self.sizes, dim=-1)
        batch = flat.shape[:-1]
        return {
            name: part.reshape((*batch, *spec.shape))
            for (name, spec), part in zip(self.parameters.items(), parts, strict=True)
        }

    def subset(self, names: Iterable[str]) -> Self:
        """The graph of some of the parameters, as if the others were not in the network."""
        keep = set(names)
        parameters = {name: spec for name, spec in self.parameters.items() if name in keep}
        used = {g for spec in parameters.values() for axis in spec.axes for segment in axis for g in segment}
        new_id = {old: new for new, old in enumerate(sorted(used))}
        groups = tuple(
            replace(
                self.groups[old], id=new, members=tuple(m for m in self.groups[old].members if m[0] in keep)
            )
            for old, new in new_id.items()
        )
        renumbered = {name: spec.with_groups(new_id) for name, spec in parameters.items()}
        return type(self)(renumbered, groups, {}, self.rung)

    def random_permutation(self, generator: torch.Generator | None = None) -> Permutation:
        """A uniformly random permutation of every permutable group."""
        device = "cpu" if generator is None else generator.device
        orders = (g for g in self.groups if g.permutable)
        return {g.id: torch.randperm(g.size, generator=generator, device=device) for g in orders}

    def permute(self, tensors: Mapping[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        """Permute parameters, buffers or gradients, keyed by name; unknown names are returned as they are.

        Raises `GraphError` for what permutes no group, and for tensors of other shapes than the graph's.
        """
        for group, order in permutation.items():
            self._check_order(group, order)
        return {name: self._permute_one(name, tensor, permutation) for name, tensor in tensors.items()}

    def _check_order(self, group: int, order: Tensor) -> None:
        size = self.groups[group].size if group in range(len(self.groups)) else 0
        if not torch.equal(order.sort().values.cpu(), torch.arange(size, device="cpu")):
            raise GraphError(
                f"permutation: expected every number below {size} once for group {group}, found {order.numel()} others"
            )

    def _permute_one(self, name: str, tensor: Tensor, permutation: Permutation) -> Tensor:
        spec = self.parameters.get(name) or self.buffers.get(name)
        spec = spec or next((s for s in self.parameters.values() if name in s.aliases), None)
        if spec is None:
            return tensor
        if tensor.shape != spec.shape:
            raise GraphError(
                f"{name}: expected shape {spec.shape} as in the graph, found {tuple(tensor.shape)}"
            )
        for dim, axis in enumerate(spec.axes):
            if any(group in permutation for segment in axis for group in segment):
                tensor = tensor.index_select(
                    dim, axis_index(axis, self.groups, permutation).to(tensor.device)
                )
        return tensor


def axis_index(axis: AxisSpec, groups: tuple[AxisGroup, ...], permutation: Permutation) -> Tensor:
    """The index vector that permutes one whole axis: products become Kronecker-style, segments are chained."""
    parts, offset = [], 0
    for segment in axis:
        index = torch.zeros(1, dtype=torch.long, device="cpu")
        for group in segment:
            size = groups[group].size
            atom = permutation.get(group, torch.arange(size, device="cpu"))
            index = (index[:, None] * size + atom.cpu()[None, :]).reshape(-1)
        parts.append(index + offset)
        offset += len(index)
    return torch.cat(parts)


def _blocks(spec: ParameterSpec, groups: tuple[AxisGroup, ...]) -> Iterable[Block]:
    segment_slices = [list(_segment_slices(axis, groups)) for axis in spec.axes]
    for number, choice in enumerate(itertools.product(*segment_slices)):
        ids = tuple(group for segment, _ in choice for group in segment)
        yield Block(
            parameter=spec.name,
            slices=tuple(s for _, s in choice),
            shape=tuple(groups[group].size for group in ids),
            groups=ids,
            roles=tuple(role for (segment, _), role in zip(choice, spec.roles, strict=True) for _ in segment),
            kind=spec.block_kinds[number] if spec.block_kinds else spec.kind,
            depth=spec.depth,
        )


def _segment_slices(axis: AxisSpec, groups: tuple[AxisGroup, ...]) -> Iterable[tuple[Segment, slice]]:
    start = 0
    for segment in axis:
        size = torch.Size(groups[g].size for g in segment).numel()
        yield segment, slice(start, start + size)
        start += size
