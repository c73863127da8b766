"""One context vector for every parameter tensor: time, horizon, sizes, and how noisy its gradient is.

Shapes: B parameters (tensors), C context values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lopt.features.per_scalar import FLOOR
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import long_axis

TIME_SCALES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
STATIC = 4


def count(decays: int) -> int:
    """C for K decays."""
    return len(TIME_SCALES) + 3 + (decays + 4) + STATIC


def time_features(steps: Tensor, horizon: Tensor) -> Tensor:
    """(B,) steps taken and planned (0: unknown) -> (11, B): tanh(t / k), and where in the horizon we are.

    The last three are: known, fraction, and 1 - sqrt(1 - fraction), all 0 while the horizon is unknown.
    """
    known = (horizon > 0).to(steps.dtype)
    fraction = known * (steps / horizon.clamp(min=1)).clamp(max=1)
    # The tiny offset keeps the derivative of the root finite at the horizon's end.
    left = torch.sqrt(1 - fraction + 1e-6)
    waves = torch.tanh(steps / steps.new_tensor(TIME_SCALES)[:, None])
    return torch.cat([waves, torch.stack([known, fraction, known * (1 - left)])])


def noise_features(ratios: Tensor, param_rms: Tensor, grad_rms: Tensor, agreement: Tensor) -> Tensor:
    """(K + 4, B) statistics of each tensor.

    ratios (K + 1, B): mean square of the (squashed) momentum over root second moment for each decay, and of the
    gradient over it; param_rms, grad_rms (B,); agreement (B,): cosine of the gradient and the fastest momentum.
    """
    share = torch.log((grad_rms + FLOOR) / (grad_rms.square().mean(-1, keepdim=True).sqrt() + FLOOR))
    scale = torch.log(param_rms + 1e-4) / 4
    logs = 0.25 * torch.log(ratios + 1e-8)
    return torch.cat([logs, torch.stack([share.clamp(-8, 8) / 4, scale, agreement])])


def static_features(graph: ParameterGraph, like: Tensor) -> Tensor:
    """(4, B): logarithms of the size, the first axis and the remaining axes of each tensor, and its depth."""
    rows = []
    for spec in graph.parameters.values():
        first = spec.shape[long_axis(spec) or 0] if spec.shape else 1
        sizes = (spec.numel, first, spec.numel / max(first, 1))
        rows.append([*(math.log(max(n, 1)) / 8 for n in sizes), spec.depth])
    return torch.tensor(rows, dtype=like.dtype, device=like.device).reshape(-1, STATIC).T
