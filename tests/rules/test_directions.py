"""Base directions against readable definitions, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lopt.graph.tensor_classes import Matrices
from lopt.numerics.moments import Moments, factored_root
from lopt.rules.directions import DIRECTIONS, History
from tests.helpers import seeded

SHAPES = [(4, 3), (3, 5), (5,), (), (1, 4), (4, 1), (2, 3, 2, 2), (1,)]
HIDDEN = [True, True, False, False, False, False, True, False]
READ = [
    Matrices(1, shape[0], math.prod(shape[1:])) if hidden else None
    for shape, hidden in zip(SHAPES, HIDDEN, strict=True)
]
"""Which of them are matrices that feed hidden neurons; one has the shape of a matrix and is none."""
SHAPES.append((3, 2))
HIDDEN.append(False)
SIZES = [torch.Size(shape).numel() for shape in SHAPES]


def history(scale: float = 1.0) -> tuple[History, list[dict[str, Tensor]]]:
    """A history, and the same tensor by tensor."""
    generator = seeded(0)

    def draw(rows: int) -> Tensor:
        return scale * torch.randn(rows, sum(SIZES), generator=generator, dtype=torch.float64)

    momenta, (p, g, v) = draw(3), draw(3)
    root = v.abs() + 0.1 * scale
    factored = factored_root(root**2, SHAPES)

    rms = torch.stack([part.square().mean().sqrt() for part in momenta[0].split(SIZES)])
    whole = History(p, g, Moments(momenta, root), 1 / (root + 1e-8), factored, rms, rms, SIZES, READ)
    rows = {"p": p, "g": g, "m": momenta[0], "m1": momenta[1], "r": root}
    cut = {
        key: [t.reshape(s) for t, s in zip(x.split(SIZES), SHAPES, strict=True)] for key, x in rows.items()
    }
    parts = [{key: cut[key][index] for key in rows} for index in range(len(SHAPES))]
    return whole, [
        {**part, "hidden": torch.tensor(hidden)} for part, hidden in zip(parts, HIDDEN, strict=True)
    ]


def adafactor(t: dict[str, Tensor]) -> Tensor:
    """R C / mean(R) by two loops, as in Shazeer & Stern 2018, algorithm 4."""
    if t["m"].dim() < 2:
        return t["m"] / t["r"]
    v = (t["r"] ** 2).reshape(t["r"].shape[0], -1)
    estimate = torch.empty_like(v)
    for i in range(v.shape[0]):
        for j in range(v.shape[1]):
            estimate[i, j] = v[i].mean() * v[:, j].mean() / v.mean()
    return t["m"] / estimate.sqrt().reshape(t["m"].shape)


def orthogonal(t: dict[str, Tensor]) -> Tensor:
    """0.2 sqrt(max(rows, columns)) U f(S) V^T of 0.1 g + 0.9 m, f the quintic five times on S / |S|."""
    if not t["hidden"]:
        return t["m"] / t["r"]
    m = 0.1 * t["g"] + 0.9 * t["m"]
    u, s, vt = torch.linalg.svd(m.reshape(m.shape[0], -1), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (0.2 * max(m.reshape(m.shape[0], -1).shape) ** 0.5 * (u * s) @ vt).reshape(m.shape)


def grafted(t: dict[str, Tensor]) -> Tensor:
    if not t["hidden"]:
        return t["m"] / t["r"]
    o, a = orthogonal(t), t["m"] / t["r"]
    return o / o.square().mean().sqrt() * a.square().mean().sqrt()


DEFINITIONS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "adam": lambda t: t["m"] / t["r"],
    "slow": lambda t: t["m1"] / t["r"],
    "gradient": lambda t: t["g"] / t["r"],
    "factored": adafactor,
    "momentum": lambda t: t["m"] / t["m"].square().mean().sqrt(),
    "parameter": lambda t: t["p"],
    "constant": lambda t: torch.ones_like(t["p"]),
    "orthogonal": orthogonal,
    "grafted": grafted,
}


def test_every_direction_is_defined_here() -> None:
    assert DEFINITIONS.keys() == DIRECTIONS.keys()


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_equals_its_definition(name: str) -> None:
    whole, parts = history()
    expected = torch.cat([DEFINITIONS[name](part).reshape(-1) for part in parts])
    torch.testing.assert_close(DIRECTIONS[name](whole), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in DEFINITIONS if name != "parameter"])
def test_scale_of_the_loss_does_not_matter(name: str) -> None:
    one, other = DIRECTIONS[name](history()[0]), DIRECTIONS[name](history(1e3)[0])
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_orthogonal_sets_singular_values_near_one() -> None:
    whole, _ = history()
    parts = DIRECTIONS["orthogonal"](whole).split(SIZES)
    for part, shape, hidden in zip(parts, SHAPES, HIDDEN, strict=True):
        if hidden:
            matrix = part.reshape(shape[0], -1)
            values = torch.linalg.svdvals(matrix) / (0.2 * max(matrix.shape) ** 0.5)
            assert values.min() > 0.5
            assert values.max() < 1.3


@pytest.mark.parametrize("name", list(DEFINITIONS))
def test_finite_with_a_finite_derivative_where_everything_is_zero(name: str) -> None:
    size = sum(SIZES)
    momenta, g = torch.zeros(3, size, requires_grad=True), torch.zeros(size, requires_grad=True)
    root = (g * g + momenta[0] ** 2 + 1e-30).sqrt()
    rms = (momenta[0].square().mean() + 1e-30).sqrt().expand(len(SHAPES))
    factored, inverse = factored_root(root**2, SHAPES), 1 / (root + 1e-8)
    h = History(g, g, Moments(momenta, root), inverse, factored, rms, rms, SIZES, READ)
    step = DIRECTIONS[name](h)
    assert torch.equal(step, torch.full_like(step, name == "constant"))
    if not step.requires_grad:
        return
    slopes = torch.autograd.grad(step.sum(), [momenta, g], allow_unused=True)
    assert all(slope is None or torch.isfinite(slope).all() for slope in slopes)
