"""Watch a network run: every ATen operation with its arguments, as references to numbered tensors.

`Recorder` is a dispatch mode, so Python control flow, in-place operations and views are seen as they happen and
composite functions arrive already decomposed. A few functions are kept whole instead (`FUNCTIONS`), because what
they mean for the axes is clearer before the decomposition, and must not depend on the backend that runs them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FUNCTIONS: dict[Callable[..., Any], str] = {
    torch.functional.einsum: "einsum",
    torch.nn.functional.scaled_dot_product_attention: "scaled_dot_product_attention",
    torch.lstm: "lstm",
    torch.gru: "gru",
    torch.rnn_tanh: "rnn",
    torch.rnn_relu: "rnn",
    torch.lstm_cell: "lstm_cell",
    torch.gru_cell: "gru_cell",
    torch.rnn_tanh_cell: "rnn_cell",
    torch.rnn_relu_cell: "rnn_cell",
}
"""Functions recorded whole, under these names."""

FILLS = ("fill_", "zero_")
"""In-place operations after which a tensor is as uniform as before, if they write to all of it."""


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor in a recorded call."""

    index: int


@dataclass
class Call:
    """One operation: its name without overload and trailing underscore, and its arguments."""

    name: str
    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    writes: tuple[Ref, ...]
    pointwise: bool


@dataclass
class TensorInfo:
    """What a solver needs to know of a recorded tensor."""

    shape: tuple[int, ...]
    storage: int
    dtype: torch.dtype


@dataclass
class Tape:
    """What happened in one forward pass."""

    calls: list[Call] = field(default_factory=list)
    infos: list[TensorInfo] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Reference number -> name of the parameter or buffer."""
    inputs: set[int] = field(default_factory=set)
    outputs: list[int] = field(default_factory=list)
    mutated: set[int] = field(default_factory=set)
    """Storages that were written to in place."""
    asked: set[int] = field(default_factory=set)
    """Reference numbers of tensors whose values became Python's (`item`)."""
    real: bool = False
    """Whether it ran on values, which may be read by ways that nobody sees (`tolist`, `numpy`)."""
    _numbers: dict[int, int] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def ref(self, tensor: Tensor) -> Ref:
        """The reference of a tensor; the tensor is kept alive so that its identity stays its own."""
        number = self._numbers.get(id(tensor))
        if number is None:
            number = self._numbers[id(tensor)] = len(self.infos)
            self._alive.append(tensor)
            shape = tuple(int(n) for n in tensor.shape)
            self.infos.append(TensorInfo(shape, storage_of(tensor), tensor.dtype))
        return Ref(number)

    def refs(self, tree: Any) -> Any:
        """`tree` with references in place of tensors."""
        return tree_map(lambda x: self.ref(x) if isinstance(x, Tensor) else x, tree)

    def forget(self, tensor: Tensor) -> None:
        """The tensor is another view of its storage now (`t_`, `unsqueeze_`), to be numbered anew."""
        self._numbers.pop(id(tensor), None)

    def about_to(self, func: Any, args: Any, kwargs: Any) -> Call:
        """A call that is yet to be made: in-place operations may give their arguments other shapes."""
        tags = getattr(func, "tags", ())
        targets = [] if torch.Tag.inplace_view in tags else written(func, args, kwargs)
        name, label = _names(func)
        # Dimensions of a uniform tensor are nobody's only as long as nothing but a fill of all of it has written there.
        self.mutated.update(storage_of(t) for t in targets if name + "_" not in FILLS or not _is_whole(t))
        writes = tuple(self.ref(t) for t in targets)
        arguments = (self.refs(args), self.refs(kwargs))
        return Call(name, label, *arguments, None, writes, torch.Tag.pointwise in tags)

    def record(self, call: Call, outputs: Any) -> None:
        """Append a call that has been made."""
        call.outputs = self.refs(outputs)
        self.calls.append(call)

    def release(self) -> list[weakref.ref[Tensor]]:
        """Let go of the tensors; the record stays. Tells which they were."""
        tensors = [weakref.ref(t) for t in self._alive]
        self._alive.clear()
        self._numbers.clear()
        return tensors


def storage_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata  # the data pointer of every fake tensor is 0
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of what its storage holds."""
    try:
        return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return True


def _names(func: Any) -> tuple[str, str]:
    if func in FUNCTIONS:
        return FUNCTIONS[func], FUNCTIONS[func]
    packet = getattr(func, "overloadpacket", func)
    label = str(packet)
    name = label.removeprefix("aten.")
    return (name.rstrip("_") if name.endswith("_") and not name.endswith("__") else name), label


def mutates(func: Any) -> bool:
    """Whether an operation writes to its arguments; those of higher order (`flex_attention`) have no schema."""
    return isinstance(func, OpOverload) and func._schema.is_mutable


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to."""
    if not mutates(func):
        return []
    written: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return written


class Recorder(TorchDispatchMode):
    """Writes every operation that involves tensors to a tape."""

    supports_higher_order_operators = True

    def __init__(self, tape: Tape, before: Callable[[list[Tensor]], None] | None, paused: bool) -> None:
        super().__init__()
        self.tape = tape
        self.before = before
        """Called with the tensors that an operation is about to write to."""
        self.paused = paused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.before is not None and mutates(func):
            self.before(written(func, args, kwargs))
        if self.paused or func.namespace == "prim":  # questions about a tensor (its device), no operations
            return func(*args, **kwargs)
        call = self.tape.about_to(func, args, kwargs)
        outputs = func(*args, **kwargs)
        if torch.Tag.inplace_view in getattr(func, "tags", ()):
            self.tape.forget(args[0])
        if any(isinstance(x, Tensor) for x in tree_leaves(outputs)) or mutates(func):
            self.tape.record(call, outputs)
        else:
            self.tape.asked.update(
                x.index for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, Ref)
            )
        return outputs


class _WholeFunctions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.recorder.paused or func not in FUNCTIONS:
            return func(*args, **kwargs)
        call = self.recorder.tape.about_to(func, args, kwargs)
        self.recorder.paused = True
        try:
            outputs = func(*args, **kwargs)
        finally:
            self.recorder.paused = False
        self.recorder.tape.record(call, outputs)
        return outputs


@contextmanager
def recording(
    tape: Tape, before: Callable[[list[Tensor]], None] | None = None, paused: bool = False
) -> Iterator[None]:
    """Record what runs inside on the tape (nothing if paused), calling `before` on what is about to be written to."""
    recorder = Recorder(tape, before, paused)
    with recorder, _WholeFunctions(recorder):
        yield
