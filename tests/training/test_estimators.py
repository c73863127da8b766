"""Truncated backpropagation of a cohort: its gradient, and what it makes of divergence."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from lopt.inner.step import LIMIT, Networks
from lopt.inner.unroll import unroll
from lopt.rules import LearnedRule
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import TruncatedBackprop
from lopt.training.estimators.per_network import combined
from tests.helpers import TinyTask, flat_state, relative_error, seeded, small_rule
from tests.inner.test_unroll import MODES, assert_slopes, gradient_of, record

unclipped = partial(TruncatedBackprop, network_clip=math.inf)

COUNT, STEPS = 3, 4


def start(rule: LearnedRule, task: TinyTask | None = None, count: int = COUNT) -> Cohort:
    task = task or TinyTask(dtype=torch.float64)
    return Cohort.start(task, {}, rule.on(task.graph), count, Horizons(4, 40, STEPS), seeded(0))


def part(cohort: Cohort, index: list[int]) -> Cohort:
    """The cohort of some of the networks."""
    params = {name: p[index] for name, p in cohort.networks.params.items()}
    state = {n: {key: v[index] for key, v in s.items()} for n, s in cohort.networks.state.items()}
    return replace(
        cohort, networks=Networks(params, state), ages=cohort.ages[index], horizons=cohort.horizons[index],
        initial=cohort.initial[index],
    )  # fmt: skip


@pytest.mark.parametrize("outer_loss", ["mean", "log", "final"])
def test_gradient_is_the_finite_difference_of_the_outer_loss(outer_loss: str) -> None:
    rule = small_rule(rate=0.02)
    cohort, estimator = start(rule), unclipped(STEPS, outer_loss)
    estimate = estimator(rule, cohort, seeded(1))
    assert not estimate.skipped
    assert not estimate.diverged.any()
    # The initial loss is a measure, not something to be lowered: it is the same whatever the meta-parameters.
    assert_slopes(estimate.gradient, rule, lambda: estimator(rule, cohort, seeded(1)).outer_loss)


def test_gradient_within_a_life_too() -> None:
    """In the second truncation, with the first loss as the measure."""
    rule = small_rule(rate=0.02)
    cohort, estimator = start(rule), unclipped(STEPS)
    first = estimator(rule, cohort, seeded(1))
    later = replace(cohort, networks=first.networks, initial=first.losses[0], ages=cohort.ages + STEPS)
    estimate = estimator(rule, later, seeded(2))
    assert_slopes(estimate.gradient, rule, lambda: estimator(rule, later, seeded(2)).outer_loss)
    ratio = (estimate.losses[1:] / first.losses[0]).mean().item()
    assert estimate.outer_loss == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("second_order", [True, False])
def test_rematerialised_gradient_is_the_same(second_order: bool) -> None:
    rule = small_rule()
    cohort = start(rule)
    plain, again = (
        unclipped(STEPS, second_order=second_order, rematerialise=rematerialise)(rule, cohort, seeded(1))
        for rematerialise in (False, True)
    )
    assert relative_error(again.gradient, plain.gradient) < 1e-10
    assert torch.equal(again.losses, plain.losses)


def test_first_order_differs_and_agrees_with_held_gradients() -> None:
    rule = small_rule(rate=0.02)
    cohort = start(rule)
    estimate = unclipped(STEPS, "final", second_order=False)(rule, cohort, seeded(1))
    generator = seeded(1)
    batches = [cohort.task.sample("train", COUNT, generator) for _ in range(STEPS + 1)]
    recorded = record(rule, cohort.task, cohort.networks, batches)

    def objective() -> Tensor:
        params, state = cohort.networks
        for grads, _, _ in recorded:
            params, state = torch.vmap(rule.on(cohort.task.graph).update)(grads, state, params)
        return (torch.vmap(cohort.task.loss)(params, batches[-1]) / recorded[0][2]).mean()

    assert_slopes(estimate.gradient, rule, objective)
    second = unclipped(STEPS, "final")(rule, cohort, seeded(1))
    assert relative_error(estimate.gradient, second.gradient) > 1e-3


def test_nothing_is_changed_and_nothing_kept() -> None:
    rule = small_rule()
    cohort = start(rule)
    before = copy.deepcopy([cohort.networks, cohort.ages, dict(rule.state_dict())])
    estimate = unclipped(STEPS)(rule, cohort, seeded(1))
    torch.testing.assert_close(
        [cohort.networks, cohort.ages, dict(rule.state_dict())], before, rtol=0, atol=0
    )
    values = [*estimate.networks.params.values(), *flat_state(estimate.networks.state).values()]
    assert not any(value.requires_grad for value in [*values, *estimate.gradient.values(), estimate.losses])
    assert all(p.grad is None for p in rule.parameters())


class OneFails(TinyTask):
    """The network whose batch is marked has a loss that grows: by a factor, or beyond all bounds."""

    def __init__(self, factor: float) -> None:
        super().__init__(dtype=torch.float64)
        self.factor, self.clean = factor, True

    def sample(self, split: str, count: int, generator: torch.Generator) -> Tensor:
        batch = super().sample(split, count, generator)
        if not self.clean:
            batch[-1, 0, 0] = 1e6
        return batch

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        marked = batch[0, 0] > 1e5
        batch = torch.where(batch > 1e5, 0.0, batch)
        return super().loss(params, batch) * torch.where(marked, self.factor, 1.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [1e6, math.inf, math.nan])
def test_a_diverged_network_is_masked(factor: float, mode: dict[str, bool]) -> None:
    """It is named, and the others' gradient is theirs alone, whatever its values are."""
    rule, task = small_rule(), OneFails(factor)
    cohort, estimator = start(rule, task), unclipped(STEPS, **mode)
    first = estimator(rule, cohort, seeded(1))
    cohort = replace(cohort, networks=first.networks, initial=first.losses[0])
    task.clean = False
    estimate = estimator(rule, cohort, seeded(2))
    assert estimate.diverged.tolist() == [False, False, True]
    assert math.isfinite(estimate.outer_loss)
    assert all(torch.isfinite(value).all() for value in estimate.gradient.values())
    generator = seeded(2)
    fixed = [task.sample("train", COUNT, generator)[:2] for _ in range(STEPS + 1)]
    alone = part(cohort, [0, 1])
    alone.task = Fixed(fixed)
    healthy = estimator(rule, alone, seeded(2))
    assert estimate.outer_loss == pytest.approx(healthy.outer_loss, rel=1e-12)
    assert not estimate.skipped
    assert estimate.dropped == pytest.approx(1 / 3)
    assert relative_error(estimate.gradient, healthy.gradient) < 1e-10


