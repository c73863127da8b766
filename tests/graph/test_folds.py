"""Blocks that repeat are found from the graph: in transformers, chains of layers and residual blocks, whatever they
are called, and where a single block differs, not across it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.graph.draw import figure
from lopt.graph.folds import folds, shared_name


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def residual(*hidden: int) -> ParameterGraph:
    """A stream of width 6 with blocks of these hidden widths, between a first norm, which looks like theirs, and a
    last one."""
    blocks = [Block(6, size) for size in hidden]
    network = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), *blocks, nn.LayerNorm(6), nn.Linear(6, 2))
    return ParameterGraph.trace(network, (torch.randn(2, 3),))


def chain(*widths: int) -> ParameterGraph:
    layers = [m for pair in pairwise(widths) for m in (nn.Linear(*pair), nn.ReLU())]
    return ParameterGraph.trace(nn.Sequential(*layers[:-1]), (torch.randn(2, widths[0]),))


def blocks_of(graph: ParameterGraph) -> list[tuple[int, list[str]]]:
    return [(len(fold.blocks), [spec.name for spec in fold.blocks[0]]) for fold in folds(graph)]


def test_blocks_on_a_stream_are_one_fold_and_begin_where_their_names_do() -> None:
    found = blocks_of(residual(8, 8, 8, 8))
    names = ["norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias"]
    assert found == [(4, [f"2.{name}" for name in names])]


def test_blocks_on_both_sides_of_another_one_are_two_folds() -> None:
    found = blocks_of(residual(8, 8, 8, 8, 9, 7, 7, 7))
    assert [(count, names[0]) for count, names in found] == [(4, "2.norm.weight"), (3, "7.norm.weight")]


def test_layers_of_a_chain_are_one_fold() -> None:
    assert blocks_of(chain(3, 5, 5, 5, 5, 2)) == [(3, ["2.weight", "2.bias"])]


@pytest.mark.parametrize(
    "graph", [residual(8, 8), residual(8, 9, 10), chain(3, 5, 5, 5, 2), chain(3, 4, 5, 6)]
)
def test_two_blocks_and_blocks_of_other_sizes_are_none(graph: ParameterGraph) -> None:
    assert folds(graph) == []


def test_the_two_layers_of_a_block_are_no_two_blocks() -> None:
    """All four maps of each pair are 6 x 6: what differs is that every second one writes to the stream."""
    network = nn.Sequential(*(nn.Sequential(Pair(), nn.Identity()) for _ in range(4)), nn.Linear(6, 2))
    graph = ParameterGraph.trace(network, (torch.randn(2, 6),))
    assert all(len(fold.blocks[0]) % 4 == 0 for fold in folds(graph))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


def test_what_is_read_from_the_middle_of_a_run_keeps_it_apart() -> None:
    class Exit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(6))
            self.exit, self.head = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen = [x]
            for layer in self.layers:
                seen.append(torch.relu(layer(seen[-1])))
            return self.head(seen[-1]) + self.exit(seen[3])

    graph = ParameterGraph.trace(Exit(), (torch.randn(2, 5),))
    read = {g for axis in graph.parameters["exit.weight"].axes for s in axis for g in s}
    for fold in folds(graph):
        for block in range(1, len(fold.blocks) - 1):
            assert not read & (
                set(fold.groups(block)) - set(fold.groups(0)) - set(fold.groups(len(fold.blocks) - 1))
            )


def test_a_folded_picture_names_the_block_once_and_says_how_often_and_what_differs() -> None:
    few, many = figure(residual(*[8] * 3)), figure(residual(*[8] * 40))
    assert few.get_size_inches().tolist() == many.get_size_inches().tolist()
    texts = [text.get_text() for text in many.axes[0].texts]
    assert sum("up.weight" in text for text in texts) == 1
    assert "*.up.weight" in texts
    [frame] = [text for text in texts if "times" in text]
    assert frame.splitlines() == [r"$\mathbf{\times\,40}$  * = 2 ... 41", "each its own h2"]


def test_names() -> None:
    assert shared_name(["blocks.0.up.weight", "blocks.1.up.weight"]) == "blocks.*.up.weight"
    assert shared_name(["first", "layers.0"]) == "first ... layers.0"
