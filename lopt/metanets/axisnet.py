"""AxisNet: dense message passing between scalars and neurons along the axes of each parameter.

The layer is that of an edge-updating graph network (Battaglia et al. 2018, section 3) on the parameter graph,
written without gather and scatter: a weight with axes (out, in, tap) is its own adjacency structure, so neurons
are broadcast along axes and messages are means over axes.

Shapes: P scalars, B blocks, N neurons (all elements of all axis groups, one group after another), F features,
C context values, D hidden width per scalar, H hidden width per neuron and per block, R raw outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from lopt.graph import Block, ParameterGraph
from lopt.graph.made_once import made_once
from lopt.graph.parameter_graph import PARAMETER_KINDS
from lopt.metanets.base import Metanet, check_sizes

MESSAGE_ROLES = ("out", "in")
"""Axis roles with neurons of their own; taps are few, and scalars along them are told apart by nobody."""


class AxisNet(Metanet):
    """Per layer, with relu as phi, for the scalars e of each block, the neurons n and the blocks' contexts c:

        e' = phi(W_e e + sum over out and in axes of W_role n_axis + W_c c)
        m_role = mean of e' over all other axes, averaged over the blocks that share the neuron
        n' = phi(W_n n + W_out m_out + W_in m_in)
        c' = phi(W_cc c + W_g mean(c) + W_ce mean(e'))

    and at last raw = W_e e + sum of W_role n_axis + W_c c with W = 0 at first.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: int = 16,
        neuron_width: int = 32,
        layers: int = 2,
    ) -> None:
        super().__init__()
        check_sizes(width=width, neuron_width=neuron_width, layers=layers)
        self.kind_embedding = nn.Parameter(0.1 * torch.randn(len(PARAMETER_KINDS), neuron_width))
        self.encode_context = nn.Linear(context, neuron_width)
        self.layers = nn.ModuleList(
            AxisLayer(
                features if layer == 0 else width, 0 if layer == 0 else neuron_width, width, neuron_width
            )
            for layer in range(layers)
        )
        self.head = ScalarUpdate(width, neuron_width, neuron_width, outputs)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def prepare(self, graph: ParameterGraph) -> None:
        plan_of(graph)

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        plan = plan_of(graph)
        scalars = features if plan.order is None else features[:, plan.order.to(features.device)]
        contexts = self.encode_context(context.T)[plan.owners.to(features.device)]
        contexts = relu(contexts + self.kind_embedding[plan.kinds.to(features.device)]).T
        neurons: Tensor | None = None
        for layer in self.layers:
            scalars, neurons, contexts = layer(plan, scalars, neurons, contexts)
        raw = self.head(plan, scalars, neurons, contexts)
        return (raw if plan.inverse is None else raw[:, plan.inverse.to(raw.device)]), None


class ScalarUpdate(nn.Module):
    """W_e e + sum over out and in axes of W_role n_axis + W_c c: (D, P), (H, N), (H, B) -> (outputs, P)."""

    def __init__(self, width: int, neurons: int, contexts: int, outputs: int) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.randn(outputs, width) / width**0.5)
        self.context = nn.Linear(contexts, outputs)
        self.neuron = nn.Linear(neurons, len(MESSAGE_ROLES) * outputs, bias=False) if neurons else None

    def forward(self, plan: Plan, scalars: Tensor, neurons: Tensor | None, contexts: Tensor) -> Tensor:
        own = self.scalar @ scalars
        shared = self.context(contexts.T).T
        terms = None if self.neuron is None or neurons is None else self.neuron(neurons.T).T
        parts = []
        for index, (part, block) in enumerate(zip(own.split(plan.sizes, -1), plan.blocks, strict=True)):
            parts.append(
                self._one_block(plan, block, part, shared[:, index], terms).reshape(own.shape[0], -1)
            )
        return torch.cat(parts, -1)

    def _one_block(
        self, plan: Plan, block: Block, own: Tensor, shared: Tensor, terms: Tensor | None
    ) -> Tensor:
        sums = {"out": shared.reshape(-1, *[1] * len(block.shape))}
        if terms is not None:
            by_role = dict(zip(MESSAGE_ROLES, terms.chunk(len(MESSAGE_ROLES)), strict=True))
            for axis, (group, role) in enumerate(zip(block.groups, block.roles, strict=True)):
                if role in by_role:
                    term = along(by_role[role][:, plan.neurons_of(group)], axis, len(block.shape))
                    sums[role] = sums[role] + term if role in sums else term
        result = own.reshape(-1, *block.shape)
        # Axes of one side are summed while small; the full-sized block is passed over once a side.
        for term in sums.values():
            result = result + term
        return result


