"""Training many networks at once: paired, isolated from one another, equal to a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.inner.evaluation import train_networks
from lopt.numerics.schedules import SCHEDULES, learning_rates
from lopt.rules import State, Tensors, make_rule
from lopt.rules.classical import SGD, Adam, ScheduleFreeAdamW, TorchOptim
from tests.toy_tasks import Quadratic, TwoMoons


def test_equals_a_plain_training_loop_of_torch() -> None:
    task, seed, steps = TwoMoons(), 7, 30
    curves = train_networks(Adam(0.02).on(task.graph), task, [3, seed], steps, schedule="cosine")
    params = {n: p[0].requires_grad_() for n, p in task.init(1, Generator().manual_seed(2 * seed)).items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    stream, losses = Generator().manual_seed(2 * seed + 1), []
    for _ in range(steps):
        points, labels = task.sample("train", 1, stream)
        optimizer.zero_grad()
        loss = task.loss(params, (points[0], labels[0]))
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    torch.testing.assert_close(curves.train_loss[1], torch.tensor(losses), rtol=1e-4, atol=1e-5)
    expected = task.metrics(params, "validation")
    for name, value in expected.items():
        torch.testing.assert_close(
            curves.metrics["validation"][name][1], value.detach(), rtol=1e-4, atol=1e-5
        )


def test_a_seed_meets_the_same_problem_whatever_its_company_and_rule() -> None:
    task = TwoMoons()
    alone = train_networks(SGD(0.1).on(task.graph), task, [5], 10)
    company = train_networks(SGD(0.1).on(task.graph), task, [4, 5, 6, 5], 10)
    other = train_networks(Adam(0.1).on(task.graph), task, [5], 10)
    for row in (1, 3):
        torch.testing.assert_close(company.train_loss[row], alone.train_loss[0])
    assert not torch.allclose(company.train_loss[0], company.train_loss[1])
    assert other.train_loss[0, 0] == alone.train_loss[0, 0]


def test_a_grid_of_rates_and_schedules_equals_single_runs() -> None:
    task = TwoMoons()
    lr, schedules = [0.01, 0.1, 0.1], ["constant", "constant", "cosine"]
    grid = train_networks(
        Adam(1.0).on(task.graph), task, [1, 1, 1], 20, lr=torch.tensor(lr), schedule=schedules
    )
    for row in range(3):
        single = train_networks(Adam(lr[row]).on(task.graph), task, [1], 20, schedule=schedules[row])
        torch.testing.assert_close(grid.train_loss[row], single.train_loss[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [SGD(1.0), TorchOptim("SGD", lr=1.0)])
def test_a_diverged_network_is_reported_and_harms_no_other(rule: SGD | TorchOptim) -> None:
    task = Quadratic()
    lr = torch.tensor([0.5, 40.0, 1.0, 2.05])
    curves = train_networks(rule.on(task.graph), task, [1, 2, 3, 4], 60, lr=lr)
    assert curves.diverged.tolist() == [False, True, False, True]
    assert torch.isfinite(curves.train_loss[3]).all(), "far above the first loss, though finite"
    assert math.isinf(curves.train_loss[1, -1])
    assert (
        curves.mean_loss.isinf().tolist() == curves.final_loss.isinf().tolist() == [False, True, False, True]
    )
    metric = curves.metrics["validation"]["loss"]
    assert metric.isnan().tolist() == [False, True, False, False]
    for row, rate in ((0, 0.5), (2, 1.0)):
        healthy = train_networks(SGD(rate).on(task.graph), task, [row + 1], 60)
        torch.testing.assert_close(curves.train_loss[row], healthy.train_loss[0])


def test_all_networks_diverged() -> None:
    task = Quadratic()
    curves = train_networks(SGD(1e20).on(task.graph), task, [1, 2], 10, splits=("train", "validation"))
    assert curves.diverged.all()
    assert curves.metrics["train"]["loss"].isnan().all()


def test_parameters_that_end_not_finite_count_as_diverged() -> None:
    """The last step comes after the last loss."""
    task = Quadratic()
    curves = train_networks(SGD(3e38).on(task.graph), task, [1], 1)
    assert torch.isfinite(curves.train_loss).all()
    assert curves.diverged.all()


def test_torch_optim_one_by_one_equals_the_pure_rule_under_vmap() -> None:
    task = TwoMoons()
    lr = torch.tensor([1.0, 2.0])
    ours = train_networks(Adam(0.01).on(task.graph), task, [1, 2], 15, lr=lr)
    theirs = train_networks(TorchOptim("Adam", lr=0.01).on(task.graph), task, [1, 2], 15, lr=lr)
    torch.testing.assert_close(ours.train_loss, theirs.train_loss, rtol=1e-4, atol=1e-5)


def test_schedule_free_is_evaluated_at_its_average() -> None:
    task = Quadratic(noise=1.0)
    bound = ScheduleFreeAdamW(0.05).on(task.graph)
    curves = train_networks(bound, task, [1], 40)
    params = {"p": task.init(1, Generator().manual_seed(2))["p"][0]}
    state, stream = bound.init(params), Generator().manual_seed(3)
    for _ in range(40):
        grads = torch.func.grad(task.loss)(params, task.sample("train", 1, stream)[0])
        params, state = bound.update(grads, state, params)
    average = task.metrics(bound.rule.evaluation_params(params, state), "validation")["loss"]
    torch.testing.assert_close(curves.metrics["validation"]["loss"][0], average)
    assert (average - task.metrics(params, "validation")["loss"]).abs() > 1e-4


def test_learned_rules_run_alike() -> None:
    task = TwoMoons()
    torch.manual_seed(0)
    bound = make_rule("axisnet").on(task.graph)
    together = train_networks(bound, task, [1, 2], 8, total_steps=8)
    single = train_networks(bound, task, [2], 8, total_steps=8)
    assert not together.diverged.any()
    torch.testing.assert_close(together.train_loss[1], single.train_loss[0], rtol=1e-4, atol=1e-5)
    assert not together.train_loss.requires_grad


def test_the_rule_is_told_the_horizon() -> None:
    class Told(SGD):
        def init(
            self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
        ) -> State:
            assert total_steps == 12
            return super().init(graph, params, total_steps)

    task = Quadratic()
    train_networks(Told(0.1).on(task.graph), task, [1], 2, total_steps=12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_between_0_and_1_and_reach_1(name: str) -> None:
    rates = learning_rates(2.0, name, 1, 1000)
    assert rates.min() >= 0
    assert rates.max() == pytest.approx(2.0, rel=1e-3)


def test_one_cycle_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3.0, total_steps=1000)
    ours = learning_rates(3.0, "one_cycle", 1, 1000)[0]
    for t in range(999):
        assert ours[t].item() == pytest.approx(scheduler.get_last_lr()[0], abs=0.02), t
        optimizer.step()
        scheduler.step()


def test_unknown_schedule() -> None:
    with pytest.raises(ConfigError, match="expected one of constant, cosine, one_cycle, found 'linear'"):
        learning_rates(1.0, "linear", 1, 10)
