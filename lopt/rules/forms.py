"""Update forms: how a metanet's raw outputs become a step.

A step is a length times a direction. Both are pure functions, scalar by scalar, of the gradient history and what is
said: a length, made of the raw outputs and the logarithm of the base rate, which is meta-learned, and what the
direction depends on; some forms then orthogonalise the direction.
Shapes: P scalars, B tensors, R raw outputs, Q of what is said. These are (R, P), or (R, B) where the metanet speaks of
whole tensors: `History.spread` repeats what is made of them, as late as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.directions import DIRECTIONS, PRECONDITIONED, History, evening, graft

NEURAL_GRAPHS_SCALE = 0.01
"""The factor of the log-magnitude in Neural Graphs; that of the direction is the rule's rate, 0.01 there."""

UNF_BETA = 1e-3
"""The initial beta of UNF. The paper meta-learns it; here the metanet's linear head does as much."""

Weights = Mapping[str, float]
"""Of base directions by name."""


class Aim(NamedTuple):
    """Where a step goes."""

    direction: Tensor
    """(P,) d."""
    known: Tensor | None = None
    """(P,) sqrt(v) d, if d was made of that."""

    def momentum(self, h: History) -> Tensor:
        """(P,) sqrt(v) d."""
        return self.direction / h.inverse if self.known is None else self.known


class Form(NamedTuple):
    """length * direction, or length * G(direction), still to be bounded.

    G replaces a hidden matrix d by c newton_schulz(c sqrt(v) d) at the rms of d, with a conditioner c.
    """

    said: Callable[[Tensor, Tensor, Weights], tuple[Tensor, ...]]
    """Of raw outputs, log rate and the weights of base directions: the length, and what direction takes, each (P,), or
    (B,) by tensor."""
    aim: Callable[[History, Weights, Sequence[Tensor]], Aim]
    """Of the base directions, and what is said but for the length."""
    outputs: Callable[[int], int]
    """How many raw outputs R it takes for a number of directions."""
    orthogonal: bool = False
    """Whether there is G."""
    conditioner: Callable[[History], Tensor] | None = None
    """c (P,); None: 1."""
    learns_decay: bool = False
    """Whether the decay of the fastest momentum is meta-learned."""

    def step(self, h: History, directions: Weights, said: Sequence[Tensor]) -> Tensor:
        """(P,)."""
        aim = self.aim(h, directions, said[1:])
        direction = aim.direction
        if self.orthogonal and any(h.hidden):
            direction = graft(
                h, aim.momentum(h), direction, self.conditioner(h) if self.conditioner else None
            )
        return h.spread(said[0]) * direction


def mixed(h: History, directions: Weights, shares: Sequence[Tensor]) -> Aim:
    """sum_k s_k d_k over base directions d_k: where all are preconditioned, what they precondition is mixed."""
    if directions.keys() <= PRECONDITIONED.keys():
        momentum = _sum(h, shares, (PRECONDITIONED[name](h) for name in directions))
        return Aim(momentum * h.inverse, momentum)
    return Aim(_sum(h, shares, (DIRECTIONS[name](h) for name in directions)))


def _sum(h: History, shares: Sequence[Tensor], rows: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    for row, share in zip(rows, map(h.spread, shares), strict=True):
        total = share * row if total is None else torch.addcmul(total, share, row)
    assert total is not None
    return total


def shares(raw: Tensor, log_rate: Tensor, directions: Weights) -> tuple[Tensor, ...]:
    """-rate exp(s(r_0)), s(x) = x / sqrt(1 + x^2 / 4): within a factor of exp(2) = 7.4 of the base rate; and w_k + r_k.

    So it stays wherever a metanet may be led beyond what it was trained on. Fresh, r = 0.
    """
    first, *others = raw.unbind()
    length = -torch.exp(first * torch.rsqrt(1 + first * first / 4) + log_rate)
    return length, *(row + weight for row, weight in zip(others, directions.values(), strict=True))


def magnitude(raw: Tensor, log_rate: Tensor, directions: Weights) -> tuple[Tensor, ...]:
    """-rate exp(0.01 r_1); r_0."""
    return -torch.exp((NEURAL_GRAPHS_SCALE * raw[1]).clamp(-8, 4) + log_rate), raw[0]


def rate_alone(raw: Tensor, log_rate: Tensor, directions: Weights) -> tuple[Tensor, ...]:
    """-rate; r_0."""
    return -torch.exp(log_rate).expand_as(raw[0]), raw[0]


def spoken(h: History, directions: Weights, said: Sequence[Tensor]) -> Aim:
    """r_0."""
    return Aim(h.spread(said[0]))


def residual(h: History, directions: Weights, said: Sequence[Tensor]) -> Aim:
    """m + beta r_0 with the fastest momentum m."""
    return Aim(h.moments.momenta[0] + UNF_BETA * h.spread(said[0]))


FORMS: dict[str, Form] = {
    "mixture": Form(shares, mixed, lambda directions: 1 + directions),
    "orthogonal": Form(shares, mixed, lambda directions: 1 + directions, True),
    "preconditioned": Form(shares, mixed, lambda directions: 1 + directions, True, evening),
    "magnitude": Form(magnitude, spoken, lambda directions: 2),
    "momentum": Form(rate_alone, residual, lambda directions: 1, learns_decay=True),
}
"""Every update form by the name that configs use.

- "mixture": base directions, mixed and rescaled.
- "orthogonal": however directions are mixed, no singular value of a hidden matrix's step exceeds the others. With
  directions added to an orthogonalised one, the largest does.
- "preconditioned": the same in coordinates z = D p, D = v^(1/4), in which gradients of all entries are more alike.
  Gradients by z are D^-1 g, so D^-1 newton_schulz(D^-1 m) is the step of "orthogonal" on z, seen from p: steepest
  descent in the spectral norm (Bernstein & Newhouse 2024, arXiv 2409.20325) after half of Adam's preconditioning.
- "magnitude": Metz et al. 2022 and Neural Graphs (Kofinas et al. 2024); fresh: 0.
- "momentum": UNF (Zhou et al. 2024, arXiv 2402.05232, section 4). Fresh: gradient descent with momentum. The paper's
  alpha = 0.1 and gamma_0 = 0.9 are the rule's rate and first decay, both of them meta-learned from there.
"""
