from __future__ import annotations

import pytest
import torch

from lopt.errors import ConfigError
from meta_tasks import FAMILIES, SUITES, TASKS, make_family, named_task, suite_families, suite_tasks
from meta_tasks.data.images import PUBLISHED_SIZES
from meta_tasks.spec import Spec

NOT_ARCHITECTURE = {
    "seed", "batch_size", "init_scale", "evaluation_examples", "noise", "label_noise", "data_fraction", "classes",
}  # fmt: skip


def parsed(name: str) -> Spec:
    family, spec = TASKS[name]
    return FAMILIES[family].spec_class.parse(spec)


def identity(spec: Spec) -> dict[str, object]:
    """Family, data set and architecture."""
    values = {name: value for name, value in spec.to_json().items() if name not in NOT_ARCHITECTURE}
    if values.get("size") == 0:
        values["size"] = PUBLISHED_SIZES[str(values["dataset"])]
    return {"family": spec.family, **values}


@pytest.mark.parametrize("name", SUITES)
def test_train_can_draw_no_validation_or_test_task(name: str, fabricated: str) -> None:
    for family in suite_families(name, fabricated):
        for task in (*SUITES[name].validation, *SUITES[name].test):
            spec = parsed(task)
            if spec.family == family.name:
                fields = identity(spec).keys() - {"family"}
                assert not family.distribution.contains(spec, fields), (task, family.name)


def test_contains_would_notice() -> None:
    fields = identity(parsed("digits-mlp")).keys() - {"family"}
    assert make_family("mlp", {"widths": {"low": 16, "high": 64}}).distribution.contains(
        parsed("digits-mlp"), fields
    )


@pytest.mark.parametrize("name", SUITES)
def test_validation_and_test_share_nothing(name: str) -> None:
    tasks = [*SUITES[name].validation, *SUITES[name].test]
    identities = [identity(parsed(task)) for task in tasks]
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
