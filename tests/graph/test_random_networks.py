"""Whatever a network does with its axes, the graph that comes out must keep the function.

Random chains of layers, views, cuts, concatenations and attention on a (batch, time, channels) tensor.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lopt.graph import ParameterGraph

TIME = 6
Step = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """A random network; every step is drawn from `STEPS` and reads the number of channels from its input."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.rng = random.Random(seed)
        self.steps: list[Step] = [self.add(nn.Linear(5, 12))]
        self.channels = 12
        for _ in range(self.rng.randint(2, 6)):
            self.steps.append(self.rng.choice(STEPS)(self))
            self.channels = self._run(torch.zeros(2, TIME, 5)).shape[-1]
            if not 4 <= self.channels <= 30:
                self.steps.append(self.linear(8))
                self.channels = 8
        flat = self.rng.random() < 0.4
        self.steps += [lambda h: h.flatten(1)] if flat else []
        self.steps.append(self.linear(3, self.channels * (TIME if flat else 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def add(self, layer: nn.Module) -> Step:
        self.layers.append(layer)
        return layer

    def linear(self, out: int, into: int | None = None) -> Step:
        return self.add(nn.Linear(into or self.channels, out, bias=self.rng.random() < 0.7))

    def divisor(self) -> int:
        return self.rng.choice([d for d in (1, 2, 3, 4) if self.channels % d == 0])


def gate(net: Chain) -> Step:
    both = net.linear(2 * net.channels)
    return lambda h: torch.mul(
        *(f(t) for f, t in zip((torch.sigmoid, torch.tanh), both(h).chunk(2, -1), strict=True))
    )


def attention(net: Chain) -> Step:
    heads, out = net.divisor(), net.linear(net.channels)
    q, k, v = (net.linear(net.channels) for _ in range(3))

    def step(h: Tensor) -> Tensor:
        a, b, c = (f(h).view(2, TIME, heads, -1).transpose(1, 2) for f in (q, k, v))
        return out(((a @ b.transpose(-1, -2)).softmax(-1) @ c).transpose(1, 2).flatten(2))

    return step


def fused_attention(net: Chain) -> Step:
    heads, qkv, out = net.divisor(), net.linear(3 * net.channels), net.linear(net.channels)
    inside = net.rng.random() < 0.5

    def step(h: Tensor) -> Tensor:
        z = qkv(h)
        z = z.view(2, TIME, heads, 3, -1).transpose(2, 3) if inside else z.view(2, TIME, 3, heads, -1)
        return out(F.scaled_dot_product_attention(*z.transpose(1, 3).unbind(2)).transpose(1, 2).flatten(2))

    return step


def shuffle(net: Chain) -> Step:
    groups = net.divisor()
    return lambda h: h.view(2, TIME, groups, -1).transpose(2, 3).flatten(2)


def mix_heads(net: Chain) -> Step:
    heads = net.divisor()
    mix = net.linear(heads, heads)
    return lambda h: mix(h.view(2, TIME, heads, -1).transpose(2, 3)).transpose(2, 3).flatten(2)


def over_channels(net: Chain, layer: nn.Module) -> Step:
    run = net.add(layer)
    return lambda h: run(h.transpose(1, 2)).transpose(1, 2)


def group_norm(net: Chain) -> Step:
    return over_channels(net, nn.GroupNorm(net.divisor(), net.channels))


def grouped_convolution(net: Chain) -> Step:
    return over_channels(net, nn.Conv1d(net.channels, 2 * net.channels, 3, padding=1, groups=net.divisor()))


def residual(net: Chain) -> Step:
    up, down = net.linear(8), net.linear(net.channels, 8)
    return lambda h: h + down(up(h).relu())


def connect(net: Chain) -> Step:
    more = net.linear(4)
    return lambda h: torch.cat([h, more(h)], -1)


def interleave(net: Chain) -> Step:
    other, at = net.linear(net.channels), net.rng.choice([-1, -2])
    return lambda h: torch.stack([h, other(h)], at).flatten(-2)


def cut(net: Chain) -> Step:
    start, stop = net.rng.randint(0, 2), net.channels - net.rng.randint(1, 2)
    return lambda h: h[..., start:stop]


def pick(net: Chain) -> Step:
    parts = net.divisor()
    place = net.rng.randrange(parts)
    return lambda h: h.view(2, TIME, parts, -1)[:, :, place]


def halves(net: Chain) -> Step:
    inner = net.rng.random() < 0.5

    def step(h: Tensor) -> Tensor:
        if h.shape[-1] % 2:
            return h
        a, b = h.unflatten(-1, (-1, 2)).unbind(-1) if inner else h.chunk(2, -1)
        return a + b.tanh()

    return step


def project(net: Chain) -> Step:
    weight = nn.ParameterList([torch.randn(net.channels, 3, 4) / 2])
    net.layers.append(weight)
    return lambda h: torch.einsum("btc,cde->btde", h, weight[0]).relu().flatten(2)


STEPS: list[Callable[[Chain], Step]] = [
    gate, attention, fused_attention, shuffle, mix_heads, group_norm, grouped_convolution, residual, connect,
    interleave, cut, pick, halves, project,
    lambda net: net.linear(net.rng.choice([6, 8, 12])),
    lambda net: net.rng.choice([torch.relu, torch.tanh, F.silu]),
    lambda net: net.add(nn.LayerNorm(net.channels)),
    lambda net: over_channels(net, nn.Linear(TIME, TIME)),
    lambda net: lambda h: F.pad(h, (1, 2)),
    lambda net: lambda h: torch.cat([h, h.relu()], -1),
    lambda net: lambda h: h + h.flip(-1),
    lambda net: lambda h: h.repeat(1, 1, 2),
]  # fmt: skip


def _check(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Chain(seed), torch.randn(2, TIME, 5)
    graph = ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    assert graph.verify(model, (x,), max_controls=0).max_error < 1e-10


@pytest.mark.parametrize("seed", range(30))
def test_random_networks_keep_their_function(seed: int) -> None:
    _check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 400))
def test_many_random_networks_keep_their_function(seed: int) -> None:
    _check(seed)
