"""What a task is: a typed point (`Spec`), and the distribution that a family draws points from.

A family's options give each field of its spec a distribution:

    dataset: digits                          always this value
    activation: [relu, gelu, tanh]           one of these, equally likely
    noise: {low: 0, high: 2}                 uniform, both ends included
    widths: {low: 8, high: 64, log: true}    log-uniform

A field that holds one value per layer (`widths`) draws each by itself, `depth` of them; `depth` is an option
with a distribution of its own. A nested list names whole stacks: `widths: [[16, 32, 32], [32, 64, 64]]`.
Fields that hold a name (or one of a few numbers, as `kernel`) take a value or a list, no range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Generator

from lopt.config import short, suggest
from lopt.errors import ConfigError

S = TypeVar("S", bound="Spec")
SEEDS = 2**31 - 1


def number(default: Any, low: float, high: float) -> Any:
    """A spec field: a number from `low` to `high`, or a tuple of them if the default is a tuple."""
    return field(default=default, metadata={"low": low, "high": high})


def choice(default: str | int, *others: str | int) -> Any:
    """A spec field: one of the given values."""
    return field(default=default, metadata={"allowed": (default, *others)})


@dataclass(frozen=True)
class Spec:
    """Everything that distinguishes one task of a family from the others.

    Raises `ConfigError` for a value of the wrong type or out of range.
    """

    family: ClassVar[str]

    seed: int = number(0, 0, SEEDS)
    """Fixes whatever is random about the task itself and the same in all its runs."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, self.checked(item.name, getattr(self, item.name)))

    @classmethod
    def checked(cls, name: str, value: Any) -> Any:
        """A value for one field, as the field's own type."""
        (item,) = (f for f in dataclasses.fields(cls) if f.name == name)
        if not isinstance(item.default, tuple):
            return _checked(f"{cls.family}.{name}", value, item.default, item.metadata)
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise ConfigError(f"{cls.family}.{name} = {short(repr(value))}: expected a list of numbers")
        return tuple(_checked(f"{cls.family}.{name}", v, item.default[0], item.metadata) for v in value)

    @classmethod
    def parse(cls: type[S], values: Mapping[str, Any]) -> S:
        """The spec that a mapping describes; fields that it leaves out have their defaults."""
        known = [item.name for item in dataclasses.fields(cls)]
        check_keys(cls.family, values, known)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `parse` makes the same spec again."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def check_keys(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise `ConfigError` for the first key that is not known."""
    for key in values:
        if key not in known:
            raise ConfigError(f"{where} has no option {short(repr(key))}; {suggest(str(key), sorted(known))}")


def _checked(where: str, value: Any, default: Any, metadata: Mapping[str, Any]) -> Any:
    if "allowed" in metadata:
        if value not in metadata["allowed"] or isinstance(value, bool):
            raise ConfigError(
                f"{where} = {short(repr(value))}: expected one of {', '.join(map(str, metadata['allowed']))}"
            )
        return value
    low, high, kind = metadata["low"], metadata["high"], type(default)
    accepted = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if not accepted or not low <= value <= high:
        noun = "an integer" if kind is int else "a number"
        raise ConfigError(f"{where} = {short(repr(value))}: expected {noun} from {low} to {high}")
    return kind(value)


@dataclass(frozen=True)
class OneOf:
    """Each of the values, equally likely."""

    values: tuple[Any, ...]

    def draw(self, generator: Generator) -> Any:
        """One value."""
        return self.values[_below(len(self.values), generator)]

    def contains(self, value: Any) -> bool:
        """Whether `value` can be drawn."""
        return value in self.values


@dataclass(frozen=True)
class Between:
    """Uniform or log-uniform from low to high, both included; integers if the ends are integers."""

    low: float
    high: float
    log: bool = False

    def draw(self, generator: Generator) -> Any:
        """One value."""
        whole = isinstance(self.low, int)
        low, high = self.low, self.high + whole  # the integer n stands for [n, n + 1)
        uniform = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
        value = low * (high / low) ** uniform if self.log else low + uniform * (high - low)
        return min(math.floor(value), int(self.high)) if whole else value

    def contains(self, value: Any) -> bool:
        """Whether `value` can be drawn."""
        return bool(self.low <= value <= self.high)


Distribution = OneOf | Between


