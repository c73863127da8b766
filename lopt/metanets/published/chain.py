"""Chains of layers, and all linear maps between their weights that permutations of neurons leave alone.

A chain has neuron sets 0 (inputs) to L (outputs), weights w_l from set l to set l + 1 and biases v_l on set l + 1.
A linear map between two such tensors commutes with the permutations of all sets if and only if it is a sum of
terms "average over the axes outside S, map the channels, repeat along the axes outside S", one for each S within
the sets that both tensors have (Zhou et al. 2023, arXiv 2302.14040, theorem 3.1; Navon et al. 2023,
arXiv 2301.12780, theorem 4.1). Sets that stay in place are no axes: their neurons are channels.

Shapes: n_l neurons in set l, C channels, D width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.made_once import made_once
from lopt.metanets.published.wiring import Wire, wiring_of


@dataclass(frozen=True, eq=False)
class Link:
    """One layer of a chain."""

    weight: Wire
    bias: Wire | None


@made_once
def chain_of(graph: ParameterGraph, taps: int) -> tuple[Link, ...]:
    """The layers from input to output. Raises `GraphError` unless the graph is a chain of layers with biases."""
    wiring = wiring_of(graph, taps)
    reading: dict[int, Wire] = {}
    fed: set[int] = set()
    for wire in wiring.edges:
        assert wire.source is not None, "attributes are no edges"
        start = wire.source.start
        if start in reading or wire.target.start in fed:
            raise _refusal(graph, f"{wire.block.parameter!r}, which shares its neurons with another weight")
        if wire.grid[2] > 1:
            wire_name = f"{wire.block.parameter!r} with {wire.taps} kernel taps or positions"
            raise _refusal(graph, f"{wire_name} (at most {taps}; set the option taps)")
        reading[start] = wire
        fed.add(wire.target.start)
    weights: list[Wire] = []
    at = next((start for start in reading if start not in fed), None)
    while at in reading:  # comes to an end: no set is fed twice, and the first one never
        weights.append(reading[at])
        at = weights[-1].target.start
    if len(weights) < len(wiring.edges) or not weights:
        raise _refusal(graph, "weights that do not follow one another")
    biases = _biases(graph, wiring.attributes, {w.target.start for w in weights})
    return tuple(Link(weight, biases.get(weight.target.start)) for weight in weights)


def _biases(graph: ParameterGraph, attributes: list[Wire], ends: set[int]) -> dict[int, Wire]:
    biases: dict[int, Wire] = {}
    for wire in attributes:
        start = wire.target.start
        if wire.block.kind != "bias" or wire.taps > 1 or start in biases or start not in ends:
            raise _refusal(graph, f"{wire.block.parameter!r} of kind {wire.block.kind!r}")
        biases[start] = wire
    return biases


def _refusal(graph: ParameterGraph, found: str) -> GraphError:
    return GraphError(
        "this metanet takes chains alone: expected linear or convolution layers one after another, each with at "
        f"most a bias, found {found}; for such a network take another metanet, such as ng_gnn, axisnet or unf"
    )


@dataclass(frozen=True)
class Slot:
    """The axes (as neuron sets) and channels of one tensor."""

    axes: tuple[int, ...]
    inputs: int
    outputs: int


def chain_slots(depth: int, inputs: int, outputs: int, ends: tuple[int, int] | None) -> list[Slot]:
    """Slots of w_0, v_0, w_1, v_1...; with `ends` (n_0, n_L), the first and last set are channels, not axes."""
    kept = range(depth + 1) if ends is None else range(1, depth)
    sizes = {} if ends is None else {0: ends[0], depth: ends[1]}
    slots = []
    for l in range(depth):  # noqa: E741 - the papers' letter
        for axes in ((l + 1, l), (l + 1,)):
            folded = math.prod(sizes.get(axis, 1) for axis in axes)
            slots.append(Slot(tuple(a for a in axes if a in kept), inputs * folded, outputs * folded))
    return slots


class EquivariantLinear(nn.Module):
    """Every linear map between the tensors that commutes with the permutations, and every invariant shift."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        super().__init__()
        self.slots = list(slots)
        self.members: dict[tuple[int, ...], list[int]] = {}
        for index, slot in enumerate(self.slots):
            for subset in subsets(slot.axes):
                self.members.setdefault(subset, []).append(index)
        self.weights = nn.ParameterList(self._matrix(indices) for indices in self.members.values())
        self.biases = nn.ParameterList(torch.zeros(slot.outputs) for slot in self.slots)

    def _matrix(self, indices: list[int]) -> Tensor:
        inputs = sum(self.slots[i].inputs for i in indices)
        outputs = sum(self.slots[i].outputs for i in indices)
        return torch.randn(outputs, inputs) / math.sqrt(2 * inputs)

    def forward(self, values: list[Tensor]) -> list[Tensor]:
        """(C, sizes of its axes) for each slot, in and out."""
        results = [b.reshape(-1, *[1] * len(s.axes)) for b, s in zip(self.biases, self.slots, strict=True)]
        for (subset, indices), weight in zip(self.members.items(), self.weights, strict=True):
            pooled = [pool(values[i], self.slots[i].axes, subset) for i in indices]
            columns = torch.cat([p.reshape(p.shape[0], -1) for p in pooled])
            mapped = (weight @ columns).split([self.slots[i].outputs for i in indices])
            sizes = pooled[0].shape[1:]
            for i, term in zip(indices, mapped, strict=True):
                results[i] = results[i] + repeat(term.reshape(-1, *sizes), subset, self.slots[i].axes)
        return [r.expand(-1, *v.shape[1:]) for r, v in zip(results, values, strict=True)]


