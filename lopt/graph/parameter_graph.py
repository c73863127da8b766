"""`ParameterGraph`: the graph of a network, and what can be done with it, under one name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from typing_extensions import Self

from lopt.graph.spec import GraphSpec
from lopt.graph.summary import summary
from lopt.graph.trace import trace
from lopt.graph.untied import untied_graph
from lopt.graph.verify import VerificationReport, verify

if TYPE_CHECKING:
    from torch_geometric.data import Data


class ParameterGraph(GraphSpec):
    """The parameters of one network as a graph of neurons (axis groups) and scalars.

    Build one with `ParameterGraph.trace` or `ParameterGraph.untied`; it holds no tensor of the network.
    Graphs compare by identity, so that what is derived from one can be cached.
    """

    @classmethod
    def trace(
        cls, model: nn.Module, example_args: tuple[Any, ...], example_kwargs: Mapping[str, Any] | None = None
    ) -> Self:
        """Derive the graph of `model` from its operations on the example inputs; the model is left unchanged.

        Warns once, naming the operation and parameters, where axes had to be left untied.
        Parameters that are not real floating-point numbers (quantised weights) are fixed parts of the graph.
        Raises `GraphError` for a model without parameters, with sparse, uninitialised or trained complex ones, one
        without Python code (`torch.jit`, `DataParallel`), or one that fails on the example inputs.
        """
        return cls._of(trace(model, example_args, example_kwargs))

    @classmethod
    def untied(cls, named_parameters: Iterable[tuple[str, Tensor]]) -> Self:
        """The graph that ties nothing: every axis is a group of its own. Safe for any network, less expressive."""
        return cls._of(untied_graph(named_parameters))

    @classmethod
    def _of(cls, spec: GraphSpec) -> Self:
        return cls(spec.parameters, spec.groups, spec.buffers, spec.rung)

    def verify(
        self,
        model: nn.Module,
        example_args: tuple[Any, ...],
        example_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> VerificationReport:
        """Check f(P theta) = f(theta) in float64, and that uncoupled axes are noticed; see `lopt.graph.verify`."""
        return verify(self, model, example_args, example_kwargs, **options)

    def summary(self) -> str:
        """A readable table of groups and parameters."""
        return summary(self)

    def to_pyg(self, values: Mapping[str, Tensor], style: str = "axes") -> Data:
        """`torch_geometric` data with one edge per scalar weight; `lopt.graph.pyg.from_pyg` is the exact inverse."""
        from lopt.graph.pyg import to_pyg  # two seconds, for what few ask for

        return to_pyg(self, values, style)
