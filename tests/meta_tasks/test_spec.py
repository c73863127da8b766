from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from lopt.errors import ConfigError
from meta_tasks.spec import Between, OneOf, Spec, SpecDistribution, choice, number


@dataclass(frozen=True)
class ExampleSpec(Spec):
    family: ClassVar[str] = "example"

    widths: tuple[int, ...] = number((4, 4), 1, 64)
    noise: float = number(0.0, 0.0, 2.0)
    activation: str = choice("relu", "tanh")
    batch_size: int = number(8, 1, 100)


@dataclass(frozen=True)
class StackSpec(Spec):
    family: ClassVar[str] = "stack"

    depth: int = number(1, 1, 16)


def draws(options: dict[str, Any], count: int = 200) -> list[ExampleSpec]:
    generator, distribution = torch.Generator().manual_seed(0), SpecDistribution(ExampleSpec, options)
    return [distribution.draw(generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": 3.0}, "example.noise = 3.0: expected a number from 0.0 to 2.0"),
        ({"noise": float("nan")}, "example.noise = nan"),
        ({"noise": "much"}, "example.noise = 'much'"),
        ({"batch_size": 2.5}, "example.batch_size = 2.5: expected an integer from 1 to 100"),
        ({"batch_size": True}, "example.batch_size = True"),
        ({"activation": "sine"}, "example.activation = 'sine': expected one of relu, tanh"),
        ({"widths": 8}, "example.widths = 8: expected a list"),
        ({"widths": []}, "expected a list"),
        ({"widths": [8, 0]}, "example.widths = 0: expected an integer from 1 to 64"),
        ({"wdiths": [8]}, "example has no option 'wdiths'; did you mean 'widths'"),
    ],
)
def test_bad_spec(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExampleSpec.parse(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": {"low": 0, "high": 3}}, "example.noise = 3: expected a number from 0.0 to 2.0"),
        ({"noise": {"low": 1, "high": 0}}, "expected numbers low <= high"),
        ({"noise": {"low": 0}}, "expected numbers low <= high"),
        ({"noise": {"low": 0, "high": 1, "log": True}}, "expected low above 0"),
        (
            {"noise": {"min": 0, "max": 1}},
            "example.noise has no option 'min'; expected one of high, log, low",
        ),
        ({"noise": []}, "at least one value"),
        ({"activation": ["relu", "sine"]}, "example.activation = 'sine'"),
        ({"widths": {"low": 8, "high": 65}}, "example.widths = 65"),
        ({"widths": [[8, 99]]}, "example.widths = 99"),
        ({"depth": 0}, "example.depth = 0: expected an integer from 1 to 16"),
        ({"depth": 3}, "expected widths of single layers beside it, found stacks"),
        ({"depth": 3, "widths": [[8, 8]]}, "found stacks"),
        ({"activation": {"low": 0, "high": 1}}, "expected a value or a list of values, found a range"),
        ({"noise": {"low": 0, "high": 1, "log": "yes"}}, "example.noise.log = 'yes': expected true or false"),
        ({"deep": 3}, "example has no option 'deep'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpecDistribution(ExampleSpec, options)


def test_without_options_only_the_seed_varies() -> None:
    specs = draws({}, 10)
    assert len({spec.seed for spec in specs}) == 10
    assert {(spec.widths, spec.noise, spec.activation, spec.batch_size) for spec in specs} == {
        ((4, 4), 0.0, "relu", 8)
    }


def test_ranges_are_filled_and_kept() -> None:
    specs = draws({"noise": {"low": 0, "high": 2}, "batch_size": {"low": 3, "high": 6}})
    assert {spec.batch_size for spec in specs} == {3, 4, 5, 6}
    noises = torch.tensor([spec.noise for spec in specs])
    assert noises.min() < 0.1 < 1.9 < noises.max() <= 2
    # Uniform on [0, 2]: mean 1, standard error of 200 draws 2 / sqrt(12 * 200) = 0.041.
    assert abs(noises.mean() - 1) < 3 * 0.041


def test_log_uniform_median_is_the_geometric_mean() -> None:
    widths = [spec.widths[0] for spec in draws({"widths": {"low": 4, "high": 64, "log": True}}, 500)]
    assert {min(widths), max(widths)} <= set(range(4, 65))
    # Half of the mass lies below the geometric mean of the ends of [4, 65): 16.1; standard error 0.022.
    assert abs(sum(width <= 16 for width in widths) / 500 - 0.5) < 0.08


def test_depth_and_widths() -> None:
    specs = draws({"widths": {"low": 2, "high": 9}, "depth": {"low": 1, "high": 3}})
    assert {len(spec.widths) for spec in specs} == {1, 2, 3}
    assert any(len(set(spec.widths)) > 1 for spec in specs)
    assert {spec.widths for spec in draws({"widths": [[16, 32, 32], [8]]})} == {(16, 32, 32), (8,)}
    assert {spec.widths for spec in draws({"widths": 5, "depth": 3})} == {(5, 5, 5)}


def test_a_depth_of_its_own_is_drawn_like_any_number() -> None:
    """A family without a list of widths, such as "vit", may have a field of that name."""
    distribution, generator = SpecDistribution(StackSpec, {"depth": [1, 3]}), torch.Generator().manual_seed(0)
    assert {distribution.draw(generator).depth for _ in range(50)} == {1, 3}


def test_json_round_trip() -> None:
    for spec in draws({"widths": {"low": 2, "high": 9}, "noise": {"low": 0.0, "high": 2.0}}, 20):
        assert ExampleSpec.parse(json.loads(json.dumps(spec.to_json()))) == spec


def test_contains_agrees_with_draw() -> None:
    options = {"widths": {"low": 2, "high": 9}, "depth": [1, 3], "activation": "tanh"}
    distribution = SpecDistribution(ExampleSpec, options)
    names = ("widths", "activation", "batch_size")
    assert all(distribution.contains(spec, names) for spec in draws(options))
    for values in ({"widths": (3, 3)}, {"widths": (10,)}, {"activation": "relu"}, {"batch_size": 9}):
        spec = ExampleSpec.parse({"widths": (3,), "activation": "tanh"} | values)
        assert not distribution.contains(spec, names)


def test_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {OneOf((1, 2)).draw(generator) for _ in range(20)} == {1, 2}
    assert Between(2.0, 2.0).draw(generator) == 2.0
