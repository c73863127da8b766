from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field

from lopt.config import from_mapping, to_mapping
from lopt.errors import ConfigError
from meta_tasks.spec import Between, Few, Layers, OneOf, Spec, SpecDistribution, distribution_of


class ExampleSpec(Spec):
    widths: Layers[Annotated[int, Field(ge=1, le=64)]] = (4, 4)
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0
    activation: Literal["relu", "tanh"] = "relu"
    batch_size: Annotated[int, Field(ge=1, le=100)] = 8


class StackSpec(Spec):
    depth: Few = 1


def distribution(options: dict[str, Any], spec_class: type[Spec] = ExampleSpec) -> SpecDistribution:
    return from_mapping(distribution_of(spec_class), options, "example")


def draws(options: dict[str, Any], count: int = 200) -> list[Any]:
    generator, drawn = torch.Generator().manual_seed(0), distribution(options)
    return [drawn.draw(generator) for _ in range(count)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": 3.0}, "noise: expected a number at most 2, found 3.0"),
        ({"noise": float("nan")}, "noise: expected a finite number, found nan"),
        ({"noise": "much"}, "noise: expected a number, found 'much'"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number, found 2.5"),
        ({"batch_size": True}, "batch_size: expected a whole number, found true"),
        ({"activation": "sine"}, "activation: expected one of 'relu' or 'tanh', found 'sine'"),
        ({"widths": 8}, "widths: expected a list, found 8"),
        ({"widths": []}, "widths: expected at least 1 of them"),
        ({"widths": [8, 0]}, "widths.1: expected a number at least 1, found 0"),
        ({"wdiths": [8]}, "wdiths: unknown key; did you mean 'widths'?"),
    ],
)
def test_bad_spec(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"example: {message}")):
        from_mapping(ExampleSpec, values, "example")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": {"low": 0, "high": 3}}, "noise.high: expected a number at most 2, found 3"),
        ({"noise": {"low": 1, "high": 0}}, "noise.high: expected a number at least low, 1.0, found 0.0"),
        ({"noise": {"low": 0}}, "noise.high: expected a value, found nothing"),
        ({"noise": {"low": 0, "high": 1, "log": True}}, "noise.low: expected a number above 0"),
        ({"noise": {"min": 0, "max": 1}}, "noise.min: unknown key; expected one of low, high, log"),
        ({"noise": []}, "noise: expected at least 1 of them"),
        ({"noise": [0, {"low": 0, "high": 1}]}, "noise.1: expected a number, found a section"),
        ({"activation": ["relu", "sine"]}, "activation.1: expected one of 'relu' or 'tanh', found 'sine'"),
        ({"widths": {"low": 8, "high": 65}}, "widths.high: expected a number at most 64, found 65"),
        ({"widths": [[8, 99]]}, "widths.0.1: expected a number at most 64, found 99"),
        ({"depth": 0}, "depth: expected a number at least 1, found 0"),
        ({"depth": 3}, "widths: expected widths of single layers"),
        ({"depth": 3, "widths": [[8, 8]]}, "widths: expected widths of single layers"),
        ({"widths": [8, [8, 8]]}, "widths: expected widths of single layers"),
        ({"activation": {"low": 0, "high": 1}}, "activation: expected a value or a list of values, found"),
        ({"noise": {"low": 0, "high": 1, "log": "yes"}}, "noise.log: expected true or false, found 'yes'"),
        ({"deep": 3}, "deep: unknown key; did you mean 'depth'?"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"example: {message}")):
        distribution(options)


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
    drawn, generator = distribution({"depth": [1, 3]}, StackSpec), torch.Generator().manual_seed(0)
    assert {drawn.draw(generator).depth for _ in range(50)} == {1, 3}  # type: ignore[attr-defined]


def test_json_round_trip() -> None:
    for spec in draws({"widths": {"low": 2, "high": 9}, "noise": {"low": 0.0, "high": 2.0}}, 20):
        assert from_mapping(ExampleSpec, json.loads(json.dumps(to_mapping(spec))), "") == spec


def test_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {OneOf((1, 2)).draw(generator) for _ in range(20)} == {1, 2}
    assert Between[float](low=2.0, high=2.0).draw(generator) == 2.0
