"""Single steps as truncations: the gradient by hand, and as a finite difference of the sum of one-step losses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.inner.step import Networks
from lopt.inner.task import Task
from lopt.rules import LearnedRule, LearnedRuleConfig
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import Greedy
from tests.helpers import TinyTask, flat_state, randomised, relative_error, seeded, small_rule
from tests.inner.test_unroll import assert_slopes
from tests.toy_tasks import Quadratic

COUNT, STEPS = 3, 5


def start(rule: LearnedRule, task: Task, count: int = COUNT) -> Cohort:
    return Cohort.start(task, {}, rule.on(task.graph), count, Horizons(STEPS, STEPS, STEPS), seeded(0))


def plain_rule(**config: Any) -> LearnedRule:
    """As in configs/neural_graphs.yaml, but small, in float64 and with steps that matter."""
    torch.manual_seed(0)
    settings = {
        "metanet": {"name": "mlp", "width": 6, "layers": 2},
        "inputs": "log_sign", "initial": "torch", "decays": [0.5, 0.9], "update_form": "magnitude",
        "directions": ["gradient"], "rate": 0.1, "learned_rate": False, "factored": False, "anneal": False,
        "max_step": 1e6,
    }  # fmt: skip
    return LearnedRule(LearnedRuleConfig.model_validate({**settings, **config})).double()


def test_gradient_on_a_quadratic_by_hand() -> None:
    """Of one network: its steps one after another, each of what was there before, with the momenta written out."""
    rule, task = plain_rule(), Quadratic(noise=0.3, dtype=torch.float64)
    cohort = start(rule, task, count=1)
    estimate = Greedy(STEPS, "plain")(rule, cohort, seeded(1))
    generator = seeded(1)
    batches = [task.sample("train", 1, generator)[0] for _ in range(STEPS + 1)]
    p = cohort.networks.params["p"][0]
    sums = torch.zeros(2, 6, dtype=torch.float64)
    mu = torch.tensor([[0.5], [0.9]], dtype=torch.float64)
    total = {name: torch.zeros_like(value) for name, value in rule.named_parameters()}
    shown = 0.0
    for batch in batches[:-1]:
        g = task.curvature * (p - 1 + batch)
        sums = mu * sums + g
        rows = torch.stack([p, g, *sums])
        x = torch.cat([torch.log(rows.abs()) / 10, rows.sign()])
        hidden = torch.relu(rule.metanet.first.scalar.weight @ x + rule.metanet.first.context.bias[:, None])
        hidden = torch.relu(rule.metanet.inner[0].weight @ hidden + rule.metanet.inner[0].bias[:, None])
        d, m = rule.metanet.head.weight @ hidden + rule.metanet.head.bias[:, None]
        after = p - 0.1 * d * torch.exp(0.01 * m)
        loss = task.loss({"p": after}, batch)
        named = [value for name, value in rule.named_parameters() if value.numel()]
        slopes = torch.autograd.grad(loss, named)
        for (name, _), slope in zip(
            ((n, v) for n, v in rule.named_parameters() if v.numel()), slopes, strict=True
        ):
            total[name] += slope
        shown += loss.item() / STEPS
        p = after.detach()
    torch.testing.assert_close(estimate.networks.params["p"][0], p, rtol=1e-6, atol=0)
    assert estimate.outer_loss == pytest.approx(shown, rel=1e-6)
    assert relative_error(estimate.gradient, {n: v for n, v in total.items() if v.numel()}) < 1e-6


@pytest.mark.parametrize(("outer_loss", "outer_data"), [("plain", "train"), ("log", "validation")])
def test_gradient_is_the_finite_difference_of_the_sum_of_one_step_losses(
    outer_loss: str, outer_data: str
) -> None:
    """From the points that the rule as it is comes by, which do not move with the meta-parameters."""
    rule, task = small_rule(rate=0.02), TinyTask(dtype=torch.float64)
    cohort = start(rule, task)
    estimator = Greedy(STEPS, outer_loss, outer_data=outer_data)
    estimate = estimator(rule, cohort, seeded(1))
    batches, probes = estimator.batches(cohort, seeded(1))
    bound = copy.deepcopy(rule).on(task.graph)
    points, networks = [], cohort.networks
    gradient = torch.vmap(torch.func.grad(task.loss))
    for batch in batches[:-1]:
        grads = gradient(networks.params, batch)
        points.append((networks, grads))
        with torch.no_grad():
            networks = Networks(*torch.vmap(bound.update)(grads, networks.state, networks.params))
    initial = torch.vmap(task.loss)(cohort.networks.params, batches[0])

    def objective() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for k, (at, grads) in enumerate(points):
            after, _ = torch.vmap(rule.on(task.graph).update)(grads, at.state, at.params)
            loss = torch.vmap(task.loss)(after, (probes or batches)[k])
            total = total + estimator.per_network(loss[None], initial).mean()
        return total

    assert_slopes(estimate.gradient, rule, objective)
    assert estimate.outer_loss == pytest.approx(objective().item() / STEPS, rel=1e-9)
    torch.testing.assert_close(estimate.networks.params, networks.params)


def test_a_network_that_is_no_number_is_left_out() -> None:
    rule, task = plain_rule(), Quadratic(dtype=torch.float64)
    cohort = start(rule, task)
    alone = Greedy(STEPS, "plain")(rule, start(rule, task, count=1), seeded(1))
    cohort.networks.params["p"][1:] = math.nan
    cohort.networks.params["p"][0] = start(rule, task, count=1).networks.params["p"][0]
    estimate = Greedy(STEPS, "plain")(rule, cohort, seeded(1))
    assert estimate.diverged.tolist() == [False, True, True]
    assert estimate.dropped == pytest.approx(2 / 3)
    assert not estimate.skipped
    assert relative_error(estimate.gradient, {n: v for n, v in alone.gradient.items() if v.numel()}) < 1e-9


def test_compiled_is_the_same() -> None:
    rule = randomised(plain_rule(), scale=0.3)
    cohort = start(rule, TinyTask(dtype=torch.float64))
    plain, compiled = (
        Greedy(3, "plain", compiled=compiled)(rule, cohort, seeded(1)) for compiled in (False, True)
    )
    assert relative_error(compiled.gradient, {n: v for n, v in plain.gradient.items() if v.numel()}) < 1e-9


def test_nothing_is_changed_and_nothing_kept() -> None:
    rule, task = small_rule(), TinyTask(dtype=torch.float64)
    cohort = start(rule, task)
    before = copy.deepcopy([cohort.networks, cohort.ages, dict(rule.state_dict())])
    estimate = Greedy(STEPS, "plain")(rule, cohort, seeded(1))
    torch.testing.assert_close(
        [cohort.networks, cohort.ages, dict(rule.state_dict())], before, rtol=0, atol=0
    )
    values = [*estimate.networks.params.values(), *flat_state(estimate.networks.state).values()]
    assert not any(value.requires_grad for value in [*values, *estimate.gradient.values(), estimate.losses])
    assert estimate.losses.shape == (STEPS + 1, COUNT)
