"""What defines a learned rule but for its meta-parameters, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lopt.errors import ConfigError
from lopt.graph.tensor_classes import CLASSES
from lopt.metanets import METANETS
from lopt.rules.constants import CONSTANTS
from lopt.rules.directions import DIRECTIONS
from lopt.rules.forms import FORMS


@dataclass(frozen=True)
class LearnedRuleConfig:
    """Everything that defines a learned rule but for its meta-parameters."""

    metanet: str = "axisnet"
    """Name in `lopt.metanets.METANETS`."""
    metanet_options: dict[str, Any] = field(default_factory=dict)
    """Options of the metanet's constructor."""
    rate: float = 5e-3
    """Learning rate of the base optimizer that the fresh rule is; meta-trained from there."""
    decays: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Decays of the momenta, fastest first."""
    second_decay: float = 0.999
    """Decay of the second moment."""
    directions: tuple[str, ...] = ("adam", "slow", "gradient", "factored", "momentum", "parameter")
    """Base directions by name."""
    weights: tuple[float, ...] = ()
    """Of the directions in the fresh rule; empty: 1 for the first and 0 for the others."""
    update_form: str = "mixture"
    """How raw outputs become a step: a name in `lopt.rules.forms.FORMS`."""
    factored: bool = True
    """Whether scalars see the factored second moments of their tensors (a metanet of the graph can do without)."""
    anneal: bool = True
    """Whether the base learning rate falls: along half a cosine where the horizon is known, else see `fade`."""
    warm_up: float = 0.0
    """Share of a known horizon over which it first rises along half a cosine."""
    fade: float = 0.0
    """Where the horizon is unknown the base learning rate rises for fade / 5 steps and falls as 1 / sqrt(1 + t / fade);
    0: it stays."""
    scales: dict[str, float] = field(default_factory=dict)
    """Factors on the base learning rate by class of tensor (`tensor_classes.CLASSES`); 1 for those not named."""
    widest: float = 0.0
    """Rows or columns of a hidden matrix above which its step shrinks with their root; 0: never."""
    relative: bool = False
    """Whether tensors with smaller weights than PyTorch draws take smaller steps (`scales.relative_rates`)."""
    weight_decay: float = 0.0
    """Decay of all weights but vectors, as a share of the base learning rate; it anneals with the steps."""
    decay_horizon: float = 0.0
    """Horizon at which half of the weight decay acts (`decay_share`); 0: all of it at any."""
    max_step: float = 0.5
    """Bound on the rms of a tensor's step, relative to the rms of the tensor (taken as at least 0.1)."""
    constants: tuple[str, ...] = ()
    """Which of these constants are meta-learned and follow the horizon, by name in `lopt.rules.constants.CONSTANTS`."""

    def __post_init__(self) -> None:
        for name in ("decays", "directions", "weights", "constants"):
            check(isinstance(getattr(self, name), (list, tuple)), name, "a list", getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "weights", self.weights or (1.0, *[0.0] * (len(self.directions) - 1)))
        check(self.metanet in METANETS, "metanet", f"one of {', '.join(METANETS)}", self.metanet)
        unknown = [name for name in self.directions if name not in DIRECTIONS]
        check(
            not unknown and self.directions,
            "directions",
            f"names out of {', '.join(DIRECTIONS)}",
            self.directions,
        )
        count = len(self.directions)
        check(len(set(self.directions)) == count, "directions", "distinct names", self.directions)
        fits = len(self.weights) == count and all(
            is_number(weight) and math.isfinite(weight) for weight in self.weights
        )
        check(fits, "weights", f"as many numbers as directions ({count})", self.weights)
        check(self.update_form in FORMS, "update_form", f"one of {', '.join(FORMS)}", self.update_form)
        check(is_number(self.rate) and 0 < self.rate < math.inf, "rate", "a finite number above 0", self.rate)
        check(is_number(self.max_step) and self.max_step > 0, "max_step", "a number above 0", self.max_step)
        needed = 2 if "slow" in self.directions else 1
        fits = len(self.decays) >= needed and all(is_number(d) and 0 <= d < 1 for d in self.decays)
        check(fits, "decays", f"at least {needed} numbers from 0 up to but not 1", self.decays)
        fits = is_number(self.warm_up) and 0 <= self.warm_up < 1
        check(fits, "warm_up", "a share from 0 up to but not 1", self.warm_up)
        check(
            is_number(self.fade) and 0 <= self.fade < math.inf, "fade", "a number of steps from 0", self.fade
        )
        fits = is_number(self.widest) and 0 <= self.widest < math.inf
        check(fits, "widest", "a number of rows or columns from 0", self.widest)
        check(isinstance(self.relative, bool), "relative", "true or false", self.relative)
        for name in ("weight_decay", "decay_horizon"):
            found = getattr(self, name)
            check(is_number(found) and 0 <= found < math.inf, name, "a finite number from 0", found)
        fits = isinstance(self.scales, dict) and all(
            name in CLASSES and is_number(scale) and 0 < scale < math.inf
            for name, scale in self.scales.items()
        )
        check(fits, "scales", f"finite numbers above 0 for some of {', '.join(CLASSES)}", self.scales)
        fits = is_number(self.second_decay) and 0 <= self.second_decay < 1
        check(fits, "second_decay", "a number from 0 up to but not 1", self.second_decay)
        self._check_constants()

    def _check_constants(self) -> None:
        unknown = [name for name in self.constants if name not in CONSTANTS]
        fits = not unknown and len(set(self.constants)) == len(self.constants)
        check(fits, "constants", f"distinct names out of {', '.join(CONSTANTS)}", self.constants)
        # From nothing no logarithm and no logit can move them.
        off = {
            "momentum_decay": not self.decays[0] or FORMS[self.update_form].learns_decay,
            "second_decay": not self.second_decay,
            "warm_up": not (self.anneal and self.warm_up),
            "cool_down": not self.anneal,
            "weight_decay": not self.weight_decay,
            "relative": not self.relative,
        }
        found = [name for name in self.constants if off.get(name)]
        check(
            not found,
            "constants",
            "names of constants that are not off, nor learned by the update form",
            found,
        )

    @property
    def mixture(self) -> dict[str, float]:
        """The directions with their weights in the fresh rule."""
        return dict(zip(self.directions, self.weights, strict=True))


def is_number(value: object) -> bool:
    """Files and the command line may hold anything."""
    return isinstance(value, (int, float))


def check(valid: object, name: str, expected: str, found: object) -> None:
    """Raise a `ConfigError` unless the option is valid."""
    if not valid:
        raise ConfigError(f"learned rule: {name} must be {expected}, found {found!r}")
