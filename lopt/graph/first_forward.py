"""Tracing without example inputs: the first batch that the model sees serves as the example."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler

from lopt.graph.parameter_graph import ParameterGraph


class FirstForwardGraph:
    """The graph of a model once its first forward pass has begun; until then `graph` is None."""

    def __init__(self, model: nn.Module) -> None:
        self.graph: ParameterGraph | None = None
        self._handle = model.register_forward_pre_hook(self._trace, with_kwargs=True)

    @_disable_dynamo
    def _trace(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._handle.remove()
        self.graph = ParameterGraph.trace(model, args, kwargs)


def trace_on_first_forward(model: nn.Module) -> FirstForwardGraph:
    """Trace `model` on the inputs of its first forward pass; hand the result to `LearnedOptimizer` as `graph`.

    The model must run once before the optimizer's first step, as it does in every training loop.
    """
    return FirstForwardGraph(model)
