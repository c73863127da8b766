"""Kendall's tau-b: how well predictions order what they are of."""

from __future__ import annotations

from torch import Tensor


def tau_b(truth: Tensor, predicted: Tensor, pairs: Tensor | None = None) -> float:
    """Concordant less discordant pairs, over the geometric mean of those untied in each (N).

    pairs (N, N): those that count. 0 where there is no order at all, that of guessing.
    """
    left, right = signs(truth), signs(predicted)
    if pairs is not None:
        left, right = left * pairs, right * pairs
    untied = (left.abs().sum() * right.abs().sum()).sqrt().item()
    return (left * right).sum().item() / untied if untied else 0.0


def signs(values: Tensor) -> Tensor:
    """(N, N): of the differences of all pairs."""
    return (values[:, None] - values).sign().double()
