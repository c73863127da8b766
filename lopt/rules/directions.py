"""Base directions: steps that are good already, which a learned rule mixes and rescales.

Each is a pure function of the gradient history of all scalars, of order one per scalar and not yet multiplied
by a learning rate or a sign. Shapes: P scalars, K decays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.features.moments import Moments

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
    """Momentum with all singular values set near one, scaled to rms one: Muon (Jordan et al. 2024).

    Tensors are read as matrices (first axis, the rest); those of one axis take Adam's direction.
    """
    sizes = [torch.Size(shape).numel() for shape in h.shapes]
    parts = zip(h.moments.momenta[0].split(sizes), adam(h).split(sizes), h.shapes, strict=True)
    return torch.cat([orthogonalised(m, shape) if is_matrix(shape) else a for m, a, shape in parts])


def is_matrix(shape: tuple[int, ...]) -> bool:
    """At least two rows and two columns."""
    return len(shape) > 1 and shape[0] > 1 and torch.Size(shape).numel() > shape[0]


def orthogonalised(flat: Tensor, shape: tuple[int, ...], steps: int = 5) -> Tensor:
    """(n,) -> (n,): Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, then rms one.

    The quintic's coefficients are Jordan's: singular values end between about 0.7 and 1.2.
    """
    matrix = flat.reshape(shape[0], -1)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (torch.sqrt((x * x).sum() + 1e-30) + EPS)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    x = (x.T if tall else x) * max(matrix.shape) ** 0.5
    return x.reshape(-1)


DIRECTIONS: dict[str, Callable[[History], Tensor]] = {
    function.__name__: function for function in (adam, slow, gradient, factored, momentum, parameter, orthogonal)
}
