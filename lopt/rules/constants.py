"""Constants of the base that are meta-learned, and follow what a rule knows of the run.

A constant c0 of the config becomes c = c0 moved by x = w . f, in the logarithm for factors and exponents, in the logit
for shares and decays and by a tenth of x itself for cosines, with the features f = [1, l, a]: l, how long the horizon
is, and a, how much of it is over.
Fresh, w = 0, it is what the config says. Shapes: B parameters (tensors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lopt.graph.tensor_classes import CLASSES
from lopt.numerics.schedules import over

SPEED = 10.0
"""x is learned in units of this, so that few constants move as fast as the many weights of a metanet."""

USUAL_HORIZON = 300.0
"""The horizon at which l = 0; a tenfold one has l = 1."""

SHORTEST, LONGEST = -1.0, 2.0
"""Bounds of l: far beyond the horizons of meta-training a line is no good guess."""

CONSTANTS: dict[str, int] = {
    **{f"{of_class}_rate": 3 for of_class in CLASSES},
    "momentum_decay": 2,
    "second_decay": 2,
    "warm_up": 2,
    "cool_down": 2,
    "weight_decay": 3,
    "relative": 3,
    "pace": 3,
    "headway": 3,
    "whitening": 2,
}
"""How many of the features each constant follows. Decays are the same throughout a run, because the correction of
their averages' bias takes them to be; so are those that say what happens when."""


class Constants(nn.Module):
    """The constants that are learned, all of them moved at once; nothing for those that are not."""

    select: Tensor
    """(3 N, W) which constant and feature each weight is for."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        cells = [3 * i + k for i, name in enumerate(names) for k in range(CONSTANTS[name])]
        self.weights = nn.Parameter(torch.zeros(len(cells))) if cells else None
        select = torch.eye(3 * len(names))[cells].T
        # Not saved: it follows from the names, and is a buffer to go where the rule goes.
        self.register_buffer("select", select, persistent=False)

    def of(self, name: str) -> Tensor:
        """(2,) or (3,) the weights of one constant, as a view."""
        assert self.weights is not None
        widths = [CONSTANTS[each] for each in self.names]
        return self.weights.split(widths)[self.names.index(name)]

    def forward(self, steps: Tensor, horizon: Tensor) -> Moved:
        """What has become of them at the steps taken (B,) of horizons (B,), 0 for unknown."""
        if self.weights is None:
            return Moved({})
        table = (self.select @ self.weights).reshape(-1, 3).to(steps.dtype)
        shifts = SPEED * table @ torch.stack(horizon_features(steps, horizon))
        return Moved(dict(zip(self.names, shifts.unbind(), strict=True)))


@dataclass(frozen=True)
class Moved:
    """x, (B,), of each constant that is learned."""

    shifts: Mapping[str, Tensor]

    def factor(self, name: str) -> Tensor | float:
        """(B,) exp(x), what a positive constant is multiplied by; 1 if it is not learned."""
        return torch.exp(self.shifts[name]) if name in self.shifts else 1.0

    def share(self, name: str, share: float) -> Tensor | float:
        """(B,) a share between 0 and 1, moved in its logit; as it is if it is not learned."""
        return torch.sigmoid(_logit(share) + self.shifts[name]) if name in self.shifts else share

    def log_decay(self, name: str, decay: float) -> Tensor | None:
        """(B,) the logarithm of a decay moved in its logit, exact where that is near 1; None if it is not learned."""
        return logsigmoid(_logit(decay) + self.shifts[name]) if name in self.shifts else None

    def offset(self, name: str) -> Tensor | float:
        """(B,) x / 10, of a number that is 0 fresh and far below 1; 0 if it is not learned."""
        return self.shifts[name] / 10 if name in self.shifts else 0.0

    def rates(self, of_tensors: Sequence[str]) -> Tensor | float:
        """(B,) factors on the rate of tensors of these classes; 1 if none is learned."""
        learned = {name: x for name in CLASSES if (x := self.shifts.get(f"{name}_rate")) is not None}
        if not learned:
            return 1.0
        rows = torch.stack(list(learned.values()))
        return torch.exp(
            (rows * rows.new_tensor([[name == each for each in of_tensors] for name in learned])).sum(0)
        )


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def horizon_features(steps: Tensor, horizon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1, l and a, each (B,); l and a are 0 where the horizon is unknown, and a goes from -1 to 1 where it is known."""
    known = (horizon > 0).to(steps.dtype)
    length = torch.log10(horizon.clamp(min=1) / USUAL_HORIZON).clamp(SHORTEST, LONGEST)
    return torch.ones_like(steps), known * length, known * (2 * over(steps, horizon) - 1)
