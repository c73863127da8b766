"""Features of single scalars: their number, their size, and that no scale shows in them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lopt.features.per_scalar import (
    FLOOR,
    count,
    log_ratio,
    log_size,
    per_scalar_features,
    reciprocal,
    squash,
    squashed_square,
    unit_of_squares,
)
from lopt.numerics.moments import Moments
from tests.helpers import seeded

P = 50


def features(params: float = 1.0, grads: float = 1.0, decays: int = 3, show_factored: bool = True) -> Tensor:
    generator = seeded(0)
    p = params * torch.randn(P, generator=generator, dtype=torch.float64)
    g, root, factored = (grads * torch.randn(P, generator=generator, dtype=torch.float64) for _ in range(3))
    momenta = grads * torch.randn(decays, P, generator=generator, dtype=torch.float64)
    rms = p.square().mean().sqrt().expand(P)
    root = root.abs() + 0.1 * grads
    spread = root.square().mean().sqrt().sqrt().expand(P)
    seen = factored.abs() + 0.1 * grads if show_factored else None
    return per_scalar_features(p, g, Moments(momenta, root), seen, rms, spread)


@pytest.mark.parametrize("decays", [1, 2, 3, 6])
def test_count(decays: int) -> None:
    assert features(decays=decays).shape == (count(decays), P)


@pytest.mark.parametrize("decays", [1, 3])
def test_factored_features_come_last_and_can_be_left_out(decays: int) -> None:
    without = features(decays=decays, show_factored=False)
    assert without.shape == (count(decays, factored=False), P)
    torch.testing.assert_close(features(decays=decays)[: len(without)], without)


def test_every_feature_tells_scalars_apart() -> None:
    assert (features().std(1) > 0.1).all()


def test_all_are_of_order_one() -> None:
    rms = features().square().mean(1).sqrt()
    assert (rms < 4).all()


@pytest.mark.parametrize(("params", "grads"), [(1e3, 1.0), (1.0, 1e4), (1e2, 1e-2)])
def test_no_scale_shows(params: float, grads: float) -> None:
    torch.testing.assert_close(features(params, grads), features(), rtol=1e-3, atol=1e-3)


def test_squash_is_linear_near_zero_and_bounded() -> None:
    x = torch.tensor([1e-3, -1e-3, 0.0, 1e4, -1e4], dtype=torch.float64)
    torch.testing.assert_close(squash(x)[:3], x[:3], rtol=1e-6, atol=0)
    torch.testing.assert_close(squash(x)[3:], 4 * x[3:].sign(), rtol=1e-5, atol=0)


def test_reciprocal_fades_below_the_floor() -> None:
    root = torch.tensor([1.0, 1e-3, FLOOR, 1e-3 * FLOOR, 0.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1e3, 0.5 / FLOOR, 1e-3 / FLOOR, 0.0], dtype=torch.float64)
    torch.testing.assert_close(reciprocal(root), expected, rtol=1e-5, atol=0)


def test_logarithms_near_one_and_their_limits() -> None:
    x = torch.tensor([0.9, -1.1, 0.0, 1e12], dtype=torch.float64)
    expected = torch.tensor([math.log(0.9), math.log(1.1), 4 * math.tanh(math.log(1e-4) / 8), 4.0])
    torch.testing.assert_close(log_size(x), expected.double(), rtol=1e-2, atol=1e-3)


def test_log_ratio_near_one_and_its_limits() -> None:
    one = torch.ones(3, dtype=torch.float64)
    other = torch.tensor([1.1, 1e14, 0.0], dtype=torch.float64)
    expected = torch.tensor([-math.log(1.1), -4.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(log_ratio(one, other.sqrt()), expected, rtol=1e-2, atol=1e-2)


def test_squashed_square_is_that_of_squash() -> None:
    x = torch.cat([torch.linspace(-40, 40, 81, dtype=torch.float64), torch.tensor([1e-9, 1e4, -1e4])])
    torch.testing.assert_close(squash(x), x / torch.sqrt(1 + (x / 4) ** 2))
    torch.testing.assert_close(math.prod(squashed_square(x, torch.ones_like(x))), squash(x) ** 2)
    root = torch.linspace(0, 1, 31, dtype=torch.float64)[1:] ** 9
    expected = squash(x[:30] * reciprocal(root)) ** 2
    torch.testing.assert_close(math.prod(squashed_square(x[:30], unit_of_squares(root))), expected)
