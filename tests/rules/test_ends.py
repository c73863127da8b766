"""What tensors that are finished together share, where a process holds nothing of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lopt import ParameterGraph
from lopt.metanets.pieces import Bundle, Piece, Wave
from lopt.numerics.segments import segment_expand
from lopt.rules.ends import ends_of


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_rank_that_holds_no_scalar_of_gathered_tensors_has_whole_numbers_for_places(
    orthogonal: bool,
) -> None:
    graph = ParameterGraph.trace(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.ones(5, 3),)
    )
    owners = list(range(len(graph.sizes)))
    wave = Wave.of(graph, [Bundle([Piece(owners, [0] * len(owners), offsets=(0,) * len(owners))])])
    ends = ends_of(wave, orthogonal, torch.float32)
    assert sum(ends.sizes) == 0
    assert ends.each.sum() == graph.numel, "means are over what all ranks hold"
    assert segment_expand(torch.ones(len(owners)), ends.sizes, ends.member).shape == (0,)
