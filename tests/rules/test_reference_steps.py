"""Rule files step as they did, whatever becomes of the way in which steps are computed."""

from __future__ import annotations

import pytest
import torch

from lopt.metanets import axisnet
from lopt.metanets.pieces import cut
from lopt.rules import learned, observing
from tests.rules import reference_steps as reference

FAST = {("lopt-small", "language_model"), ("lopt-base", "attention"), ("axisnet", "grouped")}
KNOWN = reference.known()


@pytest.mark.parametrize(
    ("rule", "network"),
    [pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in reference.every()],
)
def test_steps_are_those_of_the_file(rule, network):
    expected, found = KNOWN[f"{rule}/{network}"], reference.steps(rule, network)
    # Of what a tensor has moved; sums of it may cancel.
    scale = expected[..., 1:2].expand_as(expected)
    assert ((found - expected).abs() <= 1e-6 * scale + 1e-12).all(), ((found - expected).abs() / scale).max()
    assert torch.isfinite(expected).all()
    assert (expected[..., 1] > 0).any()


@pytest.mark.parametrize("rule", reference.IN_PIECES)
@pytest.mark.parametrize("network", ["ensemble", "attention", "encoder"])
@pytest.mark.parametrize("sparing", [0, learned.SPARING])
def test_steps_in_small_pieces_are_the_same(rule, network, sparing, monkeypatch):
    """As in networks of millions: tensors in many pieces, each looked at anew in every pass, or its values kept."""
    monkeypatch.setattr(learned, "cut", lambda graph: cut(graph, 48, 16))
    monkeypatch.setattr(learned, "SPARING", 0)
    monkeypatch.setattr(axisnet, "SPARING", sparing)
    monkeypatch.setattr(observing, "LONG", 0)
    test_steps_are_those_of_the_file(rule, network)
