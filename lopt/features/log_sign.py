"""What the optimizers of Neural Graphs read of every scalar: sizes and signs as they are, relative to nothing.

Shapes: P scalars, K decays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

REACH = 10.0
"""p: what is smaller than e^-p shows as a number, what is larger as a logarithm and a sign."""


def count(decays: int) -> int:
    """F for K decays: two for each of parameter, gradient and momenta."""
    return 2 * (2 + decays)


def log_sign_features(params: Tensor, grads: Tensor, sums: Tensor) -> Tensor:
    """Parameters (P,), gradients (P,) and momenta (K, P) -> (2 (2 + K), P).

    Momenta are sums without decay of what is new, m <- mu m + g (Metz et al. 2019, arXiv 1810.10180, section D.1).
    """
    return log_and_sign(torch.cat([params[None], grads[None], sums]))


def log_and_sign(x: Tensor) -> Tensor:
    """(N, P) -> (2 N, P): log |x| / p and sign x where |x| >= e^-p, else -1 and e^p x.

    Andrychowicz et al. 2016 (arXiv 1606.04474), appendix A. The logarithms come first.
    """
    return torch.cat([x.abs().clamp(min=math.exp(-REACH)).log() / REACH, (math.exp(REACH) * x).clamp(-1, 1)])
