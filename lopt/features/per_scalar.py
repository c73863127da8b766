"""One feature vector for every scalar parameter. All are free of the scale of loss and weights.

Shapes: P scalars, K decays, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.features.moments import Moments

FLOOR = 1e-8
"""Below this a root-mean-square counts as nothing: Adam's eps. What is left of gradients that cancel (a bias
before batch norm) is rounding noise, which must not show in features that are free of scale."""


def count(decays: int) -> int:
    """F for K decays."""
    return decays + 8


def squash(x: Tensor) -> Tensor:
    """x / sqrt(1 + x^2 / 16): linear near 0, +-4 far out; cheap to compute on every device."""
    return x * torch.rsqrt(1 + x * x / 16)


def reciprocal(root: Tensor) -> Tensor:
    """1 / root, going back to 0 below `FLOOR`, where a ratio would show nothing but noise."""
    return root / (root * root + FLOOR * FLOOR)


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """log(a / b) for root-mean-squares a, b >= 0, limited to +-8."""
    return torch.log((a + FLOOR) / (b + FLOOR)).clamp(-8, 8)


def per_scalar_features(
    params: Tensor, grads: Tensor, moments: Moments, factored: Tensor, param_rms: Tensor, root_rms: Tensor
) -> Tensor:
    """(F, P) features: squashed ratios and halved log-ratios, each of order one.

    All inputs are (P,), but for the (K, P) momenta: parameters, gradients, the factored root second moment, and
    the root-mean-squares over each scalar's tensor of the parameters and of the second moment's root.
    """
    inverse = reciprocal(moments.root)
    relative = params / (param_rms + 1e-6)
    ratio = grads * inverse
    rows = [
        *squash(moments.momenta * inverse).unbind(0),
        squash(ratio),
        0.5 * torch.log(ratio * ratio + 1e-4),
        squash(moments.momenta[0] * reciprocal(factored)),
        0.5 * log_ratio(moments.root, root_rms),
        0.5 * log_ratio(moments.root, factored),
        squash(relative),
        0.5 * torch.log(relative * relative + 1e-4),
        torch.ones_like(params),
    ]
    return torch.stack(rows)