class Fixed(TinyTask):
    """Batches that were drawn before."""

    def __init__(self, batches: list[Tensor]) -> None:
        super().__init__(dtype=torch.float64)
        self.batches = iter(batches)

    def sample(self, split: str, count: int, generator: torch.Generator) -> Tensor:
        return next(self.batches)


@pytest.mark.parametrize("factor", [1e6, math.inf, math.nan])
def test_when_all_diverge_there_is_no_gradient(factor: float) -> None:
    rule, task = small_rule(), OneFails(factor)
    cohort, estimator = start(rule, task, count=1), unclipped(STEPS)
    cohort.initial = torch.ones(1, dtype=torch.float64)
    task.clean = False
    estimate = estimator(rule, cohort, seeded(1))
    assert estimate.diverged.tolist() == [True]
    assert estimate.skipped
    assert all((value == 0).all() for value in estimate.gradient.values())
    assert math.isfinite(estimate.outer_loss)
    assert estimate.outer_loss == pytest.approx(LIMIT), "no better than a network at the limit"


def test_a_meta_gradient_that_is_not_finite_is_skipped() -> None:
    """Meta-parameters that are not finite themselves: nothing to be differentiated."""
    rule = small_rule()
    cohort = start(rule)
    with torch.no_grad():
        rule.log_rate.fill_(math.nan)
    estimate = unclipped(STEPS)(rule, cohort, seeded(1))
    assert all((value == 0).all() for value in estimate.gradient.values())
    assert estimate.diverged.all()


