from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lopt.config import from_mapping, load, to_mapping
from lopt.errors import ConfigError
from lopt.training.run_config import RunConfig
from meta_tasks import FAMILIES, SUITES, TASKS, make_family, named_task, suite_tasks
from meta_tasks.data.images import PUBLISHED_SIZES
from meta_tasks.spec import Between, OneOf, SpecDistribution, distribution_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
NOT_ARCHITECTURE = {
    "seed", "batch_size", "init_scale", "evaluation_examples", "noise", "label_noise", "data_fraction", "classes",
}  # fmt: skip


def identity(family: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Family, data set and architecture of a fixed task."""
    whole = to_mapping(from_mapping(FAMILIES[family].spec_class, spec, family))
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


ON_PURPOSE = {"neural_graphs"}
"""Configs that meta-train on a task of a test suite, as the paper has it; what comes of them says so."""


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem not in ON_PURPOSE], ids=lambda path: path.stem)
def test_no_config_trains_on_a_test_task_or_chooses_by_one(path: Path) -> None:
    config = load(RunConfig, path)
    chosen_by = [TASKS[v] if isinstance(v, str) else (v.family, v.options) for v in config.validation]
    for name in {task for suite in SUITES.values() for task in suite.test}:
        values = identity(*TASKS[name])
        assert values not in [identity(*task) for task in chosen_by], name
        family = values.pop("family")
        for entry in config.tasks:
            if entry.family == family:
                assert not can_draw(drawn_from(family, entry.options), values), name


def drawn_from(family: str, options: Mapping[str, Any]) -> SpecDistribution:
    return from_mapping(distribution_of(FAMILIES[family].spec_class), options, family)


def test_that_would_be_noticed() -> None:
    values = identity(*TASKS["digits-mlp"])
    del values["family"]
    ranges = {"widths": {"low": 16, "high": 64}, "depth": [1, 2]}
    assert can_draw(drawn_from("mlp", ranges), values)
    assert can_draw(drawn_from("mlp", {"widths": [[8], [32, 32]]}), values)
    assert not can_draw(drawn_from("mlp", {**ranges, "depth": [1, 3]}), values)


@pytest.mark.parametrize("name", SUITES)
def test_validation_and_test_share_nothing(name: str) -> None:
    tasks = [*SUITES[name].validation, *SUITES[name].test]
    identities = [identity(*TASKS[task]) for task in tasks]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])


@pytest.mark.parametrize("name", TASKS)
def test_every_named_task_runs(name: str, fabricated: str) -> None:
    task, generator = named_task(name, fabricated), torch.Generator().manual_seed(0)
    params, batch = task.init(1, generator), task.sample("train", 1, generator)
    loss = task.loss(
        {name: tensor[0] for name, tensor in params.items()}, tuple(tensor[0] for tensor in batch)
    )
    assert torch.isfinite(loss)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_config_draws_can_be_built(path: Path, fabricated: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for entry in load(RunConfig, path).tasks:
        family = make_family(entry.family, entry.options, fabricated)
        for _ in range(3):
            task = family.build(family.sample_spec(generator))
            assert task.init(1, generator).keys() == dict(task.module.named_parameters()).keys()


@pytest.mark.parametrize("name", ["digits", "built-in"])
def test_suites_without_a_data_folder(name: str) -> None:
    for part in ("validation", "test"):
        assert suite_tasks(name, part)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="there is no suite 'digit'; there are digits"):
        suite_tasks("digit", "test")
    with pytest.raises(ConfigError, match="there is no task 'fm16'; there are"):
        named_task("fm16")
    with pytest.raises(ConfigError, match="expected validation or test"):
        suite_tasks("digits", "train")
