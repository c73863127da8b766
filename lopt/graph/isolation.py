"""Run a model without leaving a trace on it."""

from __future__ import annotations

import functools
import gc
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore on exit every attribute of every module (modes, hooks, caches) and all random number generators.

    Parameters and buffers are restored as objects; their values are safe because they are never run on
    themselves but on stand-ins (`torch.func.functional_call`).
    """
    saved = [(module, _snapshot(module.__dict__)) for module in model.modules()]
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
            for module, attributes in saved:
                _restore(module.__dict__, attributes)


def _snapshot(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Attribute -> (object, copy of its contents if it is a container)."""
    return {k: (v, v.copy() if isinstance(v, dict | list | set) else None) for k, v in attributes.items()}


def _restore(attributes: dict[str, Any], saved: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in attributes if name not in saved]:
        del attributes[name]
    for name, (value, contents) in saved.items():
        attributes[name] = value
        if isinstance(value, list):
            value[:] = contents
        elif isinstance(value, dict | set):
            value.clear()
            value.update(contents)


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

    Objects of other classes (key-value caches, distributions) are not looked into: they are state for a later
    call rather than what a loss reads.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in output_tensors(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in output_tensors(value)]
    if is_dataclass(output) and not isinstance(output, type):
        return [t for field in fields(output) for t in output_tensors(getattr(output, field.name))]
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
