"""What the ranks of a sharded step finish together."""

from __future__ import annotations

import torch

from lopt.graph import ParameterGraph
from lopt.metanets.pieces import LARGE
from lopt.rules.shards import Shards


def test_a_large_tensor_is_finished_alone_whatever_comes_after_it() -> None:
    named = [(str(numel), torch.zeros(numel)) for numel in (3, LARGE, 4, 5)]
    waves = Shards.of(ParameterGraph.untied(named), rank=0, ranks=2).waves
    assert sorted(bundle.owners for wave in waves for bundle in wave.bundles) == [[0, 2, 3], [1]]
