"""What a rule remembers of the gradients: momenta at several decays and one second moment.

Shapes: P scalars, K decays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LIMIT = 1e15
"""Larger gradients and parameters are read as this, so that their squares stay finite in float32."""

TINY = 1e-30
"""Added under square roots: keeps their derivative finite at 0, far below Adam's eps of 1e-8."""


class Moments(NamedTuple):
    """Bias-corrected gradient history of all scalars."""

    momenta: Tensor | Sequence[Tensor]
    """(K, P), one row for each decay."""
    root: Tensor
    """(P,) square root of the second moment."""


def weight_seen(steps: Tensor, decays: Sequence[float]) -> Tensor:
    """(...) steps, K decays -> (K, ...): 1 - decay^steps, the weight that a running mean gives to what it has seen.

    Through expm1: in float32, 1 - decay^steps loses five digits at the first step of decay 0.999.
    """
    logs = steps.new_tensor([math.log(decay) if decay > 0 else -math.inf for decay in decays])
    return -torch.expm1(logs.reshape(-1, *[1] * steps.dim()) * steps)


def corrected(momenta: Tensor, second: Tensor, factors: Tensor) -> Moments:
    """Moments out of running means (K, P) and (P,) and their factors (K + 1, P)."""
    return Moments(momenta * factors[:-1], torch.sqrt(second * factors[-1] + TINY))


def factored_root(second: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    """(P,) square root of the rank-one approximation of the second moment of each tensor.

    A tensor is read as a matrix (first axis, the rest): v_ij ~ row_i col_j / mean(row), Adafactor (Shazeer &
    Stern 2018, section 3). Averages over time commute with those over axes, so no state of its own is needed.
    Tensors of one axis keep their own second moment.
    """
    parts = second.split([torch.Size(shape).numel() for shape in shapes])
    return torch.sqrt(torch.cat([_factored(v, shape) for v, shape in zip(parts, shapes, strict=True)]) + TINY)


def _factored(second: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) < 2 or second.numel() == 0:
        return second
    matrix = second.reshape(shape[0], -1)
    row, col = matrix.mean(1), matrix.mean(0)
    return ((row / (row.mean() + TINY))[:, None] * col[None, :]).reshape(-1)
