"""What fake tensors cannot know: how many rows a router sends where.

Networks that choose (mixtures of experts) read shapes that depend on values: the rows of a mask, whether anybody chose
an expert at all. For the graph it does not matter how many there are, only that every way is gone once; so each mask
is taken to be set everywhere, and every alternative to be chosen by somebody.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten

CHOOSING = {"topk", "argmax", "argmin", "sort", "argsort", "max", "min", "multinomial"}
"""Operations whose integers are choices."""

PASSING = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "select", "slice",
    "index", "unbind", "split", "clone", "alias", "detach", "_to_copy", "bitwise_or", "logical_or", "any",
}  # fmt: skip
"""Operations after which choices are choices, and marks of one alternative such marks."""


class EveryChoice(TorchDispatchMode):
    """Runs operations on fake tensors as if every mask were set everywhere; stands above the `FakeTensorMode`.

    Whether anybody chose an alternative (`(chosen == i).any()`) is yes where the numbers are choices of the network;
    all other questions about values stay open, as they are to fake tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Tensor -> "choice", "mark" (of one alternative) or "taken" (whether a mark is set anywhere)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and self._state.get(args[0]) == "taken":
            return True
        outputs = _run(func, args, kwargs)
        self._note(func, args, outputs)
        return outputs

    def _note(self, func: Any, args: Any, outputs: Any) -> None:
        name = func.overloadpacket.__name__
        states = [self._state[t] for t in tree_leaves(args) if isinstance(t, Tensor) and t in self._state]
        for output in tree_leaves(outputs):
            if not isinstance(output, Tensor) or output.is_floating_point():
                continue
            if name in CHOOSING and output.dtype == torch.int64:
                self._state[output] = "choice"
            elif name == "eq" and states == ["choice"] and not isinstance(args[1], Tensor):
                self._state[output] = "mark"
            elif name in PASSING and states:
                self._state[output] = "taken" if name == "any" and states[0] != "choice" else states[0]


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func is aten.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if func is aten.masked_select.default:
        shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
        return args[0].new_empty((shape.numel(),))
    if func is aten.index.Tensor:
        return func(args[0], [part for i in args[1] for part in _places(i)], **kwargs)
    if func is aten._grouped_mm.default and (args[0].dim(), args[1].dim()) == (2, 3):
        # The kernel for shapes asks for bfloat16, as the fused one does; the others take any dtype.
        return args[0].new_empty((args[0].shape[0], args[1].shape[2]), dtype=kwargs.get("out_dtype"))
    return func(*args, **kwargs)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """An index as integers: one for each dimension of a mask."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return list(index.new_empty((index.dim(), index.numel()), dtype=torch.int64).unbind())
