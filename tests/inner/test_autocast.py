"""The inner networks in bfloat16: products in it, everything that is kept in float32, nearly the same meta-gradient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.inner.autocast import Autocast
from lopt.inner.task import Task
from lopt.rules import make_rule
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import TruncatedBackprop
from meta_tasks import make_task
from tests.helpers import TinyTask, flat_state, seeded, small_rule
from tests.training.tiny_run import CONFIG, finish, outcome, tiny_trainer


class Watched(TinyTask):
    """Remembers the dtype of a product of parameters and batch."""

    seen: torch.dtype | None = None

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        self.seen = (batch @ params["w"].T).dtype
        return super().loss(params, batch)


def test_products_are_in_bfloat16_and_what_is_kept_in_float32() -> None:
    task, rule = Watched(), small_rule().float()
    cohort = start(Autocast(task))
    estimate = TruncatedBackprop(4)(rule, cohort, seeded(1))
    assert task.seen == torch.bfloat16
    kept = [*estimate.networks.params.values(), *flat_state(estimate.networks.state).values()]
    assert all(
        value.dtype == torch.float32 for value in [*kept, *estimate.gradient.values(), estimate.losses]
    )


def start(task: Task) -> Cohort:
    rule = small_rule().float()
    return Cohort.start(task, {}, rule.on(task.graph), 3, Horizons(4, 40, 4), seeded(0))


@pytest.mark.parametrize("second_order", [True, False])
def test_the_meta_gradient_is_nearly_that_of_float32(second_order: bool) -> None:
    rule = small_rule(rate=0.02).float()
    estimator = TruncatedBackprop(4, second_order=second_order)
    exact, rough = (estimator(rule, start(task), seeded(1)) for task in (TinyTask(), Autocast(TinyTask())))
    torch.testing.assert_close(rough.losses, exact.losses, rtol=0.05, atol=0.01)
    assert not torch.equal(rough.losses, exact.losses)
    one, other = (
        torch.cat([value.flatten() for value in estimate.gradient.values()]) for estimate in (exact, rough)
    )
    assert torch.cosine_similarity(one, other, 0) > 0.95


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    config = CONFIG.but(autocast=True, steps=6)
    finish(tmp_path / "whole", config=config)
    first = tiny_trainer(tmp_path / "halves", config)
    first._validate(None)
    while first.step < 3:
        first._outer_step()
        first.step += 1
    first._save()
    finish(tmp_path / "halves", config=config)
    assert outcome(tmp_path / "halves")[0] == outcome(tmp_path / "whole")[0]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("cnn", {"widths": [4], "norm": "batch"}),
        ("cnn", {"widths": [4], "norm": "group"}),
        ("mlp", {"widths": [4], "norm": "layer"}),
        ("resnet", {"widths": [4]}),
        ("vit", {"width": 8, "heads": 2, "patch": 4}),
    ],
)
def test_norms_of_every_kind(family: str, options: dict[str, Any]) -> None:
    task, rule = make_task(family, {**options, "batch_size": 8}), make_rule("mlp", width=4)
    losses = []
    for used in (task, Autocast(task)):
        cohort = Cohort.start(used, {}, rule.on(used.graph), 2, Horizons(2, 20, 2), seeded(0))
        losses.append(TruncatedBackprop(2)(rule, cohort, seeded(1)).losses)
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.02)
