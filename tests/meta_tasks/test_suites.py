from __future__ import annotations

from typing import Any

import pytest
import torch

from lopt.config import from_mapping, to_mapping
from lopt.errors import ConfigError
from meta_tasks import FAMILIES, SUITES, TASKS, make_family, named_task, suite_families, suite_tasks
from meta_tasks.data.images import PUBLISHED_SIZES
from meta_tasks.spec import Between, OneOf, SpecDistribution

NOT_ARCHITECTURE = {
    "seed", "batch_size", "init_scale", "evaluation_examples", "noise", "label_noise", "data_fraction", "classes",
}  # fmt: skip


def identity(name: str) -> dict[str, Any]:
    """Family, data set and architecture of a fixed task."""
    family, spec = TASKS[name]
    whole = to_mapping(from_mapping(FAMILIES[family].spec_class, spec, name))
    values = {name: value for name, value in whole.items() if name not in NOT_ARCHITECTURE}
    if values.get("size") == 0:
        values["size"] = PUBLISHED_SIZES[values["dataset"]]
    return {"family": family, **values}


def can_be(drawn: OneOf | Between[Any], value: Any) -> bool:
    return value in drawn.values if isinstance(drawn, OneOf) else bool(drawn.low <= value <= drawn.high)


def can_draw(distribution: SpecDistribution, values: dict[str, Any]) -> bool:
    """Whether a spec with these values can be drawn."""
    rest, widths = dict(values), values.get("widths")
    if "size" in rest:
        published = PUBLISHED_SIZES[rest["dataset"]]
        if rest.pop("size") not in {size or published for size in distribution.of("size").values}:
            return False
    if widths is not None:
        del rest["widths"]
        layers = distribution.of("widths")
        stack = isinstance(layers, OneOf) and tuple(widths) in layers.values
        if not stack and not (
            can_be(distribution.of("depth"), len(widths)) and all(can_be(layers, width) for width in widths)
        ):
            return False
    return all(can_be(distribution.of(name), value) for name, value in rest.items())


@pytest.mark.parametrize("name", SUITES)
def test_train_can_draw_no_validation_or_test_task(name: str, fabricated: str) -> None:
    for family in suite_families(name, fabricated):
        for task in (*SUITES[name].validation, *SUITES[name].test):
            values = identity(task)
            if values.pop("family") == family.name:
                assert not can_draw(family.distribution, values), (task, family.name)


def test_that_would_be_noticed() -> None:
    values = identity("digits-mlp")
    del values["family"]
    ranges = {"widths": {"low": 16, "high": 64}, "depth": [1, 2]}
    assert can_draw(make_family("mlp", ranges).distribution, values)
    assert can_draw(make_family("mlp", {"widths": [[8], [32, 32]]}).distribution, values)
    assert not can_draw(make_family("mlp", {**ranges, "depth": [1, 3]}).distribution, values)


@pytest.mark.parametrize("name", SUITES)
def test_validation_and_test_share_nothing(name: str) -> None:
    tasks = [*SUITES[name].validation, *SUITES[name].test]
    identities = [identity(task) for task in tasks]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])


@pytest.mark.parametrize("name", TASKS)
def test_every_named_task_runs(name: str, fabricated: str) -> None:
    task, generator = named_task(name, fabricated), torch.Generator().manual_seed(0)
    params, batch = task.init(1, generator), task.sample("train", 1, generator)
    loss = task.loss(
        {name: tensor[0] for name, tensor in params.items()}, tuple(tensor[0] for tensor in batch)
    )
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", SUITES)
def test_every_drawn_task_can_be_built(name: str, fabricated: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for family in suite_families(name, fabricated):
        for _ in range(10):
            task = family.build(family.sample_spec(generator))
            assert task.init(1, generator).keys() == dict(task.module.named_parameters()).keys()


@pytest.mark.parametrize("name", ["digits", "built-in"])
def test_suites_without_a_data_folder(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for family in suite_families(name):
        assert family.build(family.sample_spec(generator)).init(1, generator)
    for part in ("validation", "test"):
        assert suite_tasks(name, part)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="there is no suite 'digit'; there are digits"):
        suite_families("digit")
    with pytest.raises(ConfigError, match="there is no task 'fm16'; there are"):
        named_task("fm16")
    with pytest.raises(ConfigError, match="expected validation or test"):
        suite_tasks("digits", "train")
