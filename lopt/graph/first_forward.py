"""Tracing without example inputs: the first batch that the model trains on serves as the example."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler
from torch.nn.parameter import is_lazy

from lopt.errors import GraphWarning
from lopt.graph.parameter_graph import ParameterGraph
from lopt.graph.trace import check_code, inside_transform
from lopt.graph.tracing.isolation import is_isolated


class FirstForwardGraph:
    """The graph of a model once its first forward pass with gradients has begun; until then `graph` is None."""

    def __init__(self, model: nn.Module) -> None:
        check_code(model)
        self.graph: ParameterGraph | None = None
        self.owners: dict[str, nn.Parameter] = {}
        """The parameters that the graph was made of, by the names that they have there."""
        self._failure = ""
        self._called = False
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._conclude, with_kwargs=True),
        ]
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            # Of a compiled module that is never called: Lightning's Fabric compiles anew what is in it.
            self._hooks += [
                inner.register_forward_pre_hook(self._begin_inside, with_kwargs=True),
                inner.register_forward_hook(self._conclude_inside, with_kwargs=True),
            ]

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._called = True
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(
                msg="trace_on_first_forward wants a call that is not compiled: give it what torch.compile returns, or"
                " pass ParameterGraph.trace(model, example_args) to the optimizer"
            )
        self._trace(model, args, kwargs)

    def _begin_inside(self, *call: Any) -> None:
        if not self._called:
            self._begin(*call)

    def _conclude_inside(self, *call: Any) -> None:
        if not self._called:
            self._conclude(*call)

    @_disable_dynamo
    def _trace(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What runs without gradients (evaluation, generation) may leave out parts that are trained.
        if self._passes() or any(map(is_lazy, model.parameters())):
            return
        graph = None
        try:
            graph = ParameterGraph.trace(model, args, kwargs)
        except (
            Exception
        ) as error:  # whatever it is, whether the model runs is for its own forward pass to say
            self._failure = f"{error}" or type(error).__name__
        if (graph := _agreed(graph, model)) is not None:
            self._take(graph, model)

    @_disable_dynamo
    def _conclude(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        """The forward pass has succeeded: lazy modules know their shapes, and what failed was not the batch's fault."""
        if self._passes():
            return
        if not self._failure:
            self._trace(model, args, kwargs)
        if self.graph is None:
            name = type(model).__name__
            warnings.warn(f"the axes of {name} stay untied: {self._failure}", GraphWarning, stacklevel=2)
            self._take(ParameterGraph.untied(model.named_parameters()), model)

    def _passes(self) -> bool:
        """Whether a call is none to be traced: traces call the model, too, of it alone or of what it is a part of."""
        unsuitable = not torch.is_grad_enabled() or inside_transform() or is_isolated()
        return self.graph is not None or unsuitable

    def _take(self, graph: ParameterGraph, model: nn.Module) -> None:
        self.graph = graph
        self.owners = {name: p for name, p in model.named_parameters() if name in graph.parameters}
        for hook in self._hooks:
            hook.remove()


def _agreed(graph: ParameterGraph | None, model: nn.Module) -> ParameterGraph | None:
    """In DistributedDataParallel, whose processes make forward passes together: what the first that has a graph has.

    Batches may send each process another way through the model, and those with other graphs make other steps.
    """
    wrapper = nn.parallel.DistributedDataParallel._get_active_ddp_module()
    if wrapper is None or getattr(wrapper.module, "_orig_mod", wrapper.module) is not model:
        return graph
    ranks: list[Any] = [None] * wrapper.process_group.size()
    torch.distributed.all_gather_object(ranks, graph is not None, wrapper.process_group)
    if not any(ranks):
        return None
    found = [graph]
    torch.distributed.broadcast_object_list(found, group=wrapper.process_group, group_src=ranks.index(True))
    return found[0]


def trace_on_first_forward(model: nn.Module) -> FirstForwardGraph:
    """Trace `model` on the inputs of its first forward pass; hand the result to `LearnedOptimizer` as `graph`.

    The model must run once, with gradients, before the optimizer's first step, as it does in every training loop.
    Calls without gradients (evaluation, generation), inside transforms of `torch.func`, and calls that raise are passed
    over. A model that cannot be traced gets the graph that ties nothing, with one `GraphWarning`.
    Of a model that runs compiled, pass what `torch.compile` returns: with `fullgraph=True` it takes no hooks inside.
    Raises `GraphError` for what is no module with Python code of its own (`torch.jit`, `DataParallel`).
    """
    return FirstForwardGraph(model)
