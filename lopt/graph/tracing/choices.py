"""What fake tensors cannot know: how many rows a router sends where.

Networks that choose (mixtures of experts) read shapes and answers that depend on values: the rows of a mask, whether
anybody chose an expert, which experts were chosen at all. For the graph it does not matter how many rows there are,
only that every way is gone once; so each mask is taken to be set everywhere, every alternative to be chosen by
somebody, and where rows are counted out, each to get its share.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from lopt.graph.tracing.tape import storage_of, written

aten = torch.ops.aten

CHOOSING = {"topk", "argmax", "argmin", "sort", "argsort", "max", "min", "multinomial"}
"""Operations that choose: their integers are choices, or those that were."""

INDICES = {"argmax", "argmin", "argsort", "multinomial"}
"""Those of them whose first result says which; of the others, the second one does."""

PASSING = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "select", "slice",
    "index", "unbind", "split", "clone", "alias", "detach", "_to_copy", "cat", "stack",
}  # fmt: skip
"""Operations after which choices are choices."""

COUNTING = {"nonzero", "bincount", "_unique2"}
"""Operations whose results have as many entries as values say."""

EITHER = {"bitwise_or", "logical_or", "bitwise_and", "logical_and"}
"""Operations after which a mask that is set everywhere is taken to be so still, whatever the other one is."""

OPEN = {"all", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
"""Operations of which nothing is assumed: nobody says that all choose the same."""


class EveryChoice(TorchDispatchMode):
    """Runs operations on fake tensors as if every mask were set everywhere; stands above the `FakeTensorMode`.

    Integers that a network has chosen make masks and counts whose values are assumed, and so is what follows from these
    alone: whether there are any (`(chosen == i).any()`), which experts are hit (`nonzero`, `unique`, a loop over their
    rows), how many rows each one gets. All other questions about values stay open, as they are to fake tensors.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._choices: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Tensor -> of how many alternatives its integers are."""
        self._assumed: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Tensor -> its values, on the CPU."""
        self._asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):  # one of higher order
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            if args[0] in self._assumed:
                with no_dispatch():
                    return self._assumed[args[0]].item()
            if args[0] in self._choices:  # one alternative after the other
                self._asked += 1
                return (self._asked - 1) % self._choices[args[0]]
        with no_dispatch():
            values = self._values(func, args, kwargs)
        if func.overloadpacket.__name__ in COUNTING and values is not None:
            outputs = tree_map(lambda value: args[0].new_empty(value.shape, dtype=value.dtype), values)
        else:
            outputs = _run(func, args, kwargs)
        self._note(func, args, kwargs, outputs, values)
        return outputs

    def _values(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the outputs are taken to be; None: unknown."""
        name = func.overloadpacket.__name__
        leaves, form = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        chosen = next((t for t in tensors if t in self._choices), None)
        known = [self._assumed[t] for t in tensors if t in self._assumed]
        if chosen is not None:
            return _of_choices(func, args, kwargs, chosen, self._choices[chosen])
        if not known or name in OPEN or func._schema.is_mutable:
            return None
        if name in EITHER and known[0].dtype == torch.bool and known[0].all():
            return known[0].expand(torch.broadcast_shapes(*(t.shape for t in tensors)))
        if len(known) < len(tensors):
            return None
        assumed = [self._assumed[leaf] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        known_args, known_kwargs = tree_unflatten(assumed, form)
        return func(*known_args, **{key: value for key, value in known_kwargs.items() if key != "device"})

    def _note(self, func: Any, args: Any, kwargs: Any, outputs: Any, values: Any) -> None:
        name, found = func.overloadpacket.__name__, tree_leaves(outputs)
        changed = {storage_of(t) for t in written(func, args, kwargs) if not t.is_floating_point()}
        for tensor in [t for t in self._assumed if storage_of(t) in changed] if changed else ():
            del self._assumed[tensor]
        counts = [self._choices[t] for t in tree_leaves(args) if isinstance(t, Tensor) and t in self._choices]
        for i, (output, value) in enumerate(zip_longest(found, tree_leaves(values))):
            if not isinstance(output, Tensor):
                continue
            if value is not None:
                if value.shape == output.shape:
                    self._assumed[output] = value
            elif name in CHOOSING and output.dtype == torch.int64 and (i == 1 or name in INDICES):
                self._choices[output] = _alternatives(func, args, kwargs)
            elif name in CHOOSING | PASSING and counts:
                self._choices[output] = counts[0]


def _given(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of an operation by name."""
    return {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs


def _alternatives(func: Any, args: Any, kwargs: Any) -> int:
    """Among how many entries an operation chooses."""
    dim, shape = _given(func, args, kwargs).get("dim", -1), args[0].shape
    return int(shape.numel() if dim is None or not shape else shape[dim])


def _of_choices(func: Any, args: Any, kwargs: Any, chosen: Tensor, count: int) -> Any:
    """What is taken to come of integers that are choices among so many; None: unknown."""
    given, numel = _given(func, args, kwargs), chosen.numel()
    match func.overloadpacket.__name__:
        case "eq":
            shapes = [x.shape for x in args if isinstance(x, Tensor)]
            return torch.ones(torch.broadcast_shapes(*shapes), dtype=torch.bool)
        case "scatter" | "scatter_" if given["index"] is chosen:
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        case "bincount" if given.get("weights") is None:
            return _shares(numel, max(count, given.get("minlength", 0)))
        case "histc":
            return _shares(numel, given.get("bins", 100)).to(chosen.dtype)
        case "_unique2":
            which = torch.arange(numel).remainder(count).reshape(chosen.shape)
            return torch.arange(count), which, _shares(numel, count)
    return None


def _shares(total: int, count: int) -> Tensor:
    """(count,) how many each gets, nobody nothing."""
    return ((total - torch.arange(count) + count - 1) // count).clamp(min=1)


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