class SpecDistribution:
    """A distribution over the specs of a family, one independent distribution per field.

    Raises `ConfigError` for an unknown option, or if a value that can be drawn is not valid in its field.
    """

    def __init__(self, spec_class: type[Spec], options: Mapping[str, Any]) -> None:
        self.spec_class = spec_class
        self.defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(spec_class)}
        self.choices = {f.name for f in dataclasses.fields(spec_class) if "allowed" in f.metadata}
        layered = "widths" in self.defaults
        check_keys(spec_class.family, options, [*self.defaults, *(["depth"] if layered else [])])
        self.fields = {name: self._parse(name, value) for name, value in options.items()}
        depth = layered and "depth" in self.fields
        if depth and any(isinstance(v, tuple) for v in self.values("widths")):
            raise ConfigError(
                f"{spec_class.family}.depth: expected widths of single layers beside it, found stacks"
            )

    def draw(self, generator: Generator) -> Spec:
        """One spec. Fields without an option keep their default, except the seed, which is random."""
        values: dict[str, Any] = {"seed": _below(SEEDS, generator)}
        for name in self.defaults:
            if name == "widths":
                values[name] = self._draw_widths(generator)
            elif name in self.fields:
                values[name] = self.fields[name].draw(generator)
        return self.spec_class(**values)

    def values(self, name: str) -> tuple[Any, ...]:
        """The values that a field can take, or the ends of their range."""
        return _extremes(self.support(name))

    def all_values(self, name: str) -> tuple[Any, ...]:
        """Every value that a field of choices or integers can take."""
        support = self.support(name)
        return (
            support.values
            if isinstance(support, OneOf)
            else tuple(range(int(support.low), int(support.high) + 1))
        )

    def support(self, name: str) -> Distribution:
        """What a field is drawn from."""
        return self.fields.get(name, OneOf((self.defaults[name],)))

    def contains(self, spec: Spec, names: Iterable[str]) -> bool:
        """Whether a spec with these values in the named fields can be drawn."""
        return all(self._contains(name, getattr(spec, name)) for name in names)

    def _contains(self, name: str, value: Any) -> bool:
        support = self.support(name)
        if name != "widths":
            return support.contains(value)
        depth = self.fields.get("depth", self._default_depth)
        stacks = isinstance(support, OneOf) and value in support.values
        return stacks or (depth.contains(len(value)) and all(support.contains(width) for width in value))

    @property
    def _default_depth(self) -> Distribution:
        return OneOf((len(self.defaults["widths"]),))

    def _draw_widths(self, generator: Generator) -> Any:
        widths = self.support("widths")
        first = widths.draw(generator)
        if isinstance(first, Sequence):
            return first
        depth = self.fields.get("depth", self._default_depth).draw(generator)
        return [first, *(widths.draw(generator) for _ in range(depth - 1))]

    def _parse(self, name: str, value: Any) -> Distribution:
        where = f"{self.spec_class.family}.{name}"
        distribution = _distribution(where, value)
        if isinstance(distribution, OneOf):
            return OneOf(tuple(self._checked(name, v) for v in distribution.values))
        if name in self.choices:
            raise ConfigError(
                f"{where} = {short(value)}: expected a value or a list of values, found a range"
            )
        low, high = self._checked(name, distribution.low), self._checked(name, distribution.high)
        return Between(low, high, distribution.log)

    def _checked(self, name: str, value: Any) -> Any:
        if name == "depth":
            return _checked(f"{self.spec_class.family}.depth", value, 1, {"low": 1, "high": 16})
        if isinstance(self.defaults[name], tuple) and not isinstance(value, Sequence):
            return self.spec_class.checked(name, [value])[0]
        return self.spec_class.checked(name, value)


def _distribution(where: str, value: Any) -> Distribution:
    if isinstance(value, Mapping):
        check_keys(where, value, ["low", "high", "log"])
        return _between(where, value)
    if isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError(f"{where} = []: expected at least one value to choose from")
        return OneOf(tuple(value))
    return OneOf((value,))


def _between(where: str, value: Mapping[str, Any]) -> Between:
    low, high, log = value.get("low"), value.get("high"), value.get("log", False)
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high):
        raise ConfigError(f"{where} = {short(dict(value))}: expected numbers low <= high")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log = {short(repr(log))}: expected true or false")
    if log and low <= 0:
        raise ConfigError(f"{where} = {short(dict(value))}: expected low above 0, for the logarithm")
    return Between(low, high, log)


def _extremes(distribution: Distribution) -> tuple[Any, ...]:
    if isinstance(distribution, OneOf):
        return distribution.values
    return (distribution.low, distribution.high)


def _below(limit: int, generator: Generator) -> int:
    return int(torch.randint(limit, (), generator=generator, device=generator.device))
