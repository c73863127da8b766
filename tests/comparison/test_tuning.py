"""The tuner: its scores are those of single runs, and it says what it tried and where the best rate lies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lopt.comparison.tuning import BASELINES, Baseline, Budget, find_baseline, grid, tune
from lopt.errors import ConfigError
from lopt.inner.evaluation import train_networks
from lopt.rules.classical import CLASSICAL, SGD, Adafactor
from tests.toy_tasks import Quadratic, TwoMoons

SMALL = Budget(learning_rates=3, seeds=(1, 2), steps=25, extend=0)


@pytest.mark.parametrize("name", ["adam", "adafactor", "RMSprop"])
def test_scores_are_those_of_single_runs(name: str) -> None:
    """Linear in lr (one vmapped run), not linear (a run for each rate), and torch.optim (network by network)."""
    task, baseline = TwoMoons(), find_baseline(name)
    tuned = tune(baseline, task, SMALL)
    assert len(tuned.trials) == 6
    for trial in tuned.trials:
        bound = baseline.make(trial.lr).on(task.graph)
        curves = train_networks(bound, task, [1, 2], 25, schedule=trial.schedule)
        assert trial.score == pytest.approx(curves.train_loss.mean().item(), rel=1e-4)
    best = min(tuned.trials, key=lambda trial: trial.score)
    assert (tuned.lr, tuned.schedule) == (best.lr, best.schedule)


def test_finds_the_rate_known_to_be_best() -> None:
    """A quadratic with curvature c = 1 alone is solved in one step at lr = 1."""
    task = Quadratic()
    task.curvature = torch.ones(6)
    tuned = tune(Baseline(SGD, 0.1), task, SMALL.but(schedules=("constant",), learning_rates=5))
    assert tuned.lr == 1.0
    assert math.isfinite(tuned.trials[0].score)


def test_edge_is_reported_and_the_grid_extended_on_request() -> None:
    task = Quadratic()
    task.curvature = torch.ones(6)
    low = Baseline(SGD, 0.032)
    short = tune(low, task, SMALL)
    assert short.at_edge
    assert short.lr == 0.1
    long = tune(low, task, SMALL.but(extend=5))
    assert not long.at_edge
    assert long.lr == 1.0
    assert len({trial.lr for trial in long.trials}) == 6, "3 and then 0.32, 1.0, 3.2"


def test_diverged_settings_score_infinity() -> None:
    tuned = tune(Baseline(SGD, 3.2), Quadratic(), SMALL.but(schedules=("constant",)))
    assert [math.isinf(trial.score) for trial in tuned.trials] == [False, True, True]


@pytest.mark.parametrize("criterion", ["final_train_loss", "validation_loss"])
def test_other_criteria(criterion: str) -> None:
    task = TwoMoons()
    tuned = tune(BASELINES["adam"], task, SMALL.but(criterion=criterion))
    bound = BASELINES["adam"].make(tuned.lr).on(task.graph)
    curves = train_networks(bound, task, [1, 2], 25, schedule=tuned.schedule)
    score = {
        "final_train_loss": curves.final_loss,
        "validation_loss": curves.metrics["validation"]["loss"],
    }
    assert min(t.score for t in tuned.trials) == pytest.approx(score[criterion].mean().item(), rel=1e-3)


def test_budget_is_recorded() -> None:
    tuned = tune(BASELINES["sgd"], Quadratic(), SMALL)
    assert tuned.budget == SMALL
    assert len(tuned.trials) == 6


def test_every_classical_rule_is_a_baseline() -> None:
    assert set(BASELINES) == set(CLASSICAL)
    for baseline in BASELINES.values():
        assert baseline.centre in grid(baseline.centre, 7)
        baseline.make(baseline.centre)
    assert not Adafactor.linear_in_lr


def test_grid_is_half_decades() -> None:
    assert grid(0.01, 3) == [0.0032, 0.01, 0.032]


def test_unknown_baseline() -> None:
    with pytest.raises(ConfigError, match=r"expected one of sgd, adam.*found 'adamm'"):
        find_baseline("adamm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds: expected at least 1 of them"),
        ({"criterion": "loss"}, "criterion: expected one of"),
        ({"steps": 0}, "steps: expected a number at least 1, found 0"),
    ],
)
def test_bad_budget(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**options)
