"""Update forms: how a metanet's raw outputs become a step.

Each is a pure function of the gradient history of all scalars, the raw outputs and the logarithm of the base rate,
which is meta-learned. Shapes: P scalars, B tensors, R raw outputs. These are (R, P), or
(R, B) where the metanet speaks of whole tensors: `History.spread` repeats what is made of them, as late as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.directions import DIRECTIONS, History, evening, graft

NEURAL_GRAPHS_SCALE = 0.01
"""The factor of the log-magnitude in Neural Graphs; that of the direction is the rule's rate, 0.01 there."""

UNF_BETA = 1e-3
"""The initial beta of UNF. The paper meta-learns it; here the metanet's linear head does as much."""


class Form(NamedTuple):
    """A step (P,), still to be bounded, and how many raw outputs R it takes for a number of directions."""

    step: Callable[[History, Mapping[str, float], Tensor, Tensor], Tensor]
    outputs: Callable[[int], int]
    learns_decay: bool = False
    """Whether the decay of the fastest momentum is meta-learned."""


def mixture(h: History, directions: Mapping[str, float], raw: Tensor, log_rate: Tensor) -> Tensor:
    """-rate exp(s(r_0)) sum_k (w_k + r_k) d_k over base directions d_k with their weights w_k; fresh: r = 0.

    s(x) = x / sqrt(1 + x^2 / 4) lies within +-2: the magnitude stays within a factor of exp(2) = 7.4 of the base
    rate, wherever a metanet may be led beyond what it was trained on.
    """
    return h.spread(_length(raw, log_rate)) * _mixed(h, directions, raw)


def orthogonal(h: History, directions: Mapping[str, float], raw: Tensor, log_rate: Tensor) -> Tensor:
    """As "mixture", but hidden matrices are orthogonalised after mixing: -rate exp(s(r_0)) G(sum_k (w_k + r_k) d_k).

    G replaces a hidden matrix by newton_schulz(sqrt(v) d) at the rms of d. However directions are mixed, no singular
    value of a step exceeds the others: with directions added to an orthogonalised one, the largest does.
    """
    mixed = _mixed(h, directions, raw)
    return h.spread(_length(raw, log_rate)) * graft(h, mixed / h.inverse, mixed)


def preconditioned(h: History, directions: Mapping[str, float], raw: Tensor, log_rate: Tensor) -> Tensor:
    """As "orthogonal", in coordinates z = D p, D = v^(1/4), in which gradients of all entries are more alike.

    A hidden matrix takes -rate exp(s(r_0)) D^-1 newton_schulz(D^-1 m) at the rms of d, with d = sum_k (w_k + r_k) d_k
    and m = sqrt(v) d. Gradients by z are D^-1 g, so this is the step of "orthogonal" on z, seen from p: steepest
    descent in the spectral norm (Bernstein & Newhouse 2024, arXiv 2409.20325) after half of Adam's preconditioning.
    """
    mixed = _mixed(h, directions, raw)
    return h.spread(_length(raw, log_rate)) * graft(h, mixed / h.inverse, mixed, evening(h))


def _mixed(h: History, directions: Mapping[str, float], raw: Tensor) -> Tensor:
    step: Tensor | None = None
    for (name, weight), row in zip(directions.items(), raw[1:], strict=True):
        share, direction = h.spread(row + weight), DIRECTIONS[name](h)
        step = share * direction if step is None else torch.addcmul(step, share, direction)
    assert step is not None
    return step


def _length(raw: Tensor, log_rate: Tensor) -> Tensor:
    return -torch.exp(raw[0] * torch.rsqrt(1 + raw[0] * raw[0] / 4) + log_rate)


def magnitude(h: History, directions: Mapping[str, float], raw: Tensor, log_rate: Tensor) -> Tensor:
    """-rate d exp(0.01 m) with d, m = raw: Metz et al. 2022 and Neural Graphs (Kofinas et al. 2024); fresh: 0."""
    direction, log_magnitude = raw
    length = torch.exp((NEURAL_GRAPHS_SCALE * log_magnitude).clamp(-8, 4) + log_rate)
    return h.spread(-length * direction)


def momentum(h: History, directions: Mapping[str, float], raw: Tensor, log_rate: Tensor) -> Tensor:
    """-rate (m + beta f) with the fastest momentum m and f = raw: UNF (Zhou et al. 2024, arXiv 2402.05232, section 4).

    Fresh: gradient descent with momentum. The paper's alpha = 0.1 and gamma_0 = 0.9 are the rule's rate and first
    decay, both of them meta-learned from there.
    """
    return -torch.exp(log_rate) * (h.moments.momenta[0] + UNF_BETA * h.spread(raw[0]))


FORMS: dict[str, Form] = {
    "mixture": Form(mixture, lambda directions: 1 + directions),
    "orthogonal": Form(orthogonal, lambda directions: 1 + directions),
    "preconditioned": Form(preconditioned, lambda directions: 1 + directions),
    "magnitude": Form(magnitude, lambda directions: 2),
    "momentum": Form(momentum, lambda directions: 1, learns_decay=True),
}
"""Every update form by the name that configs use."""
