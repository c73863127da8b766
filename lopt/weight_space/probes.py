"""Probe features: what every neuron of a network says to a few inputs (Neural Graphs, Kofinas et al. 2024, section 3).

    inputs = nn.Parameter(torch.rand(16, 2) * 2 - 1)                              # learned, or any given ones
    readout = NetworkReadout("ng_t", outputs=10, metanet_options={"probes": 16})
    readout(graph, params, probe(model, graph, inputs, params))

A layer's own output is told, or what the next layer reads of it: its activation behind the nonlinearity, as in the
paper, whether that is a module or a function.
Shapes: M probe inputs, N neurons (all elements of all axis groups, one group after another), n neurons of one axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.spec import AxisSpec, TensorSpec
from lopt.graph.tracing.isolation import called, untouched
from lopt.graph.tracing.world import World

ALONE = RLock()
"""One thread at a time runs a model with others' parameters: torch puts them into the model, which readers share."""


def probe(
    model: nn.Module,
    graph: ParameterGraph,
    inputs: Tensor | tuple[Any, ...],
    params: Mapping[str, Tensor] | None = None,
    behind: bool = False,
) -> Tensor:
    """The output of every neuron for M inputs, batch first (a tuple: positional arguments) -> (M, N).

    A neuron's output is that of the layers whose parameters carry its group as their out axis, the mean over
    positions, and over layers where several do (the blocks of a residual stream). Neurons that no layer puts out,
    such as inputs and what an LSTM remembers, have what layers read from them; those that no layer shows, zeros.
    Layers are linear, convolutional, embedding and norm modules of torch.nn, and modules derived from them.

    behind: what layers read of a neuron in the place of what is put out, where they read any: its value behind the
    nonlinearity, as in the paper.
    params: parameters, and buffers if wanted, in the place of the model's own. The model runs in evaluation mode
    and is left unchanged. Pure; differentiable in params and inputs; vmap-able over the params of many networks.
    Raises `GraphError` for a graph, parameters or inputs that do not fit the model.
    """
    tensors = _checked(model, graph, params or {})
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    if not args or not isinstance(args[0], Tensor) or not args[0].dim() or not args[0].shape[0]:
        raise GraphError(f"probe: expected a tensor of M inputs, batch first, found {_shapes(args)}")
    record = _Record(graph, args[0].shape[0])
    with untouched(model, World(model, args)):
        model.eval()
        for name, module in model.named_modules():
            layer = _layer(module)
            if layer is not None:
                record.listen(name, module, layer)
        try:
            called(model, tensors, args, {})
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).strip().split("\n")[0]
            raise GraphError(
                f"probe: the network fails on inputs of shape {_shapes(args)}: {reason}"
            ) from error
    return record.values(next(iter(tensors.values())), behind)


def probe_each(
    model: nn.Module, graph: ParameterGraph, inputs: Tensor, params: Mapping[str, Tensor]
) -> Tensor:
    """What layers read of every neuron of B networks (B, *shape), for M inputs: (M, B, N)."""
    with ALONE:
        return torch.vmap(lambda one: probe(model, graph, inputs, one, behind=True), out_dims=1)(dict(params))


