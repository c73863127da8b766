"""State in 16 bits beside 32: what is told of both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.state_dtype import row, table, train


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def test_half_the_bytes_and_nearly_the_same_losses() -> None:
    runs = [train(lambda: nn.Linear(6, 3), batch, "lopt-small", 4, seed) for seed in range(2)]
    found = row("line", "lopt-small", runs)
    whole, half = found["float32"], found["bfloat16"]
    # Momentum, slow momentum and second moment of 21 parameters; count, horizon and pace of two tensors.
    beside = 2 * 3 * 4 / 21
    assert (whole["bytes"], half["bytes"]) == (pytest.approx(12 + beside), pytest.approx(6 + beside))
    assert found["mean_difference"]["mean"] == pytest.approx(half["mean"] - whole["mean"])
    assert abs(found["mean_difference"]["mean"]) < 0.01
    assert "| line" in table([found])
