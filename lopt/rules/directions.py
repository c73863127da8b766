"""Base directions: steps that are good already, which a learned rule mixes and rescales.

Each is a pure function of the gradient history of all scalars, of order one per scalar and not yet multiplied
by a learning rate or a sign. Shapes: P scalars, B parameters (tensors), K decays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.graph.tensor_classes import Matrices
from lopt.numerics.moments import TINY, Moments
from lopt.numerics.segments import segment_expand
from lopt.registry import Registry
from lopt.rules.whitening import Around, orthogonalised_members

EPS = 1e-8
"""Adam's eps."""

SMALLEST_ROOT = 0.05
"""Of the rms of sqrt(v) over a tensor, below which `evening` does not follow sqrt(v)."""


class History(NamedTuple):
    """All that a direction may look at."""

    params: Tensor
    """(P,)"""
    grads: Tensor
    """(P,)"""
    moments: Moments
    """With (K, P) momenta."""
    inverse: Tensor
    """(P,) 1 / (sqrt(v) + eps)."""
    factored: Tensor | None
    """(P,) square root of the factored second moment, if a direction or a feature wants it."""
    momentum_rms: Tensor
    """(B,) root-mean-square of the fastest momentum over each tensor."""
    root_rms: Tensor
    """(B,) root-mean-square of sqrt(v) over each tensor."""
    sizes: list[int]
    """(B,) scalars of each tensor."""
    hidden: list[Matrices | None]
    """(B,) how the tensors are read that are matrices or kernels feeding hidden neurons; None for all others."""
    by_tensor: bool = False
    """Whether what a metanet says is (B,), one for each tensor, in place of (P,)."""
    owner_of: Tensor | None = None
    """(P,) which tensor each scalar is of, where no derivative is wanted."""
    around: Sequence[Around | None] = ()
    """(B,) of hidden tensors that are whitened, what stands around their matrices; none: nothing is."""

    def expanded(self, row: Tensor) -> Tensor:
        """(B,) -> (P,), or of one tensor (1,)."""
        if len(self.sizes) == 1:
            return row  # one number, which goes with all
        return segment_expand(row, self.sizes, self.owner_of)

    def spread(self, row: Tensor) -> Tensor:
        """What a metanet says, (P,) or (B,) -> (P,), or of one tensor (1,)."""
        return self.expanded(row) if self.by_tensor else row


PRECONDITIONED: Mapping[str, Callable[[History], Tensor]] = {
    "adam": lambda h: h.moments.momenta[0],
    "slow": lambda h: h.moments.momenta[1],
    "gradient": lambda h: h.grads,
}
"""What directions of these names divide by sqrt(v) + eps."""


def adam(h: History) -> Tensor:
    """m / (sqrt(v) + eps) with the fastest momentum: Adam (Kingma & Ba 2015)."""
    return PRECONDITIONED["adam"](h) * h.inverse


def slow(h: History) -> Tensor:
    """Adam's direction with the second-fastest momentum."""
    return PRECONDITIONED["slow"](h) * h.inverse


def gradient(h: History) -> Tensor:
    """g / (sqrt(v) + eps): RMSprop."""
    return PRECONDITIONED["gradient"](h) * h.inverse


def factored(h: History) -> Tensor:
    """m / (sqrt(factored v) + eps): Adafactor's preconditioner (Shazeer & Stern 2018)."""
    assert h.factored is not None
    return h.moments.momenta[0] / (h.factored + EPS)


def momentum(h: History) -> Tensor:
    """m / rms(m): gradient descent with momentum, normalised for each tensor."""
    return h.moments.momenta[0] * h.expanded(1 / (h.momentum_rms + EPS))


def parameter(h: History) -> Tensor:
    """p itself: weight decay, or growth."""
    return h.params


def constant(h: History) -> Tensor:
    """One: its raw output is a step by itself, where the others' scale what is there."""
    return torch.ones_like(h.grads)


