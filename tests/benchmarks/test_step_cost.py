"""The model of a step's cost against what is counted."""

from __future__ import annotations

import pytest

from benchmarks.step_cost import LLAMAS, Shapes, cost, counted
from lopt.graph.tensor_classes import Matrices


@pytest.mark.parametrize("rule", ["muon", "lopt-base"])
def test_operations_are_those_that_torch_counts(rule):
    shapes, flops, _ = counted(rule, "784-128-10")
    assert cost(rule, shapes, 1).operations == pytest.approx(flops, rel=0.2)


def test_a_matrix_goes_to_its_rank_and_back():
    """Two of four ranks own a matrix of 64 scalars: 48 come to each, as many go back, and 16 go to the other."""
    shapes = Shapes([Matrices(1, 8, 8)] * 2, [])
    assert cost("muon", shapes, 4).sent == 4 * (48 + 16)


def test_models_have_the_size_of_their_name():
    sizes = {name: (s.matrix_scalars + sum(s.others)) / 1e9 for name, s in LLAMAS.items()}
    assert sizes == pytest.approx({"1B": 1.5, "8B": 8.0, "70B": 70.6}, rel=0.02)
