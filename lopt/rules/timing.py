"""What of a learned rule's step follows from the clock alone, and a table of it for the steps to come.

Shapes: B parameters (tensors), K decays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.rules.base import State

AHEAD = 128
"""Steps of a table: what it takes to make one is then little for each of them."""

MOST_GRAPHS = 8
"""Of which tables are kept at once."""


class Clock(NamedTuple):
    """Where in a run each tensor is."""

    steps: Tensor
    """(B,) with this one."""
    horizon: Tensor
    """(B,) planned; 0: unknown."""

    @classmethod
    def of(cls, graph: ParameterGraph, state: State, dtype: torch.dtype) -> Clock:
        """That of the step after a state."""
        steps, horizon = (
            torch.stack([state[name][key] for name in graph.parameters]).to(dtype)
            for key in ("step", "total_steps")
        )
        return cls(steps + 1, horizon)


class Decays(NamedTuple):
    """Of running means at one step."""

    new: Tensor
    """(K, 1) or (K, B) weights 1 - decay of what is new, for the momenta."""
    new_second: Tensor
    """(1,) or (B,), the same for the second moment."""
    corrections: Tensor
    """(K + 1, B) corrections of the bias, the last one of the second moment; (K + 1, 1) where they are all the same."""

    def of_tensors(self, count: int) -> Tensor:
        """(B, 2 K + 2) the weights, and then the corrections, of each of so many tensors."""
        weights = torch.cat([self.new.expand(-1, count), self.new_second.expand(1, count)])
        return torch.cat([weights, self.corrections.expand(-1, count)]).T.contiguous()

    def of_first(self) -> Decays:
        """Those of the first tensor, as they are where all tensors are at the same step of the same horizon."""
        return Decays(self.new[:, :1], self.new_second[:1], self.corrections[:, :1])


class Timed(NamedTuple):
    """What the clock says of one step, (B,) of each tensor."""

    decays: Decays
    features: Tensor
    """(11, B) as metanets see it."""
    factor: Tensor
    """What steps are multiplied by."""
    relative: Tensor
    """The exponent of rates in proportion to the size of weights."""
    decay: Tensor
    """How much of each tensor is taken away at the full base rate."""
    gain: Tensor
    """Of headway, by which the pace grows."""
    level: Tensor
    """Headway at which it stays."""
    whitening: Tensor
    """The share of a whitening's exponent."""


class Timetable:
    """Rows of `Timed` for `AHEAD` steps of each graph, made together: a hundred operations on a few numbers are most of
    what the clock's arithmetic costs, however many numbers there are.

    Tables begin at multiples of `AHEAD` steps of the first tensor, so that a run that is resumed reads the same rows.
    """

    def __init__(self) -> None:
        self._kept: dict[ParameterGraph, tuple[object, list[Timed]]] = {}

    def at(
        self, graph: ParameterGraph, clock: Clock, made: Callable[[Clock], Timed], of: Sequence[Tensor]
    ) -> Timed:
        """`made(clock)`, which else depends on the values `of` these few. For the CPU, as it asks for values."""
        steps = clock.steps.tolist()
        row = int(steps[0]) % AHEAD
        key = (
            [step - row for step in steps], clock.horizon.tolist(), clock.steps.dtype,
            [(tensor.dtype, tensor.tolist()) for tensor in of],
        )  # fmt: skip
        if graph not in self._kept or self._kept[graph][0] != key:
            if graph not in self._kept and len(self._kept) >= MOST_GRAPHS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[graph] = key, _rows(clock, row, made)
        return self._kept[graph][1][row]


def _rows(clock: Clock, row: int, made: Callable[[Clock], Timed]) -> list[Timed]:
    """Those of a table that the clock has so many rows before."""
    ahead = torch.arange(AHEAD, device=clock.steps.device) - row
    with torch.no_grad():
        table = torch.vmap(lambda later: made(Clock(clock.steps + later, clock.horizon)))(ahead)
    decays = map(Decays._make, zip(*(column.unbind() for column in table.decays), strict=True))
    if all(bool((value == value[0]).all()) for value in clock):
        decays = map(Decays.of_first, decays)
    others = (column.unbind() for column in table[1:])
    return [Timed(*columns) for columns in zip(decays, *others, strict=True)]
