"""Constants of the base that are meta-learned, and follow what a rule knows of the run.

A constant c0 of the config becomes c = c0 moved by x = w . f, in the logarithm for factors and exponents and in the
logit for shares and decays, with the features f = [1, l, a]: l, how long the horizon is, and a, how much of it is over.
Fresh, w = 0, it is what the config says. Shapes: B parameters (tensors).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lopt.graph.tensor_classes import CLASSES

SPEED = 10.0
"""x is learned in units of this, so that few constants move as fast as the many weights of a metanet."""

USUAL_HORIZON = 300.0
"""The horizon at which l = 0; a tenfold one has l = 1."""

SHORTEST, LONGEST = -1.0, 2.0
"""Bounds of l: far beyond the horizons of meta-training a line is no good guess."""

CONSTANTS: dict[str, int] = {
    **{f"{found}_rate": 3 for found in CLASSES},
    "momentum_decay": 2,
    "second_decay": 2,
    "warm_up": 2,
    "cool_down": 2,
    "weight_decay": 3,
    "relative": 3,
}
"""How many of the features each constant follows. Decays are the same throughout a run, because the correction of
their averages' bias takes them to be; so are those that say what happens when."""


class Constants(nn.Module):
    """The constants that are learned; nothing for those that are not."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.zeros(CONSTANTS[name])) for name in names})

    def __contains__(self, name: str) -> bool:
        return name in self.weights

    def shift(self, name: str, steps: Tensor, horizon: Tensor) -> Tensor:
        """(B,) x at the steps taken (B,) of horizons (B,), 0 for unknown."""
        weights = self.weights[name].to(steps.dtype) * SPEED
        features = horizon_features(steps, horizon)[: len(weights)]
        return sum((weight * row for weight, row in zip(weights.unbind(), features, strict=True)), 0 * steps)

    def factor(self, name: str, steps: Tensor, horizon: Tensor) -> Tensor | float:
        """(B,) exp(x), what a positive constant is multiplied by; 1 if it is not learned."""
        return torch.exp(self.shift(name, steps, horizon)) if name in self else 1.0

    def share(self, name: str, share: float, steps: Tensor, horizon: Tensor) -> Tensor | float:
        """(B,) a share between 0 and 1, moved in its logit; as it is if it is not learned."""
        return (
            torch.sigmoid(math.log(share / (1 - share)) + self.shift(name, steps, horizon))
            if name in self
            else share
        )

    def rates(self, found: Sequence[str], steps: Tensor, horizon: Tensor) -> Tensor | float:
        """(B,) factors on the rate of tensors of these classes; 1 if none is learned."""
        names = [f"{name}_rate" for name in CLASSES if f"{name}_rate" in self]
        if not names:
            return 1.0
        total = 0 * steps
        for name in names:
            of_class = steps.new_tensor([f"{each}_rate" == name for each in found])
            total = total + of_class * self.shift(name, steps, horizon)
        return torch.exp(total)


def horizon_features(steps: Tensor, horizon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1, l and a, each (B,); l and a are 0 where the horizon is unknown, and a goes from -1 to 1 where it is known."""
    known = (horizon > 0).to(steps.dtype)
    length = torch.log10(horizon.clamp(min=1) / USUAL_HORIZON).clamp(SHORTEST, LONGEST)
    over = 2 * ((steps - 1) / horizon.clamp(min=1)).clamp(max=1) - 1
    return torch.ones_like(steps), known * length, known * over


def log_decay(decay: float, shift: Tensor) -> Tensor:
    """log d with d = sigmoid(logit(decay) + shift), exact where d is near 1."""
    return logsigmoid(math.log(decay / (1 - decay)) + shift)
