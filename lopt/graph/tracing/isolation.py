"""Run a model without leaving a trace on it."""

from __future__ import annotations

import functools
import gc
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore on exit every attribute of every module (modes, hooks, caches) and all random number generators.

    Containers and plain objects that attributes hold are restored too, `DEPTH` deep, and tensors in containers by
    value; what objects hold may be too large to be copied.
    Parameters and buffers are restored as objects; their values are safe because they are never run on themselves
    but on stand-ins (`torch.func.functional_call`).
    """
    saved = _Snapshot(model)
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=_devices(model)):
        try:
            yield
        finally:
            random.setstate(state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
            saved.restore()


DEPTH = 4
"""How far into what a module holds changes are undone: its attributes, what these hold, and so on."""

Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


class _Snapshot:
    """What the modules of a model hold: containers with copies of their contents, tensors with copies of values."""

    def __init__(self, model: nn.Module) -> None:
        self.containers: dict[int, tuple[Container, Container]] = {}
        self.tensors: dict[int, tuple[Tensor, Tensor, int]] = {}
        state = {id(t) for t in [*model.parameters(), *model.buffers()]}
        for module in model.modules():
            self._take(module.__dict__, DEPTH, state)

    def _take(self, value: Any, depth: int, state: set[int], inside: bool = False) -> None:
        """Note a value and what it holds, unless it is one of the `state`; `inside` a plain object or not."""
        if id(value) in self.containers or id(value) in state or depth == 0:
            return
        if isinstance(value, Tensor):
            if not (inside or value.is_meta or value.is_inference()):
                self.tensors[id(value)] = (value, value.detach().clone(), value._version)
            return
        container = value if isinstance(value, dict | list | set | deque) else _attributes(value)
        if container is None:
            return
        self.containers[id(value)] = (container, container.copy())
        for child in [*(container.values() if isinstance(container, dict) else container)]:
            self._take(child, depth - 1, state, inside or container is not value)

    def restore(self) -> None:
        for container, contents in self.containers.values():
            if isinstance(container, list):
                container[:] = contents
            elif isinstance(container, deque):
                container.clear()
                container.extend(contents)
            else:
                container.clear()
                container.update(contents)
        with torch.no_grad():
            for tensor, value, version in self.tensors.values():
                if tensor._version != version:
                    tensor.copy_(value)


def _attributes(value: Any) -> dict[str, Any] | None:
    """Those of a plain object. Modules have their own turn; classes, functions and what is torch's are no state."""
    if isinstance(value, nn.Module | type | FunctionType | MethodType | ModuleType):
        return None
    if type(value).__module__.partition(".")[0] == "torch":
        return None
    found = getattr(value, "__dict__", None)
    return found if isinstance(found, dict) else None


def _devices(model: nn.Module) -> list[int]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(d.index or 0 for d in devices)


def forget_fakes() -> None:
    """Empty every `functools.lru_cache` that took in a fake tensor: the model's next real call would get it."""
    for candidate in gc.get_objects():
        if type(candidate) is not _CACHED or not candidate.cache_info().currsize:
            continue
        if any(isinstance(x, FakeTensor) for x in tree_leaves(gc.get_referents(candidate))):
            candidate.cache_clear()


_CACHED = type(functools.lru_cache(lambda: None))


@contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused fast paths that skip the operations, and no compiled code: the model as it is written."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))  # in it, composite functions are not decomposed
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def output_tensors(output: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses.

    Objects of other classes are looked into only where there is nothing else (a distribution): beside tensors they
    are state for a later call (key-value caches) rather than what a loss reads.
    """
    return _plain_tensors(output) or input_tensors(output)


def _plain_tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in _plain_tensors(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in _plain_tensors(value)]
    if is_dataclass(output) and not isinstance(output, type):
        return [t for field in fields(output) for t in _plain_tensors(getattr(output, field.name))]
    return []


def input_tensors(tree: Any, depth: int = 4) -> list[Tensor]:
    """Every tensor in example inputs, also inside objects such as a `torch_geometric` batch."""
    if isinstance(tree, Tensor):
        return [tree]
    if depth == 0 or isinstance(tree, nn.Module | str | type):
        return []
    if isinstance(tree, Mapping):
        children = list(tree.values())
    elif isinstance(tree, list | tuple | set):
        children = list(tree)
    else:
        children = list(getattr(tree, "__dict__", {}).values())
    return [t for child in children for t in input_tensors(child, depth - 1)]
