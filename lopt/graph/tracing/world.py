"""What a network's code can reach: noted before a run, put back after it.

A forward pass may write anywhere: to what is passed in, to what hooks close over, to dictionaries of its module or
class, to default arguments. `World` walks from the network and its inputs through containers, attributes, closures
and the globals that functions name, and notes at each place how to put it back. Code of PyTorch, NumPy and the
standard library is not walked: what it changes, its own rules keep.
"""

from __future__ import annotations

import functools
import random
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]  # not in its __all__
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from lopt.graph.tracing.tape import mutates, written

LIMIT = 50_000
"""At most so many things are looked at beside the network's own modules, the nearest first."""

LONG = 10_000
"""Longer containers are put back as a whole; what they hold is not looked at."""

ARRAYS = 1 << 26
"""Bytes of NumPy arrays of which copies are taken, the nearest first: behind a trainer there are whole data sets."""

Undo = Callable[[], object]

_ATOMS = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)
_FOREIGN = {"torch", "torchvision", "numpy", "lopt", "builtins", *sys.stdlib_module_names}
_OPEN = {"types", "collections", "weakref", "_thread", "_weakrefset"}
"""Parts of the standard library whose objects are mere containers. Others, such as queues, belong to threads."""
_CACHED = type(functools.lru_cache(lambda: None))
_KINDS = (OrderedDict, dict, list, set, deque, tuple, frozenset)
_MISSING = object()


