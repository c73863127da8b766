from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.draw import _arrows, _bars, draw, figure
from lopt.graph.spec import ParameterSpec


def specs(graph: ParameterGraph) -> list[ParameterSpec]:
    return list(graph.parameters.values())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_of_each_format_is_written(graph: ParameterGraph, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph{suffix}"
    draw(graph, path)
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


def test_another_format_is_refused(graph: ParameterGraph, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"\.png, \.svg, \.pdf, found .*graph\.txt"):
        draw(graph, tmp_path / "graph.txt")
    assert not list(tmp_path.iterdir())


def test_groups_parameters_and_kinds_are_named(attention_graph: ParameterGraph) -> None:
    fig = figure(attention_graph, title="attention")
    texts = {text.get_text() for text in fig.axes[0].texts}
    assert {"h1 (4)", "h2 (2) x h3 (3), h4 (3)", "qkv.weight", "out.weight"} <= texts
    legend = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert legend == ["query", "key", "value", "bias", "output", "depthwise"]
    assert fig.axes[0].get_title(loc="left").startswith("attention\n")


def test_each_block_is_an_arrow_from_what_it_reads_to_what_it_feeds(attention_graph: ParameterGraph) -> None:
    arrows = [(a.kind, a.source, a.target) for a in _arrows(attention_graph, specs(attention_graph))]
    stream, query, value = (0,), (1, 2), (1, 3)
    assert arrows == [
        ("query", stream, query),
        ("key", stream, query),
        ("value", stream, value),
        ("output", value, stream),
        ("depthwise", stream, stream),
    ]


def test_the_stream_is_the_longest_bar_and_no_bars_overlap(attention_graph: ParameterGraph) -> None:
    parameters = specs(attention_graph)
    bars = _bars(attention_graph, parameters, _arrows(attention_graph, parameters))
    assert max(bars, key=lambda key: bars[key].end - bars[key].start) == 0
    assert bars[0].lane == 0
    for key, bar in bars.items():
        for other in (b for k, b in bars.items() if k != key and b.lane == bar.lane):
            assert bar.end < other.start or other.end < bar.start


def test_a_graph_without_arrows_is_still_a_picture(tmp_path: Path) -> None:
    for model in (nn.LayerNorm(3), nn.Linear(2, 3)):
        draw(ParameterGraph.untied(model.named_parameters()), tmp_path / "graph.png")
        assert (tmp_path / "graph.png").exists()


def test_a_full_disk_leaves_the_picture_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "graph.png"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: .{path}"):
        draw(ParameterGraph.untied([("a", nn.Parameter(torch.ones(3, 2)))]), path)
    assert path.read_bytes() == b"before"
