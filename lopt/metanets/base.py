"""The interface of every metanet: features on a parameter graph -> raw outputs for every scalar.

Shapes: P scalars in the order of `graph.flatten`, B parameters (tensors), F features, C context values,
R raw outputs, M remembered values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph


class Metanet(nn.Module, ABC):
    """A network that reads features of all scalars of a task network and is equivariant to its neurons' order.

    Its output layers start at zero, so that a fresh learned rule is its base optimizer.
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

    def of_tensors(self, context: Tensor) -> Tensor:
        """context (C, B) -> raw outputs (R, B) of a metanet that sees no scalars: `forward` repeats them."""
        raise NotImplementedError(f"{type(self).__name__} sees scalars")


def check_sizes(**sizes: int) -> None:
    """Raise a `ConfigError` unless each of a metanet's named sizes is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"metanet: {name} must be a whole number of at least 1, found {size!r}")
