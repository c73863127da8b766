"""What to change of each weight of a SIREN, said by signals that are sent through it there and back.

A gradient step changes a weight by what its source says times what its target is told from behind. Here both are
learned: codes go through the weights to the outputs (see `signals`), an MLP answers, and its answer goes back.

Shapes: B networks, K copies, t targets and s sources of a layer, D width, E width of edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lopt.weight_space.network_set import Tensors
from lopt.weight_space.signals import Heard
from lopt.weight_space.sirens import SirenShape

FREQUENCIES = 8


class SignalChanges(nn.Module):
    """Parameters (B, *shape) of networks in canonical form -> what to change of them, (B, K, *shape).

    There, from learned x_0 of the inputs:   m_l = norm(W_l x_(l-1)),         x_l = norm(heard([m_l, b_l]))
    and back, from z_L = answer([m_L, b_L]): r_l = norm(W_(l+1)^T z_(l+1)),   z_l = norm(told([m_l, r_l, b_l]))

    Weight ij of layer l is told (P z_i) . x_j / sqrt(D) and what `EdgeChanges` says of it, bias i a linear map of z_i.
    norm is over the rms of a layer's; every tensor is over its rms in a training set, `scales`.
    """

    def __init__(
        self, shape: SirenShape, scales: Mapping[str, float], copies: int, width: int = 64, edges: int = 32
    ) -> None:
        super().__init__()
        self.names, self.copies, self.width = shape.names, copies, width
        self.scales: Tensor
        self.register_buffer(
            "scales", torch.tensor([[scales[name] for name in pair] for pair in shape.names])
        )
        layers, hidden = range(len(shape.names)), range(len(shape.names) - 1)
        self.codes = nn.Parameter(torch.randn(shape.sizes[0], width))
        self.heard = nn.ModuleList(Heard(width + 1, width, odd=True) for _ in hidden)
        self.told = nn.ModuleList(Heard(2 * width + 1, width, odd=True) for _ in hidden)
        self.answer = nn.Sequential(
            nn.Linear(width + 1, 2 * width), nn.ReLU(), nn.Linear(2 * width, 2 * width), nn.ReLU(),
            nn.Linear(2 * width, width),
        )  # fmt: skip
        self.along = nn.ModuleList(nn.Linear(width, copies * width, bias=False) for _ in layers)
        self.edges = nn.ModuleList(EdgeChanges(width, edges, copies) for _ in layers)
        self.biases = nn.ModuleList(nn.Linear(width, copies, bias=False) for _ in layers)

    def forward(self, params: Tensors) -> Tensors:
        pairs = [
            [params[name] / (scale + 1e-12) for name, scale in zip(pair, scales, strict=True)]
            for pair, scales in zip(self.names, self.scales, strict=True)
        ]
        said, received = [self.codes.expand(len(pairs[0][0]), -1, -1)], []
        for heard, (weight, bias) in zip([*self.heard, None], pairs, strict=True):
            received.append(torch.cat([normed(weight @ said[-1]), bias[..., None]], -1))
            if heard is not None:
                said.append(normed(heard(received[-1])))
        back = self.answer(received[-1])
        changes: Tensors = {}
        for place in reversed(range(len(pairs))):
            weight_name, bias_name = self.names[place]
            weight = pairs[place][0]
            changes[bias_name] = self.biases[place](back).mT
            each = self.along[place](back).unflatten(-1, (self.copies, -1)).movedim(2, 1)  # B, K, t, D
            products = each @ said[place].mT[:, None] / math.sqrt(self.width)
            changes[weight_name] = products + self.edges[place](weight, back, said[place])
            if place:
                returned = normed(weight.mT @ back)
                back = normed(self.told[place - 1](torch.cat([received[place - 1], returned], -1)))
        return changes


class EdgeChanges(nn.Module):
    """Weights w (B, t, s), z of targets (B, t, D), x of sources (B, s, D) -> (B, K, t, s):

    relu-MLP([relu(A z_i + C x_j + F [w_ij, sin(f w_ij), cos(f w_ij)]),  w_ij (G z_i) * (H x_j)])
    """

    def __init__(self, width: int, edges: int, copies: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(2 * torch.randn(FREQUENCIES))
        self.own = nn.Linear(1 + 2 * FREQUENCIES, edges)
        self.of_target, self.of_source = nn.Linear(width, 2 * edges), nn.Linear(width, 2 * edges)
        self.inner, self.outer = nn.Linear(2 * edges, edges), nn.Linear(edges, copies, bias=False)

    def forward(self, weights: Tensor, targets: Tensor, sources: Tensor) -> Tensor:
        w = weights[..., None]
        angles = w * self.frequencies
        added_t, times_t = self.of_target(targets)[:, :, None].chunk(2, -1)
        added_s, times_s = self.of_source(sources)[:, None].chunk(2, -1)
        own = self.own(torch.cat([w, angles.sin(), angles.cos()], -1))
        told = torch.cat([(own + added_t + added_s).relu(), times_t * times_s * w], -1)
        found: Tensor = self.outer(self.inner(told).relu())
        return found.movedim(-1, 1)


def normed(x: Tensor) -> Tensor:
    """(B, n, D) over the rms of each network's."""
    return x * torch.rsqrt(x.square().mean((-1, -2), keepdim=True) + 1e-4)