class SharedLinear(nn.Module):
    """As `EquivariantLinear` on a chain of any depth whose sets all permute, with the same weights for all layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.own = nn.Parameter(torch.randn(width, width) / math.sqrt(2 * width))
        self.at_set = nn.Parameter(torch.randn(3 * width, 3 * width) / math.sqrt(6 * width))
        self.whole = nn.Parameter(torch.randn(2 * width, 2 * width) / math.sqrt(4 * width))
        self.biases = nn.Parameter(torch.zeros(2, width))

    def forward(self, values: list[Tensor]) -> list[Tensor]:
        """(D, n_(l+1), n_l) of each weight and (D, n_(l+1)) of each bias, alternating, in and out."""
        weights, biases = values[::2], values[1::2]
        overall = self._whole(weights, biases)
        new_w = [self._own(w) + overall[: self.width, None, None] for w in weights]
        new_b = [overall[self.width :, None].expand_as(v) for v in biases]
        for number in range(len(weights) + 1):
            # What meets at a set: the weight and bias that feed it, the weight that reads it.
            known = [weights[number - 1].mean(2), biases[number - 1]] if number else []
            known += [weights[number].mean(1)] if number < len(weights) else []
            low, high = 0 if number else 2 * self.width, (3 if number < len(weights) else 2) * self.width
            terms = (self.at_set[low:high, low:high] @ torch.cat(known)).split(self.width)
            if number:
                new_w[number - 1] = new_w[number - 1] + terms[0][:, :, None]
                new_b[number - 1] = new_b[number - 1] + terms[1]
            if number < len(weights):
                new_w[number] = new_w[number] + terms[-1][:, None, :]
        return [value for pair in zip(new_w, new_b, strict=True) for value in pair]

    def _own(self, w: Tensor) -> Tensor:
        return (self.own @ w.flatten(1)).reshape(w.shape) + self.biases[0][:, None, None]

    def _whole(self, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        means = [torch.stack([x.flatten(1).mean(1) for x in xs]).mean(0) for xs in (weights, biases)]
        return self.whole @ torch.cat(means) + torch.cat([torch.zeros_like(self.biases[1]), self.biases[1]])


def subsets(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All subsets, each sorted."""
    ordered = sorted(axes)
    return [s for size in range(len(axes) + 1) for s in itertools.combinations(ordered, size)]


def pool(value: Tensor, axes: tuple[int, ...], subset: tuple[int, ...]) -> Tensor:
    """(C, sizes of axes) -> (C, sizes of subset): the mean over the other axes."""
    others = [1 + i for i, axis in enumerate(axes) if axis not in subset]
    value = value.mean(others) if others else value
    left = [axis for axis in axes if axis in subset]
    return value.permute(0, *(1 + left.index(axis) for axis in subset))


def repeat(value: Tensor, subset: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """(C, sizes of subset) -> (C, sizes of axes, 1 outside the subset)."""
    inside = [axis for axis in axes if axis in subset]
    value = value.permute(0, *(1 + subset.index(axis) for axis in inside))
    sizes = iter(value.shape[1:])
    return value.reshape(value.shape[0], *(next(sizes) if axis in subset else 1 for axis in axes))
