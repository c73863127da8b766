"""A function whose intermediate values are not kept for the backward pass, but computed again in it.

`torch.utils.checkpoint` cannot do it: its hooks on saved tensors exclude `torch.func.grad` inside the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


def rematerialised(function: Callable[..., Any]) -> Callable[..., Any]:
    """A pure function of trees of tensors, to be called with all that its derivative is wanted by."""

    def call(*args: Any) -> Any:
        flat, structure = tree_flatten(args)
        kept: list[TreeSpec] = []

        def flat_function(*tensors: Tensor) -> tuple[Tensor, ...]:
            values, spec = tree_flatten(function(*tree_unflatten(tensors, structure)))
            kept[:] = [spec]
            return tuple(values)

        return tree_unflatten(_Rematerialised.apply(flat_function, *flat), kept[0])

    return call


class _Rematerialised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        # Detached: the derivative ends at what was passed in, and goes on from there by what is returned.
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
            outputs = ctx.function(*inputs)
        used = [(value, slope) for value, slope in zip(outputs, slopes, strict=True) if value.requires_grad]
        values, weights = zip(*used, strict=True)
        by = [t for t in inputs if t.requires_grad]
        gradients = iter(torch.autograd.grad(values, by, weights, allow_unused=True))
        return None, *(next(gradients) if n else None for n in needed)
