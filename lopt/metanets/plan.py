"""What metanets know of a graph before any value is: where blocks and neurons lie, and how blocks read as matrices.

Shapes: P scalars, B blocks, N neurons (all elements of all axis groups, one group after another).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lopt.graph import Block, ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.spec import PARAMETER_KINDS
from lopt.graph.tensor_classes import long_axis

MESSAGE_ROLES = ("out", "in")
"""BlockAxis roles with neurons of their own; taps are few, and scalars along them are told apart by nobody."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Where the blocks and neurons of one graph lie."""

    blocks: tuple[Block, ...]
    """Those that hold any scalar: the others have no mean to speak of."""
    sizes: list[int]
    """Scalars in each block; blocks follow each other."""
    # Tensors are on the CPU and go to the features' device at each use: a graph has none, and may serve on several.
    owners: Tensor
    """(B,) index of each block's parameter."""
    kinds: Tensor
    """(B,) index of each block's kind in `PARAMETER_KINDS`."""
    group_sizes: list[int]
    group_starts: list[int]
    order: Tensor | None
    """From flat order to block order; None where they are the same."""
    inverse: Tensor | None

    @property
    def neurons(self) -> int:
        """N."""
        return sum(self.group_sizes)

    def neurons_of(self, group: int) -> slice:
        start = self.group_starts[group]
        return slice(start, start + self.group_sizes[group])


@dataclass(frozen=True)
class BlockAxis:
    """One axis of a block: its neurons, as a range among all, and its role."""

    role: str
    start: int
    size: int

    @property
    def has_neurons(self) -> bool:
        return self.role in MESSAGE_ROLES


@dataclass(frozen=True)
class Matrix:
    """A block read as a matrix whose rows and columns are products of its axes.

    Broadcasting and averaging along several short axes (taps, heads) costs many times what it does along two long
    ones. So terms are added up, and means taken further, on the small rows and columns.
    """

    index: int
    """Of the block."""
    rows: tuple[BlockAxis, ...]
    columns: tuple[BlockAxis, ...]
    shape: tuple[int, int]


@made_once
def plan_of(graph: ParameterGraph) -> Plan:
    """The plan of a graph, made once."""
    names = list(graph.parameters)
    blocks = tuple(_as_vector(block) for block in graph.blocks if prod(block.shape))
    order = _block_order(graph)
    sizes = [group.size for group in graph.groups]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return Plan(
        blocks=blocks,
        sizes=[prod(block.shape) for block in blocks],
        owners=torch.tensor([names.index(block.parameter) for block in blocks]),
        kinds=torch.tensor([PARAMETER_KINDS.index(block.kind) for block in blocks]),
        group_sizes=sizes,
        group_starts=starts,
        order=order,
        inverse=None if order is None else torch.argsort(order),
    )


def _as_vector(block: Block) -> Block:
    """A gain or bias without its axes of size one: (1, C, 1, 1) is (C,)."""
    k = long_axis(block)
    # Axes of the tensor itself, that is: those that one of them is made of stay.
    if k is None or len(block.shape) != len(block.slices):
        return block
    return replace(block, shape=(block.shape[k],), roles=(block.roles[k],), groups=(block.groups[k],))


def _block_order(graph: ParameterGraph) -> Tensor | None:
    if len(graph.blocks) == len(graph.parameters):
        return None
    index = graph.unflatten(torch.arange(graph.numel))
    # None where nothing moves: to index all scalars, there and back, costs about as much as a layer.
    order = torch.cat([index[block.parameter][block.slices].reshape(-1) for block in graph.blocks])
    return None if torch.equal(order, torch.arange(graph.numel)) else order


def axes_of_block(plan: Plan, block: Block) -> tuple[BlockAxis, ...]:
    """The axes of a block, with where their neurons lie."""
    triples = zip(block.roles, block.groups, block.shape, strict=True)
    return tuple(BlockAxis(role, plan.group_starts[group], size) for role, group, size in triples)


def as_matrix(plan: Plan, index: int) -> Matrix:
    """A block as the matrix, out of those that keep the order of its axes, with the fewest rows and columns."""
    axes = axes_of_block(plan, plan.blocks[index])
    sizes = [axis.size for axis in axes]
    cut = min(range(1, max(len(axes), 2)), key=lambda k: prod(sizes[:k]) + prod(sizes[k:]))
    return Matrix(index, axes[:cut], axes[cut:], (prod(sizes[:cut]), prod(sizes[cut:])))


def in_rows(graph: ParameterGraph, plan: Plan, index: int) -> Matrix:
    """A block as the matrix that pieces hold whole rows of: `as_matrix`, or that of its tensor's first axis.

    The latter where the tensor has other blocks, too, or where an entry of its first axis is less than a row.
    """
    block = plan.blocks[index]
    spec = graph.parameters[block.parameter]
    matrix = as_matrix(plan, index)
    if plan.sizes[index] == spec.numel and prod(spec.shape[1:]) % matrix.shape[1] == 0:
        return matrix
    axes, count = axes_of_block(plan, block), block.slices[0].stop - block.slices[0].start
    cut = next(k for k in range(1, len(axes) + 1) if prod(block.shape[:k]) == count)
    return Matrix(index, axes[:cut], axes[cut:], (count, prod(block.shape[cut:])))


def rows_and_columns(block: Block) -> tuple[int, int] | None:
    """A block as the matrix whose rows are its leading axes of one role: out, say, by in and taps.

    None for a block of one axis or none.
    """
    if len(block.roles) < 2:
        return None
    leading = next((k for k, role in enumerate(block.roles) if role != block.roles[0]), 1)
    return prod(block.shape[:leading]), prod(block.shape[leading:])
