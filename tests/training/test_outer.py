"""Outer losses against their definitions, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from lopt.inner.step import LIMIT
from lopt.training.outer import OUTER_LOSSES, relative

LOSSES = torch.tensor([[2.0, 8.0], [1.0, 2.0], [0.5, 100.0]])
INITIAL = torch.tensor([4.0, 8.0])
RATIOS = [[0.5, 0.25, 0.125], [1.0, 0.25, LIMIT]]


def test_relative_is_cut_at_the_limit() -> None:
    torch.testing.assert_close(relative(LOSSES, INITIAL), torch.tensor(RATIOS).T)


@pytest.mark.parametrize(
    ("name", "of_one"),
    [
        ("mean", lambda ratios: sum(ratios) / 3),
        ("log", lambda ratios: sum(math.log(r + 1e-3) for r in ratios) / 3),
        ("final", lambda ratios: ratios[-1]),
    ],
)
def test_equals_its_definition(name: str, of_one: object) -> None:
    found = OUTER_LOSSES[name](LOSSES, INITIAL)
    assert found.tolist() == pytest.approx([of_one(ratios) for ratios in RATIOS], rel=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in OUTER_LOSSES if name != "plain"])
def test_scale_of_the_task_does_not_matter(name: str) -> None:
    torch.testing.assert_close(
        OUTER_LOSSES[name](1e4 * LOSSES, 1e4 * INITIAL), OUTER_LOSSES[name](LOSSES, INITIAL)
    )


def test_plain_is_the_mean_of_the_losses_as_they_are() -> None:
    assert OUTER_LOSSES["plain"](LOSSES, INITIAL).tolist() == pytest.approx([3.5 / 3, 110 / 3])


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e30])
def test_what_has_diverged_counts_as_the_limit_and_has_no_slope(bad: float) -> None:
    losses = torch.tensor([[1.0], [bad]], requires_grad=True)
    value = OUTER_LOSSES["mean"](losses, torch.tensor([2.0]))
    assert value.item() == pytest.approx((0.5 + LIMIT) / 2)
    value.sum().backward()
    assert losses.grad is not None
    assert losses.grad.flatten().tolist() == pytest.approx([0.25, 0.0])


@pytest.mark.parametrize("name", list(OUTER_LOSSES))
def test_a_task_that_starts_at_zero_loss_is_finite(name: str) -> None:
    losses = torch.tensor([[0.0], [1.0]], requires_grad=True)
    value = OUTER_LOSSES[name](losses, torch.zeros(1))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert losses.grad is not None
    assert torch.isfinite(losses.grad).all()
