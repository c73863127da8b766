"""What the positions of square convolutions read, for many networks at once, with the examples on the last axis.

Shapes: B networks, K channels, h height and width, k kernel, s stride, M examples. Padding is k // 2 on either side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def columns(x: Tensor, kernel: int = 3, stride: int = 2) -> Tensor:
    """(B, K, h, h, M) -> (B, k^2 K, (h / s)^2 M): what each position reads."""
    left, right = kernel // 2, kernel - stride - kernel // 2
    padded = F.pad(x, (0, 0, left, right, left, right))
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
    return windows.permute(0, 1, 5, 6, 2, 3, 4).reshape(len(x), kernel**2 * x.shape[1], -1)


def folded(columns: Tensor, shape: torch.Size, kernel: int = 3, stride: int = 2) -> Tensor:
    """The transpose of `columns`, for x of a shape (B, K, h, h, M)."""
    count, channels, size, _, examples = shape
    small = size // stride
    taps = columns.view(count, channels, kernel, kernel, small, small, examples)
    whole, left = size + kernel - stride, kernel // 2
    padded = columns.new_zeros(count, channels, whole, whole, examples)
    for row in range(kernel):
        for column in range(kernel):
            padded[:, :, row : row + size : stride, column : column + size : stride] += taps[
                :, :, row, column
            ]
    return padded[:, :, left : left + size, left : left + size]


class Windows(torch.autograd.Function):
    """`columns` with `folded` for its derivative: that of torch's own unfolding takes several times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int) -> Tensor:
        ctx.shape, ctx.window = x.shape, (kernel, stride)
        return columns(x, kernel, stride)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, None, None]:
        own = folded(slopes[0].contiguous(), ctx.shape, *ctx.window) if ctx.needs_input_grad[0] else None
        return own, None, None