class World:
    """What the code of a network can reach, as it is now."""

    def __init__(self, model: nn.Module, *inputs: Any) -> None:
        self._undo: list[Undo] = []
        self._seen: dict[int, Any] = {}  # holds what it has seen, so that no id is given out twice
        self._tensors: dict[int, Tensor] = {}
        self._queue: deque[Any] = deque([model, *inputs])
        self._mentioned: set[str] = {"forward"}
        self._waiting: dict[str, list[Any]] = {}
        self._room = ARRAYS
        for module in model.modules():  # they come late on the way through the code of a library
            self._look(vars(module))
            for value in vars(module).values():
                if issubclass(type(value), dict | list | set | deque):
                    self._look(value)
        limit = len(self._seen) + LIMIT
        while self._queue and len(self._seen) < limit:
            self._look(self._queue.popleft())

    def restore(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()

    @contextmanager
    def values_kept(self) -> Iterator[None]:
        """Inside, tensors that the code can reach are copied before they are written to, and put back at the end."""
        guard = _Guard(self._tensors)
        try:
            with guard:
                yield
        finally:
            with torch.no_grad():
                for tensor, value in guard.saved.values():
                    tensor.copy_(value)

    # -- walking --------------------------------------------------------------------------------------------------

    def _look(self, value: Any) -> None:
        # isinstance would ask the object, and lazy ones and dead proxies answer with errors.
        kind = type(value)
        if issubclass(kind, _ATOMS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if issubclass(kind, Tensor):
            self._tensor(value)
        elif issubclass(kind, dict):
            self._note(_of_dict(value))
            self._hold(_plain(value).values(value))
        elif issubclass(kind, list | set | deque):
            self._note(_of_sequence(value))
            self._hold(_plain(value).__iter__(value))
        elif issubclass(kind, tuple | frozenset):
            self._hold(_plain(value).__iter__(value))
        elif issubclass(kind, FunctionType):
            self._function(value)
        elif issubclass(kind, type):
            self._class(value)
        elif issubclass(kind, CellType):
            self._cell(value)
        elif issubclass(kind, ModuleType):
            self._module(value)
        else:
            self._object(value)

    def _note(self, undo: Undo) -> None:
        self._undo.append(undo)

    def _hold(self, values: Iterable[Any]) -> None:
        held = list(values)
        if len(held) <= LONG:
            self._queue.extend(v for v in held if not issubclass(type(v), _ATOMS))

    def _tensor(self, tensor: Tensor) -> None:
        if isinstance(tensor, UninitializedTensorMixin):
            return
        self._note(_of_tensor(tensor))
        place = _place(tensor)
        if place:
            self._tensors.setdefault(place[0], tensor)
        if tensor.is_leaf and tensor.grad is not None:
            self._queue.append(tensor.grad)
        self._hold([tensor.__dict__])

    def _cell(self, cell: CellType) -> None:
        before = _content(cell)

        def undo() -> None:
            if before is not _MISSING and _content(cell) is not before:
                cell.cell_contents = before

        self._note(undo)
        self._hold([before])

    def _function(self, function: FunctionType) -> None:
        self._hold([*(function.__closure__ or ()), *(function.__defaults__ or ())])
        self._hold([function.__dict__, function.__kwdefaults__])
        names = set(_names(function.__code__))
        space = function.__globals__
        if not _is_foreign(space.get("__name__", "")):
            self._names_in(space, names)
        for name in names:
            module = sys.modules.get(name)  # imported when the function is called
            if module is not None and name not in space and not _is_foreign(name):
                self._names_in(vars(module), names - {name})
        for name in names - self._mentioned:
            self._queue.extend(self._waiting.pop(name, ()))
        self._mentioned |= names

    def _names_in(self, space: dict[str, Any], names: set[str]) -> None:
        """The entries of a module that a function names, and those of modules among them."""
        own = [name for name in names if name in space]
        self._note(_of_entries(space, [*names]))
        for name in own:
            value = space[name]
            if not isinstance(value, ModuleType):
                self._queue.append(value)
            elif not _is_foreign(value.__name__):
                self._names_in(vars(value), names - {name})

    def _module(self, module: ModuleType) -> None:
        """One that an attribute or a closure holds: nobody tells which of its names are used."""
        if _is_foreign(module.__name__):
            return
        entries = {name: entry for name, entry in vars(module).items() if not name.startswith("__")}
        self._note(_of_entries(vars(module), [*entries]))
        for name, entry in entries.items():
            self._once_named(name, entry)

    def _once_named(self, name: str, value: Any) -> None:
        """Look at it now or as soon as a function names it: all that is there would be half of what is loaded."""
        if name in self._mentioned:
            self._queue.append(value)
        else:
            self._waiting.setdefault(name, []).append(value)

    def _class(self, cls: type) -> None:
        if _is_foreign(cls.__module__):
            return
        self._hold(cls.__mro__[1:])
        members = dict(vars(cls))
        self._note(_of_class(cls, members))
        for name, member in members.items():
            code = _code_of(member)
            if code is None or name.startswith("__"):
                self._queue.append(code or member)
            else:
                self._once_named(name, code)

    def _object(self, value: Any) -> None:
        cls = type(value)
        rng = _of_generator(value)
        if rng is not None:
            self._note(rng)
        elif issubclass(cls, MethodType):
            self._hold([value.__self__, value.__func__])
        elif issubclass(cls, functools.partial):
            self._hold([value.func, value.args, value.keywords])
        elif issubclass(cls, weakref.ref):
            self._hold([value()])
        elif issubclass(cls, _CACHED):
            self._note(_of_cache(value))
            self._hold([value.__wrapped__])
        elif _is_array(cls) and value.flags.writeable and value.nbytes <= self._room:
            self._room -= value.nbytes
            self._note(_of_array(value))
        if issubclass(cls, nn.Module) or not _is_foreign(cls.__module__) or cls.__module__ in _OPEN:
            self._hold([cls])
            self._hold([_attributes(value)])
            slots = _slots(value)
            if slots:
                self._note(_of_slots(value, slots))
                self._hold(slots.values())


def _is_foreign(module: Any) -> bool:
    return str(module).partition(".")[0] in _FOREIGN


def _is_array(cls: type) -> bool:
    return "numpy" in sys.modules and issubclass(cls, sys.modules["numpy"].ndarray)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _code_of(member: Any) -> Any:
    """The function behind a member of a class, or None."""
    if isinstance(member, FunctionType | _CACHED):
        return member
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, functools.cached_property) else None


def _plain(value: Any) -> Any:
    """The kind of container that it is at heart: subclasses may forbid, or do by loading, what they inherit."""
    return next(kind for kind in _KINDS if issubclass(type(value), kind))


def _attributes(value: Any) -> dict[str, Any] | None:
    """The dict of an object, or None, also of one that answers with an error, as dead proxies do."""
    try:
        attributes = getattr(value, "__dict__", None)
    except Exception:
        return None
    return attributes if type(attributes) is dict else None


def _slots(value: Any) -> dict[MemberDescriptorType, Any]:
    """What the slots of an object hold, by the slots themselves: a property may go by the name of one."""
    slots = {}
    for cls in type(value).__mro__:
        for slot in vars(cls).values() if "__slots__" in vars(cls) else ():
            if isinstance(slot, MemberDescriptorType):
                with suppress(AttributeError):  # empty
                    slots[slot] = slot.__get__(value)
    return slots


# -- how to put things back ---------------------------------------------------------------------------------------


def _of_dict(value: dict[Any, Any]) -> Undo:
    kind = _plain(value)
    before = list(kind.items(value))

    def undo() -> None:
        now = kind.items(value)
        if len(now) == len(before) and all(
            k is a and v is b for (k, v), (a, b) in zip(now, before, strict=True)
        ):
            return
        kind.clear(value)  # rather than entry by entry: the order is part of what was there
        for key, content in before:
            kind.__setitem__(value, key, content)

    return undo


def _of_sequence(value: Any) -> Undo:
    kind = _plain(value)
    before = list(kind.__iter__(value))

    def undo() -> None:
        now = list(kind.__iter__(value))
        if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
            return
        kind.clear(value)
        kind.update(value, before) if kind is set else kind.extend(value, before)

    return undo


def _of_entries(space: dict[str, Any], names: list[str]) -> Undo:
    before = {name: space.get(name, _MISSING) for name in names}

    def undo() -> None:
        for name, value in before.items():
            if space.get(name, _MISSING) is value:
                continue
            if value is not _MISSING:
                space[name] = value
            elif not isinstance(
                space[name], ModuleType
            ):  # a submodule now imported would not be set once more
                del space[name]

    return undo


def _of_class(cls: type, before: dict[str, Any]) -> Undo:
    def undo() -> None:
        now = dict(vars(cls))
        for name in now.keys() - before.keys():
            type.__delattr__(cls, name)
        for name, value in before.items():
            if now.get(name, _MISSING) is not value:
                type.__setattr__(cls, name, value)

    return undo


def _of_slots(owner: Any, before: dict[MemberDescriptorType, Any]) -> Undo:
    def undo() -> None:
        now = _slots(owner)
        for slot in now.keys() - before.keys():
            slot.__delete__(owner)
        for slot, value in before.items():
            if now.get(slot, _MISSING) is not value:
                slot.__set__(owner, value)

    return undo


def _of_cache(cache: Any) -> Undo:
    before = cache.cache_info().misses

    def undo() -> None:  # what it took in may be fake, or of another precision; it will be made again
        if cache.cache_info().misses != before:
            cache.cache_clear()

    return undo


def _of_array(array: Any) -> Undo:
    before = array.copy()

    def undo() -> None:
        if array.flags.writeable:
            array[...] = before

    return undo


def _of_generator(value: Any) -> Undo | None:
    """Of a random number generator."""
    cls, numpy = type(value), sys.modules.get("numpy")
    if issubclass(cls, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    if issubclass(cls, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if numpy is not None and issubclass(cls, numpy.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if numpy is not None and issubclass(cls, numpy.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _of_tensor(tensor: Tensor) -> Undo:
    # What a transform of torch.func has left behind (an LSTM keeps its weights in a list) can be neither used nor set.
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return lambda: None
    own, needs = (
        tensor.detach(),
        tensor.requires_grad,
    )  # not the values: those are for `values_kept`, if written to
    grad = tensor.grad if tensor.is_leaf else None

    def undo() -> None:
        if tensor.is_leaf:
            if tensor.grad is not grad:
                tensor.grad = grad
            if tensor.requires_grad is not needs:
                tensor.requires_grad_(needs)
        if _place(tensor) != _place(own):  # the model has put other values in their place
            tensor.data = own

    return undo


def _place(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return ()
    try:
        return (tensor.untyped_storage()._cdata, tensor.shape, tensor.stride(), tensor.storage_offset())
    except (NotImplementedError, RuntimeError):  # wrappers of other tensors
        return ()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return _MISSING


class _Guard(TorchDispatchMode):
    """Copies tensors that are about to be written to, if they are among the given ones."""

    supports_higher_order_operators = True

    def __init__(self, tensors: dict[int, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if mutates(func):
            for tensor in written(func, args, kwargs):
                for storage in _place(tensor)[:1]:
                    if storage in self.tensors and storage not in self.saved:
                        self.saved[storage] = _with_copy(self.tensors[storage])
        return func(*args, **kwargs)


def _with_copy(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """All of what the tensor's storage holds, of which the tensor may be a part, and a copy of that."""
    with no_dispatch():  # else, on fake tensors, the copy would be fake as well
        storage = tensor.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        whole = flat.set_(storage, 0, (storage.nbytes(),), (1,))
        return whole, whole.clone()
