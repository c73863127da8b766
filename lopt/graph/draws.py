"""What a forward pass draws, made alike for all neurons, so that two passes with permuted neurons can be compared.

Noise is exchangeable: permuted neurons have the same distribution of outputs, but each is shown another one's draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lopt.graph.tracing.ops.factory import random
from lopt.graph.tracing.ops.table import RULES

AROUND: dict[str, Callable[..., Any]] = {
    "normal": lambda mean, std=1.0: mean + std,
    "bernoulli": lambda p, *_: p,
    "poisson": lambda rate: rate,
    "binomial": lambda count, p: count * p,
}
"""In place of a draw around other values one that depends, as its distribution does, on what stands at its place."""


def alike(func: Any, args: Sequence[Any], result: Any) -> Any:
    """The result of an operation; where it has drawn it, with one value for all entries, or one function of what it
    was drawn around. Draws that answer with places (`randperm`, `multinomial`) stay as they are."""
    name = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else ""
    given = [arg for arg in args[name.endswith("_") :] if isinstance(arg, (Tensor, float))]
    name = name.removesuffix("_")
    if name in AROUND and any(isinstance(arg, Tensor) for arg in given):
        return result.copy_(AROUND[name](*given))
    if name == "bernoulli":  # a mask, most often: of what it lets pass there is something to compare
        return result.fill_(1)
    drawn = name in AROUND or RULES.get(name) is random
    return result.copy_(result.flatten()[0].clone()) if drawn and result.numel() else result
