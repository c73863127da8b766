"""Rule files step as they did, whatever becomes of the way in which steps are computed."""

from __future__ import annotations

import pytest
import torch

from tests.rules import reference_steps as reference

FAST = {("lopt-small", "language_model"), ("lopt-base", "attention"), ("lopt-base", "grouped")}
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
