"""Base directions: steps that are good already, which a learned rule mixes and rescales.

Each is a pure function of the gradient history of all scalars, of order one per scalar and not yet multiplied
by a learning rate or a sign. Shapes: P scalars, K decays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.features.moments import TINY, Moments
from lopt.rules.classical.muon import newton_schulz

EPS = 1e-8
"""Adam's eps."""


class History(NamedTuple):
    """All that a direction may look at; every tensor is (P,), but for the (K, P) momenta in `moments`."""

    params: Tensor
    grads: Tensor
    moments: Moments
    factored: Tensor
    param_rms: Tensor
    """Root-mean-square of each scalar's own tensor."""
    momentum_rms: Tensor
    """The same of the fastest momentum."""
    shapes: list[tuple[int, ...]]
    hidden: list[bool]
    """Which tensors are matrices or kernels that feed hidden neurons, see `classical.muon.is_hidden_matrix`."""


def adam(h: History) -> Tensor:
    """m / (sqrt(v) + eps) with the fastest momentum: Adam (Kingma & Ba 2015)."""
    return h.moments.momenta[0] / (h.moments.root + EPS)


def slow(h: History) -> Tensor:
    """Adam's direction with the second-fastest momentum."""
    return h.moments.momenta[1] / (h.moments.root + EPS)


def gradient(h: History) -> Tensor:
    """g / (sqrt(v) + eps): RMSprop."""
    return h.grads / (h.moments.root + EPS)


def factored(h: History) -> Tensor:
    """m / (sqrt(factored v) + eps): Adafactor's preconditioner (Shazeer & Stern 2018)."""
    return h.moments.momenta[0] / (h.factored + EPS)


def momentum(h: History) -> Tensor:
    """m / rms(m): gradient descent with momentum, normalised for each tensor."""
    return h.moments.momenta[0] / (h.momentum_rms + EPS)


def parameter(h: History) -> Tensor:
    """p itself: weight decay, or growth."""
    return h.params


def orthogonal(h: History) -> Tensor:
    """Momentum with all singular values set near one, scaled to an rms of about 0.2: Muon (Jordan et al. 2024).

    With the fastest momentum m and O = newton_schulz(0.1 g + 0.9 m) the direction is 0.2 sqrt(max(rows, columns)) O,
    which is as large as Adam's usually is (Liu et al. 2025, arXiv 2502.16982, equation 4). Tensors are read as
    matrices (first axis, the rest); those that do not feed hidden neurons take Adam's direction.
    """
    sizes = [torch.Size(shape).numel() for shape in h.shapes]
    momenta = h.moments.momenta[0].lerp(h.grads, 0.1).split(sizes)
    rows = zip(momenta, adam(h).split(sizes), h.shapes, h.hidden, strict=True)
    return torch.cat([_orthogonalised(m, shape) if hidden else a for m, a, shape, hidden in rows])


def grafted(h: History) -> Tensor:
    """The orthogonal direction with, for each tensor, the rms of Adam's (grafting, Agarwal et al. 2020).

    Orthogonalised momentum is as long however small the gradients have become; Adam's step, which remembers how
    large they were, is not. So this one comes to rest where Adam does.
    """
    sizes = [torch.Size(shape).numel() for shape in h.shapes]
    rows = zip(orthogonal(h).split(sizes), adam(h).split(sizes), h.hidden, strict=True)
    return torch.cat([o * (_rms(a) / (_rms(o) + EPS)) if hidden else a for o, a, hidden in rows])


def _rms(x: Tensor) -> Tensor:
    return torch.sqrt((x * x).mean() + TINY)


def _orthogonalised(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    matrix = flat.reshape(shape[0], -1)
    return (0.2 * max(matrix.shape) ** 0.5 * newton_schulz(matrix)).reshape(-1)


DIRECTIONS: dict[str, Callable[[History], Tensor]] = {
    function.__name__: function
    for function in (adam, slow, gradient, factored, momentum, parameter, orthogonal, grafted)
}
