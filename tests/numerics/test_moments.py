"""Gradient history against plain sums."""

from __future__ import annotations

import pytest
import torch

from lopt.numerics.moments import factored_root, weight_seen
from tests.helpers import seeded


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_corrected_average_is_the_weighted_mean(decay: float) -> None:
    """sum_i decay^(t - i) x_i / sum_i decay^(t - i), so that a constant is its own average from the first step."""
    values = torch.randn(7, 4, generator=seeded(0), dtype=torch.float64)
    average = torch.zeros(4, dtype=torch.float64)
    for t, value in enumerate(values, start=1):
        average = average.lerp(value, 1 - decay)
        weights = torch.tensor([decay ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
        expected = (weights[:, None] * values[:t]).sum(0) / weights.sum()
        seen = weight_seen(torch.full((1,), float(t), dtype=torch.float64), [decay])
        torch.testing.assert_close(average / seen[0], expected, rtol=1e-12, atol=1e-12)


def test_correction_is_exact_in_single_precision() -> None:
    """1 - 0.999^1 written out loses five digits in float32."""
    found = 1 / weight_seen(torch.tensor([1.0, 2.0, 1e4, 1e9]), [0.9, 0.999, 0.99999])
    exact = [[1 / (1 - decay**t) for t in (1, 2, 10**4, 10**9)] for decay in (0.9, 0.999, 0.99999)]
    torch.testing.assert_close(found, torch.tensor(exact), rtol=3e-7, atol=0)


def test_factored_root_is_exact_for_rank_one() -> None:
    row, col = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([0.25, 1.0])
    matrix = (row[:, None] * col).double()
    vector = torch.tensor([4.0, 16.0]).double()
    found = factored_root(torch.cat([matrix.reshape(-1), vector]), [(3, 2), (2,)])
    torch.testing.assert_close(found, torch.cat([matrix.reshape(-1), vector]).sqrt())


@pytest.mark.parametrize("scale", [0.0, 1e-35, 1e-20, 1e30])
def test_factored_root_is_finite_with_a_finite_derivative(scale: float) -> None:
    second = (scale * torch.rand(14, generator=seeded(0))).requires_grad_()
    root = factored_root(second, [(3, 4), (), (1,), (0, 3)])
    root.sum().backward()
    assert torch.isfinite(root).all()
    assert second.grad is not None
    assert torch.isfinite(second.grad).all()
