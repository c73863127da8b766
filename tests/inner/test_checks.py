"""What a task of somebody's own may answer: a mistake is one sentence before any work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lopt
from lopt.comparison import evaluate
from lopt.errors import ConfigError
from lopt.inner.checks import check_task
from lopt.inner.task import Task
from meta_tasks import named_task
from tests.toy_tasks import Quadratic, TwoMoons

Change = Callable[[Any], Any]


def changed(method: str, change: Change) -> Quadratic:
    """A quadratic of which one method answers something else."""
    task = Quadratic()
    own = getattr(task, method)
    setattr(task, method, lambda *args: change(own(*args)))
    return task


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("loss", lambda loss: loss[None], r"loss: expected a real tensor \(\).*found a tensor \(1,\)"),
        ("loss", lambda loss: loss.detach(), r"loss: .* depends on the parameters.* no gradient"),
        ("loss", lambda loss: loss.long(), "loss: .*int64"),
        ("loss", lambda loss: loss.item(), "loss: .*found [0-9]"),
        ("loss", lambda loss: {"loss": loss}, r"loss: .*found \{'loss': a tensor"),
        ("loss", lambda loss: loss - 1e6, "losses from 0.*outer_loss: plain"),
        ("init", lambda params: list(params.values()), "init: expected a dict"),
        ("init", lambda params: {}, "init: expected a dict"),
        ("init", lambda params: {"q": params["p"]}, "difference in 'p': only the graph has it"),
        ("init", lambda params: {**params, "q": params["p"]}, "difference in 'q': init gives it"),
        ("init", lambda params: {"p": params["p"][0]}, r"'p' as a real tensor \(2, 6\).*found a tensor \(6,\)"),
        ("sample", lambda batch: batch[0], r"sample: .*found a tensor \(6,\)"),
        ("sample", lambda batch: {"x": batch, "note": "hello"}, "sample: expected tensors alone.*'hello'"),
        ("trace", lambda graph: None, "trace: expected the ParameterGraph"),
        ("metrics", lambda figures: {"accuracy": figures["loss"]}, 'metrics: .*"loss" among them'),
    ],
)  # fmt: skip
def test_a_mistake_is_named(method: str, change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_task(changed(method, change), splits=("test",))


def test_what_is_no_task_is_told() -> None:
    with pytest.raises(ConfigError, match="expected a task"):
        check_task(Quadratic)  # type: ignore[arg-type]
    nameless = Quadratic()
    nameless.name = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="'Quadratic': name: expected a word"):
        check_task(nameless)


@pytest.mark.parametrize("task", [Quadratic(), TwoMoons(), named_task("digits-mlp"), named_task("quadratic")])
def test_tasks_as_they_should_be_pass_and_leave_random_numbers_alone(task: Task) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_task(task, splits=("validation", "test"))
    assert torch.equal(before, torch.get_rng_state())


def test_losses_that_teach_nothing_are_told_of() -> None:
    with pytest.warns(UserWarning, match="expected finite losses of fresh networks, found .*nan"):
        check_task(changed("loss", lambda loss: loss * torch.nan))


def test_networks_that_come_with_gradients_are_evaluated() -> None:
    def as_parameters(params: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: p.requires_grad_() for name, p in params.items()}

    assert evaluate(
        lopt.load_rule("lopt-small"), changed("init", as_parameters), steps=2, seeds=(1,), progress=False
    )