def run_each(model: nn.Module, inputs: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """What B networks (B, *shape) put out for M inputs: (B, M * C)."""
    with ALONE:
        return torch.vmap(lambda one: functional_call(model, one, (inputs,)))(dict(params)).flatten(1)


class _Layer(NamedTuple):
    """Where the neurons of a layer are."""

    out: int
    """AxisSpec of its weight that runs along the neurons it puts out; its bias, if any, has no other."""
    reads: int | None
    """AxisSpec of its weight that runs along those it reads."""
    features: int
    """AxisSpec of its input and output that runs along them."""


def _layer(module: nn.Module) -> _Layer | None:
    if isinstance(module, nn.Linear):
        return _Layer(0, 1, -1)
    if isinstance(module, _ConvNd):
        out, reads = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        return _Layer(out, reads, -1 - len(module.kernel_size))
    if isinstance(module, _NormBase | nn.GroupNorm):
        return _Layer(0, None, 1)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1:
        return _Layer(0, None, -1)
    return _Layer(1, None, -1) if isinstance(module, nn.Embedding) else None


class _Record:
    """Listens to layers while a network runs, and sorts what they say by axis group."""

    def __init__(self, graph: ParameterGraph, inputs: int) -> None:
        self.graph, self.inputs = graph, inputs
        self.specs: dict[str, TensorSpec] = {
            name: spec for spec in graph.parameters.values() for name in (spec.name, *spec.aliases)
        }
        self.said: dict[int, list[Tensor]] = {}
        self.read: dict[int, list[Tensor]] = {}

    def listen(self, name: str, module: nn.Module, layer: _Layer) -> None:
        """Hook a layer, if the graph knows the axes of its parameters."""
        prefix = f"{name}." if name else ""
        weight, bias = (self.specs.get(f"{prefix}{own}") for own in ("weight", "bias"))
        # One axis in a traced graph; an untied one has an axis for each.
        put_out = {spec.axes[axis] for spec, axis in ((weight, layer.out), (bias, 0)) if spec is not None}
        taken_in = {weight.axes[layer.reads]} if weight is not None and layer.reads is not None else set()

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            for axis in put_out:
                self._note(self.said, axis, output, layer.features)
            for axis in taken_in:
                self._note(self.read, axis, args[0] if args else None, layer.features)

        if put_out:
            module.register_forward_hook(hook)

    def _note(self, where: dict[int, list[Tensor]], axis: AxisSpec, value: Any, features: int) -> None:
        """Means over positions of a value (M, ..., n, ...), and over the other groups of each product."""
        sizes = [[self.graph.groups[group].size for group in segment] for segment in axis]
        lengths = [math.prod(size) for size in sizes]
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return
        # Of other layouts (no batch, a group's share of the channels) it is not known which axis is whose.
        if value.dim() < 2 or value.shape[0] != self.inputs or not features % value.dim():
            return
        if value.shape[features] != sum(lengths):
            return
        rows = value.movedim(features, -1).reshape(self.inputs, -1, sum(lengths)).mean(1)
        for segment, size, part in zip(axis, sizes, rows.split(lengths, -1), strict=True):
            for place, group in enumerate(segment):
                view = part.reshape(self.inputs, *size).movedim(1 + place, -1)
                where.setdefault(group, []).append(view.reshape(self.inputs, -1, size[place]).mean(1))

    def values(self, like: Tensor, behind: bool) -> Tensor:
        """(M, N) in the order of the groups; zeros in the likeness of a parameter where nothing was heard."""
        if not self.said:
            raise GraphError(
                f"probe: expected a network with layers that give ({self.inputs}, ...) for {self.inputs} inputs, "
                "found none: pass the inputs batch first, to a network of torch.nn's layers"
            )
        columns = []
        for group in self.graph.groups:
            said, read = self.said.get(group.id), self.read.get(group.id)
            heard = (read or said) if behind else (said or read)
            none = like.new_zeros(self.inputs, group.size)
            columns.append(torch.stack(heard).mean(0) if heard else none)
        return torch.cat(columns, -1)


def _checked(model: nn.Module, graph: ParameterGraph, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors that the model is to run with: the given ones, its own parameters, and copies of its buffers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    own = {**dict(model.named_parameters()), **buffers}
    unknown = [name for name in params if name not in own]
    if unknown:
        raise GraphError(f"probe: expected tensors that the model has, found {', '.join(unknown)}")
    tensors = {**own, **params}
    for name, spec in graph.parameters.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != spec.shape:
            raise GraphError(
                f"probe: expected {name} with shape {spec.shape}, as in the graph, found {found}: pass one network's "
                "parameters (torch.vmap takes many), and the graph of this model"
            )
    return tensors


def _shapes(args: tuple[Any, ...]) -> str:
    return ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in args)
