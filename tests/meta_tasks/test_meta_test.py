"""The contract of the meta-test suite, for every kind, and that nothing is chosen by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.func import grad, vmap

from lopt.errors import ConfigError
from lopt.inner.task import SPLITS
from meta_tasks import FAMILIES, SUITES, TASKS
from meta_tasks.meta_test import KINDS, KindTask, kind_task
from tests.meta_tasks.kit import generator, one, to_double

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module", params=KINDS)
def task(request: pytest.FixtureRequest) -> KindTask:
    return kind_task(request.param)


def test_there_are_at_least_twenty_kinds() -> None:
    assert len(KINDS) >= 20


def test_the_graph_is_traced(task: KindTask) -> None:
    assert task.graph.rung == "traced"
    assert {name: spec.shape for name, spec in task.graph.parameters.items()} == {
        name: tuple(parameter.shape) for name, parameter in task.module.named_parameters()
    }


def test_vmapped_equals_looped(task: KindTask) -> None:
    params, batch = to_double((task.init(2, generator()), task.sample("train", 2, generator())))
    gradients, losses = vmap(torch.func.grad_and_value(task.loss))(params, batch)
    for i in range(2):
        torch.testing.assert_close(losses[i], task.loss(one(params, i), one(batch, i)))
        torch.testing.assert_close(one(gradients, i), grad(task.loss)(one(params, i), one(batch, i)))


def test_a_seed_decides_everything_and_splits_differ(task: KindTask) -> None:
    again = kind_task(task.name.removeprefix("meta_test/"))
    for split in SPLITS:
        first, second = ((t.init(2, generator(1)), t.sample(split, 2, generator(1))) for t in (task, again))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    train, test = (one(next(iter(task.evaluation(split)))[0], slice(10)) for split in ("train", "test"))
    assert not any(torch.equal(a, b) for a, b in zip(*map(_flat, (train, test)), strict=True))


def _flat(inputs: Any) -> list[torch.Tensor]:
    return [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)


def test_adam_lowers_the_loss_and_metrics_are_finite(task: KindTask) -> None:
    params = {name: p[0].requires_grad_() for name, p in task.init(1, generator()).items()}
    optimizer, batches = torch.optim.Adam(params.values(), 1e-2), generator(1)
    with torch.no_grad():
        before = task.metrics(params, "train")["loss"]
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(params, one(task.sample("train", 1, batches))).backward()
        optimizer.step()
    with torch.no_grad():
        metrics = {split: task.metrics(params, split) for split in SPLITS}
    assert 0 < metrics["train"]["loss"] < 0.9 * before
    assert all(
        value.shape == () and value.isfinite() for found in metrics.values() for value in found.values()
    )


def test_the_docs_name_every_kind() -> None:
    rows = (ROOT / "docs/meta-test.md").read_text().splitlines()
    assert [row.split("`")[1] for row in rows if row.startswith("| `")] == list(KINDS)


def test_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match=r"found 'unett'; did you mean 'unet'\?"):
        kind_task("unett")


def test_no_suite_and_no_name_of_a_config_leads_to_a_kind() -> None:
    assert not KINDS.keys() & (FAMILIES.keys() | TASKS.keys() | SUITES.keys())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_config_trains_or_validates_on_a_kind(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    entries = [*config["tasks"], *config["validation"]]
    assert entries
    named = {entry if isinstance(entry, str) else entry["family"] for entry in entries}
    assert not named & KINDS.keys()
    assert not any(str(kind) in path.read_text().split() for kind in ("meta_test", "meta-test"))
