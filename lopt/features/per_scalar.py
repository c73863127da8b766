"""One feature vector for every scalar parameter. All are free of the scale of loss and weights.

Shapes: P scalars, K decays, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.numerics.moments import Moments

FLOOR = 1e-8
"""Below this a root-mean-square counts as nothing: Adam's eps. What is left of gradients that cancel (a bias
before batch norm) is rounding noise, which must not show in features that are free of scale."""


def count(decays: int, factored: bool = True) -> int:
    """F for K decays, with or without factored second moments."""
    return decays + (7 if factored else 5)


def squash(x: Tensor) -> Tensor:
    """x / sqrt(1 + x^2 / 16): linear near 0, +-4 far out; cheap to compute on every device."""
    return x * torch.addcmul(x.new_ones(()), x, x, value=1 / 16).rsqrt_()


def squashed_square(x: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of squash(x / sqrt(u))^2 with a unit u > 0 of squares, which take neither root nor ratio."""
    return x, x / torch.addcmul(unit, x, x, value=1 / 16)


def reciprocal(root: Tensor) -> Tensor:
    """1 / root, going back to 0 below `FLOOR`, where a ratio would show nothing but noise."""
    return root / (root * root + FLOOR * FLOOR)


def unit_of_squares(root: Tensor) -> Tensor:
    """1 / reciprocal(root)^2, of a root above 0."""
    unit = root + FLOOR * FLOOR / root
    return unit * unit


def log_size(x: Tensor) -> Tensor:
    """4 tanh(log(x^2 + 1e-4) / 8): about log |x|, within +-4; of roots alone, as logarithms cost ten times more."""
    fourth = torch.sqrt(torch.sqrt(x * x + 1e-4))
    return 4 * (fourth - 1) / (fourth + 1)


def log_ratio(a: Tensor, root_b: Tensor) -> Tensor:
    """4 tanh(log(a / b) / 4): about log(a / b), for a >= 0 and the root of b >= 0."""
    root_a = torch.sqrt(a + FLOOR)
    return 4 * (root_a - root_b) / (root_a + root_b)


def gradient_ratios(grads: Tensor, moments: Moments) -> Tensor:
    """(K + 1, P) the momenta and the gradient, over the root of the second moment."""
    return torch.stack([*moments.momenta, grads]) * reciprocal(moments.root)


def per_scalar_features(
    params: Tensor,
    grads: Tensor,
    moments: Moments,
    factored: Tensor | None,
    param_rms: Tensor,
    root_of_rms: Tensor,
) -> Tensor:
    """(F, P) features: squashed ratios and logarithms, each of order one; the first K + 1 are momenta and gradient.

    All inputs are (P,), but for the (K, P) momenta: parameters, gradients, the factored root second moment if it is
    to show, the root-mean-square over each scalar's tensor of the parameters, and the square root of that of the
    second moment's root (plus `FLOOR`).
    """
    ratios = gradient_ratios(grads, moments)
    relative = params / (param_rms + 1e-6)
    rows = [
        log_size(ratios[-1]),
        log_ratio(moments.root, root_of_rms),
        squash(relative),
        log_size(relative),
    ]
    if factored is not None:
        rows.append(squash(moments.momenta[0] * reciprocal(factored)))
        rows.append(log_ratio(moments.root, torch.sqrt(factored + FLOOR)))
    # Under the old name, so that the old memory is free before the next line takes more.
    ratios = squash(ratios)
    return torch.cat([ratios, *(row[None] for row in rows)])
