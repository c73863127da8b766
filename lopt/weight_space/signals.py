"""Signals: a reader that sends learned codes of the inputs through a network's own weights.

A function is made of products: what a neuron hears is the sum of what others say, each times a weight. Metanets that
take a weight as one feature among others have to learn that product; here it is given, and nothing else of the
function, neither its inputs nor its nonlinearities.

Shapes: B networks, n neurons of a layer, S taps of a kernel, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.metanets.published.chain import Link, chain_of
from lopt.metanets.published.wiring import SLOTS, wiring_of
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.readers import DROPOUT, Head, UnwoundReader
from lopt.weight_space.scale_gmn import ODD
from lopt.weight_space.sirens import SirenShape


class Signals(UnwoundReader):
    """Inputs j, which stay in place, say learned x_j. Then, layer after layer,

        m_i = sum over sources j and taps t of W_ijt A_t x_j,   x_i = heard([m_i, b_i])

    and a head reads [m_i, b_i] of the outputs. heard is V sin(U sin(T z)) where all hidden neurons are of odd
    functions: it turns with the sign of a neuron (see `ScaleGmn`), so that what is read does not. Elsewhere it is the
    same with relu, and shifts. A weight is told over its tensor's rms in a training set and the root of its sources
    and taps, a bias over its rms. Of SIRENs what `unwound` leaves is read.
    Raises `GraphError` unless the network is a chain of layers.
    """

    def __init__(
        self,
        graph: ParameterGraph,
        networks: NetworkSet,
        outputs: int,
        siren: SirenShape | None = None,
        width: int = 128,
    ) -> None:
        super().__init__(graph, networks, siren)
        self.links, self.wiring = chain_of(graph, SLOTS), wiring_of(graph, SLOTS)
        inputs, answers = self.links[0].weight.grid[1], self.links[-1].weight.grid[0]
        self.codes = nn.Parameter(torch.randn(inputs, width))
        self.taps = nn.ModuleList(
            nn.Linear(width, width * slots, bias=False) if (slots := link.weight.slots) > 1 else nn.Identity()
            for link in self.links
        )
        odd = all(group.activation in ODD for group in graph.groups if group.permutable)
        self.heard = nn.ModuleList(Heard(width, odd) for _ in self.links[1:])
        self.head = Head(answers * (width + 1), 256, 256, outputs, dropout=0.0 if siren else DROPOUT)

    def forward(self, params: Tensors) -> Tensor:
        scalars = self.scalars(params)
        parts = self.wiring.parts(scalars[None])
        first, *others = zip(self.links, self.taps, strict=True)
        received = _received(first[0], parts, first[1](self.codes.expand(len(scalars), -1, -1)))
        for (link, taps), heard in zip(others, self.heard, strict=True):
            received = _received(link, parts, taps(heard(received)))
        found: Tensor = self.head(received.flatten(1))
        return found


class Heard(nn.Module):
    """(B, n, D + 1) -> (B, n, D), of each neuron by itself; odd if asked for."""

    def __init__(self, width: int, odd: bool) -> None:
        super().__init__()
        self.function, gain = (torch.sin, 2.0) if odd else (torch.relu, 2**0.5)
        half = width // 2
        self.first, self.second = nn.Linear(width + 1, half, not odd), nn.Linear(half, half, not odd)
        self.last = nn.Linear(half, width, bias=False)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.function(self.second(self.function(self.first(x)))))
        return found


def _received(link: Link, parts: Sequence[Tensor], said: Tensor) -> Tensor:
    """(B, sources, S D) -> [m, b] of the targets (B, targets, D + 1)."""
    wire = link.weight
    targets, sources, _ = wire.grid
    weights = wire.fold(parts[wire.number])[0].unflatten(-1, (targets, sources))  # S, B, targets, sources
    each = said.unflatten(-1, (wire.slots, -1)).movedim(2, 0)
    m = (weights @ each).sum(0) / (sources * wire.taps) ** 0.5
    bias = m.new_zeros(*m.shape[:2], 1)
    if link.bias is not None:
        bias = link.bias.fold(parts[link.bias.number])[0, 0].unsqueeze(-1)
    return torch.cat([m, bias], -1)
