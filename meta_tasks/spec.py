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

import itertools
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

import torch
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    Tag,
    create_model,
    model_validator,
)
from torch import Generator

from lopt.config import Settings, wrong

T = TypeVar("T")
V = TypeVar("V", bound=float)

SEEDS = 2**31 - 1


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):  # which equals 0 or 1, so that pydantic takes it for that
        raise wrong("a number", value)
    return value


Number = BeforeValidator(_no_flag)
"""Beside a `Literal` of numbers."""

Few = Annotated[int, Field(ge=1, le=16)]
"""Of layers, heads and the like."""
Width = Annotated[int, Field(ge=1, le=1024)]
Wide = Annotated[int, Field(ge=1, le=4096)]
Layers = Annotated[tuple[T, ...], Strict(False), Field(min_length=1)]
"""A value for each layer."""


class Spec(Settings):
    """Everything that distinguishes one task of a family from the others: a default and bounds for each field."""

    together: ClassVar[tuple[str, ...]] = ()
    """Fields that a validator of the spec compares: it is asked about all values that can be drawn."""

    seed: Annotated[int, Field(ge=0, le=SEEDS)] = 0
    """Fixes whatever is random about the task itself and the same in all its runs."""


@dataclass(frozen=True)
class OneOf:
    """Each of the values, equally likely."""

    values: tuple[Any, ...]

    def draw(self, generator: Generator) -> Any:
        """One value."""
        return self.values[_below(len(self.values), generator)]


class Between(Settings, Generic[V]):
    """Uniform or log-uniform from low to high, both included; integers if the ends are integers."""

    low: V
    high: V
    log: bool = False

    @model_validator(mode="after")
    def _fit(self) -> Between[V]:
        if self.low > self.high:
            raise wrong(f"a number at least low, {self.low}", self.high, "high")
        if self.log and self.low <= 0:
            raise wrong("a number above 0, for the logarithm", self.low, "low")
        return self

    @property
    def values(self) -> tuple[V, ...]:
        """Every value if they are integers, else the ends."""
        return (*range(self.low, self.high + 1),) if isinstance(self.low, int) else (self.low, self.high)

    def draw(self, generator: Generator) -> Any:
        """One value."""
        whole = isinstance(self.low, int)
        low, high = self.low, self.high + whole  # the integer n stands for [n, n + 1)
        uniform = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
        value = low * (high / low) ** uniform if self.log else low + uniform * (high - low)
        return min(math.floor(value), int(self.high)) if whole else value


class SpecDistribution(Settings):
    """A distribution over the specs of a family, one independent distribution per field: see `distribution_of`."""

    spec_class: ClassVar[type[Spec]]

    @model_validator(mode="after")
    def _fit(self) -> SpecDistribution:
        if "widths" in self.spec_class.model_fields:
            stacks = {isinstance(value, tuple) for value in self.of("widths").values}
            if len(stacks) == 2 or (True in stacks and "depth" in self.model_fields_set):
                raise wrong(
                    "widths of single layers, as depth and others are", self.of("widths").values, "widths"
                )
        for values in itertools.product(*(self.of(name).values for name in self.spec_class.together)):
            self.spec_class.model_validate(dict(zip(self.spec_class.together, values, strict=True)))
        return self

    def of(self, name: str) -> OneOf | Between[Any]:
        """What a field is drawn from."""
        distribution: OneOf | Between[Any] = getattr(self, name)
        return distribution

    def draw(self, generator: Generator) -> Spec:
        """One spec. Fields without an option keep their default, except the seed, which is random."""
        values: dict[str, Any] = {"seed": _below(SEEDS, generator)}
        for name in self.spec_class.model_fields:
            if name == "widths":
                values[name] = first = self.of(name).draw(generator)
                if not isinstance(first, tuple):
                    more = self.of("depth").draw(generator) - 1
                    values[name] = [first, *(self.of(name).draw(generator) for _ in range(more))]
            elif name in self.model_fields_set:
                values[name] = self.of(name).draw(generator)
        return self.spec_class(**values)


@cache
def distribution_of(spec_class: type[Spec]) -> type[SpecDistribution]:
    """Settings with an option for each field of a spec."""
    options: dict[str, Any] = {}
    for name, field in spec_class.model_fields.items():
        options[name] = (_option(field.annotation, field.metadata), OneOf((field.default,)))
        if name == "widths":
            options["depth"] = (_option(Few), OneOf((len(field.default),)))
    distribution = create_model(spec_class.__name__, __base__=SpecDistribution, **options)
    distribution.spec_class = spec_class
    return distribution


def _option(kind: Any, bounds: Iterable[Any] = ()) -> Any:
    """The type of an option for a field of a type: a value, a list of values, or a range."""
    field = reduce(_bounded, bounds, kind)
    if get_origin(kind) is not tuple:
        return _drawn(field, field, get_origin(kind) is not Literal)
    return _drawn(get_args(kind)[0], _by_form(value=get_args(kind)[0], list=field), True)


def _drawn(one: Any, each: Any, ranges: bool) -> Any:
    forms = {"value": one, "list": Layers[each], **({"range": Between[one]} if ranges else {})}
    return _bounded(_by_form(**forms), AfterValidator(_distribution))


def _by_form(**kinds: Any) -> Any:
    """One of several types, told apart by how a value is written."""
    tagged = (_bounded(kind, Tag(f"[{form}]")) for form, kind in kinds.items())
    return _bounded(reduce(operator.or_, tagged), Discriminator(_form))


def _bounded(kind: Any, bound: Any) -> Any:
    return Annotated[kind, bound]


def _form(option: Any) -> str:
    if isinstance(option, Mapping | Between):
        return "[range]"
    return "[list]" if isinstance(option, list | tuple) else "[value]"


def _distribution(option: Any) -> OneOf | Between[Any]:
    if isinstance(option, Between):
        return option
    return OneOf(option if isinstance(option, tuple) else (option,))


def _below(limit: int, generator: Generator) -> int:
    return int(torch.randint(limit, (), generator=generator, device=generator.device))
