"""The interface of every metanet: features on a parameter graph -> raw outputs for every scalar.

Shapes: P scalars in the order of `graph.flatten`, B parameters (tensors), F features, C context values,
R raw outputs, M remembered values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.metanets.pieces import Piece

Size = Annotated[int, Field(ge=1, le=4096)]
"""A width, or how many of something a metanet has."""
SizeOrZero = Annotated[int, Field(ge=0, le=4096)]
Layers = Annotated[int, Field(ge=1, le=64)]
LayersOrZero = Annotated[int, Field(ge=0, le=64)]

SPARING = 1 << 21
"""Scalars from which memory is worth more than time to a metanet that sees them: below, a vector for each of them takes
70 MB, and all of its work at once 300."""


class Heard(NamedTuple):
    """What a metanet has to say after all pieces have been heard."""

    checked: list[Tensor]
    """What has to be finite for raw outputs to be."""
    raw: Callable[[Piece], Tensor]
    """Raw outputs (R, n) of a piece, each to be asked for once."""


class Metanet(nn.Module, ABC):
    """A network that reads features of all scalars of a task network and is equivariant to its neurons' order.

    Its output layers start at zero, so that a fresh learned rule is its base optimizer. The constructor takes the
    counts `features`, `context` and `outputs`; its other parameters are the options that configs set, and their
    annotations say what these may be.
    """

    memory: int = 0
    """M, how many values each scalar carries to the next step; 0 for a metanet without recurrence."""

    sees_scalars: bool = True
    """Whether it reads features of scalars. One that does not need not be given any, and has `of_tensors`."""

    def prepare(self, graph: ParameterGraph) -> None:
        """Derive what is needed of a graph ahead of the first step, which may be a compiled one."""

    @abstractmethod
    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """features (F, P), context (C, B), memory (M, P) or None -> raw outputs (R, P), next memory.

        Pure and vmap-able. Raises `GraphError` on a graph that this metanet cannot take.
        """

    side_by_side: bool = False
    """Whether `forward` also takes several networks at once, (F, networks, P), faster than `torch.vmap` does."""

    in_pieces: bool = False
    """Whether it also looks at scalars piece by piece: has `listen`."""

    def listen(
        self,
        graph: ParameterGraph,
        pieces: Sequence[Piece],
        features: Callable[[Piece], Tensor],
        context: Tensor,
        summed: Callable[[Tensor], Tensor],
    ) -> Heard:
        """`forward` without features of all scalars at once, and without derivatives.

        `features` (F, n) of each piece are made anew whenever asked for; context is (C, B).
        Where ranks hold pieces of their own, `summed` adds up, in place, what is a sum over the scalars here.
        """
        raise NotImplementedError(f"{type(self).__name__} needs all scalars at once")

    def of_tensors(self, context: Tensor) -> Tensor:
        """context (C, B) -> raw outputs (R, B) of a metanet that sees no scalars: `forward` repeats them."""
        raise NotImplementedError(f"{type(self).__name__} sees scalars")
