"""Logarithms and signs, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from lopt.features.log_sign import count, log_and_sign, log_sign_features


@pytest.mark.parametrize(
    ("x", "log", "sign"),
    [
        (1.0, 0.0, 1.0),
        (-1.0, 0.0, -1.0),
        (math.e, 0.1, 1.0),
        (-math.exp(-5), -0.5, -1.0),
        (math.exp(-10), -1.0, 1.0),
        (-0.5 * math.exp(-10), -1.0, -0.5),  # below the reach: a number
        (0.0, -1.0, 0.0),
        (1e15, 1.5 * math.log(10), 1.0),
    ],
)
def test_values_by_hand(x: float, log: float, sign: float) -> None:
    found = log_and_sign(torch.tensor([[x]], dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx([log, sign], abs=1e-12)


def test_rows_are_parameters_gradients_and_momenta() -> None:
    params, grads = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    sums = torch.tensor([[4.0, -5.0], [6.0, 0.0], [1.0, 1.0]])
    rows = torch.stack([params, grads, *sums])
    found = log_sign_features(params, grads, sums)
    assert found.shape == (count(3), 2) == (10, 2)
    torch.testing.assert_close(found[:5], rows.abs().clamp(min=math.exp(-10)).log() / 10)
    torch.testing.assert_close(found[5:], rows.sign())