@pytest.mark.parametrize("mode", MODES)
def test_without_clipping_the_gradient_is_that_of_the_mean(mode: dict[str, bool]) -> None:
    """d (mean outer loss) / d meta-parameters, shared by all networks."""
    rule = small_rule()
    cohort, estimator = start(rule), unclipped(STEPS, **mode)
    estimate = estimator(rule, cohort, seeded(1))
    batches, _ = estimator.batches(cohort, seeded(1))
    bound = rule.on(cohort.task.graph)
    unrolled = unroll(bound, cohort.task, cohort.networks, batches, **mode)
    outer = (unrolled.measured / unrolled.losses[0].detach()).mean()
    expected = gradient_of(outer, rule)
    assert relative_error(estimate.gradient, expected) < 1e-10
    assert (estimate.clipped, estimate.dropped) == (0, 0)


def test_each_network_is_cut_to_the_limit_before_the_mean() -> None:
    rule = small_rule()
    cohort = start(rule)
    alone = []
    for index in range(COUNT):
        batches, _ = unclipped(STEPS).batches(cohort, seeded(1))
        one = part(cohort, [index])
        one.task = Fixed([batch[[index]] for batch in batches])
        alone.append(unclipped(STEPS)(rule, one, seeded(1)).gradient)
    norms = [math.sqrt(sum(v.square().sum().item() for v in gradient.values())) for gradient in alone]
    limit = sorted(norms)[1] * 1.01
    scales = [min(1.0, limit / norm) for norm in norms]
    expected = {
        name: sum(scale * gradient[name] for scale, gradient in zip(scales, alone, strict=True)) / COUNT
        for name in alone[0]
    }
    estimate = TruncatedBackprop(STEPS, network_clip=limit)(rule, cohort, seeded(1))
    assert relative_error(estimate.gradient, expected) < 1e-10
    assert estimate.clipped == pytest.approx(1 / COUNT)
    assert norms[scales.index(min(scales))] > limit


def test_a_network_without_a_finite_derivative_is_dropped() -> None:
    """Its losses are finite: it has not diverged, and goes on."""
    rule, task = small_rule(), Kinked(dtype=torch.float64)
    cohort, estimator = start(rule, task), unclipped(STEPS)
    estimate = estimator(rule, cohort, seeded(1))
    assert not estimate.diverged.any()
    assert not estimate.skipped
    assert estimate.dropped == pytest.approx(1 / COUNT)
    batches, _ = estimator.batches(cohort, seeded(1))
    others = part(cohort, [0, 1])
    others.task = Fixed([batch[:2] for batch in batches])
    assert relative_error(estimate.gradient, estimator(rule, others, seeded(1)).gradient) < 1e-10


class Kinked(TinyTask):
    """The last network's loss has a second derivative of inf * 0."""

    def sample(self, split: str, count: int, generator: torch.Generator) -> Tensor:
        batch = super().sample(split, count, generator)
        batch[-1, 0, 0] = 1e6
        return batch

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        marked, zero = batch[0, 0] > 1e5, params["w"] - params["w"].detach()
        rough = torch.where(marked, zero, 1.0).abs().pow(1.5).sum() * marked
        return super().loss(params, torch.where(batch > 1e5, 0.0, batch)) + rough


def test_a_gradient_beyond_the_squares_of_its_dtype_is_clipped_not_dropped() -> None:
    """The norm of 1e30 is not a float32."""
    rows = {"a": torch.tensor([[1e30, 0.0], [0.3, 0.0]]), "b": torch.tensor([0.0, 0.4])}
    found = combined(rows, torch.tensor([True, True]), 1.0)
    torch.testing.assert_close(found.gradient, {"a": torch.tensor([0.65, 0.0]), "b": torch.tensor(0.2)})
    assert found.clipped.tolist() == [True, False]
    assert not found.dropped.any()
