"""Stochastic rounding: unbiased, to one of the two neighbours, and the same at the same place and step."""

from __future__ import annotations

import torch

from lopt.numerics.rounding import at, rounded, salts


def draws(values: torch.Tensor, count: int) -> torch.Tensor:
    """(count, n) the values as rounded at so many steps."""
    steps = torch.arange(count).float()
    return torch.stack([rounded([values], salts(step[None]))[0] for step in steps])


def test_to_a_neighbour_and_unbiased():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 500)
    found = draws(values, 2000).double()
    last = 2.0 ** (torch.frexp(values.double()).exponent - 8)  # one in the last place
    assert ((found - values).abs() < last).all()
    # Five standard errors of a coin of p = 1/2 between neighbours.
    assert ((found.mean(0) - values).abs() < 5 * 0.5 * last / 2000**0.5).all()


def test_what_fits_stays():
    values = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-100, 3.0e20]).bfloat16()
    assert torch.equal(draws(values.float(), 50), values.expand(50, -1))


def test_rows_tensors_and_ranges_have_chances_of_their_own():
    values = torch.full((4000,), 1.0 + 2**-9)  # half way up in half of all cases
    first, second = rounded([values, values], salts(torch.ones(2))[:1])
    other = rounded([values], salts(torch.ones(2))[1:])[0]
    later = rounded([values], at(salts(torch.ones(1)), 4000))[0]
    again = rounded([values], salts(torch.ones(1)))[0]
    assert torch.equal(first, again)
    for found in (second, other, later, first.roll(1)):
        assert 0.3 < (first != found).float().mean() < 0.7


def test_a_slow_mean_follows():
    """To the nearest, a running mean of decay .999 does not fall from 1 towards .5 at all."""
    mean, stuck = torch.ones(300).bfloat16(), torch.ones(300).bfloat16()
    for step in range(1000):
        mean = rounded(
            [mean.float().lerp(torch.full((300,), 0.5), 1e-3)], salts(torch.tensor([float(step)]))
        )[0]
        stuck = stuck.float().lerp(torch.full((300,), 0.5), 1e-3).bfloat16()
    wanted = 0.5 + 0.5 * 0.999**1000
    assert stuck.eq(1).all()
    assert abs(mean.float().mean().item() - wanted) < 0.005
