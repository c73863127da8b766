"""The curve of an ordinary optimizer that a rule can be measured by."""

from __future__ import annotations

import math
from functools import partial

import torch

from lopt.inner.step import FLOOR
from lopt.rules.classical import CLASSICAL
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import TruncatedBackprop
from lopt.training.outer import OUTER_LOSSES
from lopt.training.reference import RATES, reference_curve
from tests.helpers import seeded, small_rule
from tests.toy_tasks import Quadratic, TwoMoons

unclipped = partial(TruncatedBackprop, network_clip=math.inf)


def test_curve_is_that_of_adam_at_the_best_rate() -> None:
    curve = reference_curve(Quadratic(), 60, seeded(0))
    assert curve.shape == (60,)
    assert curve[0] == 1
    assert curve[-1] < 0.3
    # By hand: on the quadratic the largest of the rates is the best one.
    p, m, v = torch.zeros(200, 6), 0.0, 0.0
    p = torch.randn(200, 6, generator=seeded(1))
    task, losses = Quadratic(), []
    for t in range(1, 61):
        losses.append(torch.stack([task.loss({"p": q}, torch.zeros(6)) for q in p]))
        g = task.curvature * (p - 1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - RATES[-1] * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    typical = (torch.stack(losses) / losses[0]).log().mean(1).exp()
    assert (curve.log() - typical.log()).abs()[:30].max() < 0.5


def test_curve_depends_on_the_generator_alone() -> None:
    first, again, other = (reference_curve(TwoMoons(), 10, seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_cohort_reads_the_curve_at_each_networks_age() -> None:
    task, rule = Quadratic(), CLASSICAL["adam"](0.1)
    curve = torch.linspace(1, 0, 11)
    cohort = Cohort.start(task, {}, rule.on(task.graph), 3, Horizons(10, 10, 2), seeded(0), reference=curve)
    cohort.ages = torch.tensor([0.0, 4.0, 9.0])
    found = cohort.reference_after(2)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.5, 0.0], [0.8, 0.4, 0.0]]))


def test_log_ratio_is_zero_for_a_rule_as_good_as_the_reference() -> None:
    losses, initial = torch.rand(5, 3, generator=seeded(0)), torch.ones(3)
    assert OUTER_LOSSES["log"](losses, initial, losses).abs().max() < 1e-6
    halved = OUTER_LOSSES["log"](0.5 * losses + 0.5 * -FLOOR, initial, losses)
    torch.testing.assert_close(halved, torch.full((3,), math.log(0.5)))


def test_gradient_is_weighed_by_the_reference() -> None:
    """A reference that is 10 times better makes the mean ratio 10 times as steep; the log-ratio not."""
    task, rule = Quadratic(), small_rule().float()
    for outer, factor in (("mean", 10.0), ("log", 1.0)):
        gradients = []
        for level in (0.5, 0.05 - 0.9 * FLOOR):
            cohort = Cohort.start(
                task, {}, rule.on(task.graph), 3, Horizons(10, 10, 2), seeded(0),
                reference=torch.full((10,), level),
            )  # fmt: skip
            gradients.append(unclipped(2, outer)(rule, cohort, seeded(1)).gradient["log_rate"])
        torch.testing.assert_close(gradients[1], gradients[0] * factor, rtol=1e-3, atol=1e-6)
