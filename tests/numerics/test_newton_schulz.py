"""Newton-Schulz steps against the singular values that they move, one matrix and many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lopt.numerics.newton_schulz import COEFFICIENTS, newton_schulz, orthogonalised
from tests.helpers import seeded

SHAPES = [(4, 4), (4, 5), (5, 4), (4, 9), (9, 4), (3, 40), (4, 31), (4, 5), (1, 6), (6, 1), (1, 1)]
"""Square, short and long, wide and tall, alone and with partners of their shape or of their rows alone."""


def draw(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def by_singular_values(matrix: Tensor, steps: int) -> Tensor:
    """U f(S) V^T, f the quintic as often as there are steps."""
    a, b, c = COEFFICIENTS
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_moves_the_singular_values(shape: tuple[int, int], steps: int) -> None:
    matrix = draw(shape)
    torch.testing.assert_close(
        newton_schulz(matrix, steps), by_singular_values(matrix, steps), rtol=1e-8, atol=1e-8
    )


def test_many_at_once_equal_each_alone() -> None:
    matrices = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    for matrix, found in zip(matrices, orthogonalised(matrices), strict=True):
        torch.testing.assert_close(found, newton_schulz(matrix), rtol=1e-11, atol=1e-11)


def test_none_at_all() -> None:
    assert orthogonalised([]) == []


@pytest.mark.parametrize("shape", [(8, 100), (100, 8), (8, 9)])
def test_singular_values_of_many_sizes_in_single_precision(shape: tuple[int, int]) -> None:
    """The Gram matrix squares them: those below 1e-4 of the largest are lost in its rounding, and stay small."""
    u, _, vt = torch.linalg.svd(draw(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -7, min(shape), dtype=torch.float64)) @ vt
    torch.testing.assert_close(
        newton_schulz(matrix.float()).double(), by_singular_values(matrix, 5), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("shape", [(3, 4), (3, 9)])
def test_zero_stays_zero_with_a_finite_derivative(shape: tuple[int, int]) -> None:
    matrix = torch.zeros(shape, requires_grad=True)
    result = newton_schulz(matrix)
    assert torch.equal(result, torch.zeros(shape))
    (slope,) = torch.autograd.grad(result.sum(), matrix)
    assert torch.isfinite(slope).all()


def test_vmapped_equals_looped() -> None:
    batches = [torch.stack([draw(shape, seed) for seed in range(3)]) for shape in SHAPES]
    vmapped = torch.vmap(lambda *ms: tuple(orthogonalised(ms)))(*batches)
    for batch, found in zip(batches, vmapped, strict=True):
        for matrix, one in zip(batch, found, strict=True):
            torch.testing.assert_close(one, newton_schulz(matrix), rtol=1e-10, atol=1e-10)
