"""A table of what the clock says against what it says at each step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import lopt
from lopt.rules import LearnedRule
from lopt.rules.timing import AHEAD, Clock, Timed
from tests.helpers import hand_graph

GRAPH = hand_graph({"a": 4, "b": 3}, {"w": "weight out:a in:b", "v": "bias out:a"})


def shipped() -> LearnedRule:
    rule = lopt.load_rule("lopt-small").double()
    assert isinstance(rule, LearnedRule)
    return rule


def clock(steps: list[float], horizon: float) -> Clock:
    return Clock(torch.tensor(steps, dtype=torch.float64), torch.full((len(steps),), horizon).double())


def assert_equal(found: Timed, expected: Timed, **tolerance: Any) -> None:
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        # Of decays that are the same for all tensors the table keeps one.
        torch.testing.assert_close(*torch.broadcast_tensors(a, b), **tolerance)


@pytest.mark.parametrize("horizon", [0.0, 50.0])
@pytest.mark.parametrize("behind", [0, 7])
def test_every_row_is_that_of_its_step(horizon: float, behind: int) -> None:
    """Also where a tensor came later than the first: it is `behind`."""
    rule = shipped()
    for step in range(1 + behind, 2 * AHEAD + 3):
        now = clock([step, step - behind], horizon)
        assert_equal(rule._at(GRAPH, now), rule._timed(GRAPH, now), rtol=1e-12, atol=1e-12)


def test_whoever_begins_in_the_middle_reads_the_same_bits() -> None:
    steady, resumed = shipped(), shipped()
    for step in range(1, 21):
        last = steady._at(GRAPH, clock([step, step], 60.0))
    assert_equal(resumed._at(GRAPH, clock([20, 20], 60.0)), last, rtol=0, atol=0)


def test_what_has_changed_is_noticed() -> None:
    rule, now = shipped(), clock([3, 3], 40.0)

    def moved() -> Tensor:
        found = rule._at(GRAPH, now)
        assert_equal(found, rule._timed(GRAPH, now), rtol=1e-12, atol=1e-12)
        return torch.stack([found.decay, found.factor])

    before = moved()
    with torch.no_grad():
        rule.log_rate.data += 0.1
    assert not torch.equal(moved()[0], before[0])
    with torch.no_grad():
        rule.constants.weights.data += 0.1
    assert not torch.equal(moved()[1], before[1])
    now = clock([3, 3], 80.0)
    assert not torch.equal(moved()[1], before[1])


def test_a_copy_of_a_rule_takes_no_graphs_along() -> None:
    rule = shipped()
    rule._at(GRAPH, clock([3, 3], 40.0))
    for other in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert rule._timetable._kept
        assert not other._timetable._kept
        assert_equal(other._at(GRAPH, clock([3, 3], 40.0)), rule._at(GRAPH, clock([3, 3], 40.0)))