def orthogonal(h: History) -> Tensor:
    """Momentum with all singular values set near one, scaled to an rms of about 0.2: Muon (Jordan et al. 2024).

    With the fastest momentum m and O = newton_schulz(0.1 g + 0.9 m) the direction is 0.2 sqrt(max(rows, columns)) O,
    which is as large as Adam's usually is (Liu et al. 2025, arXiv 2502.16982, equation 4). Tensors are read as
    matrices (first axis, the rest); those that do not feed hidden neurons take Adam's direction.
    """
    return _for_hidden(h, _nesterov(h), lambda o, _: 0.2 * max(o.shape) ** 0.5 * o, adam(h))


def grafted(h: History) -> Tensor:
    """The orthogonal direction with, for each tensor, the rms of Adam's (grafting, Agarwal et al. 2020).

    Orthogonalised momentum is as long however small the gradients have become; Adam's step, which remembers how
    large they were, is not. So this one comes to rest where Adam does.
    """
    return graft(h, _nesterov(h), adam(h))


def graft(h: History, momentum: Tensor, like: Tensor, conditioner: Tensor | None = None) -> Tensor:
    """(P,) and (P,): `like`, but for hidden matrices the orthogonalised momentum with the rms that `like` has there.

    With a conditioner c (P,) that is c O(c momentum), where O orthogonalises; whitened tensors have another one.
    """
    if conditioner is not None and any(h.around):
        parts = zip(conditioner.split(h.sizes), h.around, strict=True)
        conditioner = torch.cat([torch.ones_like(part) if around else part for part, around in parts])
    if conditioner is None:
        return _for_hidden(h, momentum, _at_rms, like)
    return _for_hidden(h, conditioner * momentum, lambda o, a, c: _at_rms(c * o, a), like, conditioner)


def evening(h: History) -> Tensor:
    """(P,) v^(-1/4), which takes half of the difference in size out of a tensor's gradients; at most 4.5 / sqrt(rms).

    So sqrt(v) is read as at least 0.05 of its rms over the tensor: rare gradients do not make the longest steps.
    """
    least = h.expanded(SMALLEST_ROOT * h.root_rms)
    return torch.rsqrt(torch.maximum(h.moments.root, least) + EPS)


def _nesterov(h: History) -> Tensor:
    return h.moments.momenta[0].lerp(h.grads, 0.1)


def _for_hidden(
    h: History, momentum: Tensor, direction: Callable[..., Tensor], like: Tensor, *others: Tensor
) -> Tensor:
    """`like`, but for hidden matrices direction(O, like, *others), O (rows, columns) the orthogonalised momentum."""
    columns = [tensor.split(h.sizes) for tensor in (momentum, like, *others)]
    parts = list(columns[1])
    hidden = {i: shape for i, shape in enumerate(h.hidden) if shape and h.sizes[i]}
    members = {i: [_members(column[i], shape) for column in columns] for i, shape in hidden.items()}
    around = [h.around[i] if h.around else None for i in members]
    results = orthogonalised_members([momenta for momenta, *_ in members.values()], around)
    for found, (i, (_, *seen)) in zip(results, members.items(), strict=True):
        steps = [direction(o, *own).reshape(-1) for o, *own in zip(found, *seen, strict=True)]
        parts[i] = steps[0] if len(steps) == 1 else torch.cat(steps)
    return torch.cat(parts)


def _members(part: Tensor, shape: Matrices) -> list[Tensor]:
    """(n,) -> the matrices (rows, columns) of one tensor."""
    return [member.reshape(shape.rows, shape.columns) for member in part.chunk(shape.members)]


def _at_rms(x: Tensor, like: Tensor) -> Tensor:
    return x * (_rms(like) / (_rms(x) + EPS))


def _rms(x: Tensor) -> Tensor:
    return torch.sqrt((x * x).mean() + TINY)


DIRECTIONS: Registry[Callable[[History], Tensor]] = Registry("direction")
"""Every direction by the name that configs use."""

for _function in (adam, slow, gradient, factored, momentum, parameter, constant, orthogonal, grafted):
    DIRECTIONS.register(_function.__name__)(_function)