class AxisLayer(nn.Module):
    """One round of messages: scalars -> neurons and contexts; see `AxisNet`."""

    def __init__(self, inputs: int, neurons: int, width: int, neuron_width: int) -> None:
        super().__init__()
        self.update = ScalarUpdate(inputs, neurons, neuron_width, width)
        self.neuron = nn.Linear(neurons + len(MESSAGE_ROLES) * width, neuron_width)
        self.context = nn.Linear(2 * neuron_width + width, neuron_width)

    def forward(
        self, plan: Plan, scalars: Tensor, neurons: Tensor | None, contexts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scalars = relu(self.update(plan, scalars, neurons, contexts))
        messages, means = collect(plan, scalars)
        known = messages if neurons is None else torch.cat([neurons, messages])
        overall = contexts.mean(-1, keepdim=True).expand_as(contexts)
        contexts = relu(
            linear(torch.cat([contexts, overall, means]).T, self.context.weight, self.context.bias)
        ).T
        return scalars, relu(self.neuron(known.T)).T, contexts


def along(values: Tensor, axis: int, dims: int) -> Tensor:
    """(D, n) -> (D, 1..., n, ...1) with n at `axis` of `dims` axes."""
    return values.reshape(values.shape[0], *[1] * axis, -1, *[1] * (dims - axis - 1))


def collect(plan: Plan, scalars: Tensor) -> tuple[Tensor, Tensor]:
    """(D, P) scalars -> (2 D, N) messages, first from out axes, then from in axes, and (D, B) block means."""
    width = scalars.shape[0]
    inbox: dict[tuple[str, int], list[Tensor]] = {}
    means = []
    for part, block in zip(scalars.split(plan.sizes, -1), plan.blocks, strict=True):
        value = part.reshape(width, *block.shape)
        taps = [1 + axis for axis, role in enumerate(block.roles) if role not in MESSAGE_ROLES]
        value = value.mean(taps, keepdim=True) if taps else value
        means.append(value.reshape(width, -1).mean(-1))
        for axis, (group, role) in enumerate(zip(block.groups, block.roles, strict=True)):
            if role in MESSAGE_ROLES:
                others = [1 + other for other in range(len(block.shape)) if other != axis]
                inbox.setdefault((role, group), []).append(value.mean(others) if others else value)
    rows = []
    for role in MESSAGE_ROLES:
        received = [
            average(inbox.get((role, group)), scalars, size) for group, size in enumerate(plan.group_sizes)
        ]
        # A network whose parameters have no axes has no neurons either.
        rows.append(torch.cat([scalars.new_zeros(width, 0), *received], -1))
    return torch.cat(rows), torch.stack(means, -1)


def average(messages: list[Tensor] | None, like: Tensor, size: int) -> Tensor:
    """The mean of (D, size) messages; zeros where there are none."""
    if messages is None:
        return like.new_zeros(like.shape[0], size)
    return messages[0] if len(messages) == 1 else torch.stack(messages).mean(0)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known of a graph before any value is: where blocks and neurons lie."""

    blocks: tuple[Block, ...]
    """Those that hold any scalar: the others have no mean to speak of."""
    sizes: list[int]
    """Scalars in each block; blocks follow each other."""
    owners: Tensor
    """(B,) index of each block's parameter."""
    kinds: Tensor
    """(B,) index of each block's kind in `PARAMETER_KINDS`."""
    group_sizes: list[int]
    group_starts: list[int]
    order: Tensor | None
    """From flat order to block order; None where they are the same."""
    inverse: Tensor | None

    def neurons_of(self, group: int) -> slice:
        start = self.group_starts[group]
        return slice(start, start + self.group_sizes[group])


@made_once
def plan_of(graph: ParameterGraph) -> Plan:
    """The plan of a graph, made once."""
    names = list(graph.parameters)
    blocks = tuple(block for block in graph.blocks if prod(block.shape))
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


def _block_order(graph: ParameterGraph) -> Tensor | None:
    if len(graph.blocks) == len(graph.parameters):
        return None
    index = graph.unflatten(torch.arange(graph.numel))
    return torch.cat([index[block.parameter][block.slices].reshape(-1) for block in graph.blocks])
