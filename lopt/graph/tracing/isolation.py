"""Run a model without leaving a trace on it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lopt.graph.tracing.world import World

_ISOLATED: ContextVar[bool] = ContextVar("isolated", default=False)


@contextmanager
def untouched(model: nn.Module, world: World) -> Iterator[None]:
    """Restore on exit what the model's code can reach, all random number generators and PyTorch's settings."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    settings = [(put, get()) for get, put in _SETTINGS]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(
        devices=devices
    ):  # not of all devices: asking one for its state initialises it
        try:
            with world.values_kept():
                yield
        finally:
            for put, value in settings:
                put(value)
            random.setstate(state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)
            world.restore()


def _put_default_device(device: torch.device) -> None:
    # Even the device that is set already would install a mode that every later call has to pass.
    if torch.get_default_device() != device:
        torch.set_default_device(device)


_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _put_default_device),
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
]
"""What a forward pass may set for the whole process."""


@contextmanager
def plain_kernels() -> Iterator[None]:
    """No fused fast paths that skip the operations, and no compiled code: the model as it is written."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    casts_kept = torch.is_autocast_cache_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))  # in it, composite functions are not decomposed
        stack.enter_context(_no_saving_hooks())
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_autocast_cache_enabled(
            False
        )  # else the next real call takes its cast weights from this one
        if torch.get_default_device().type == "meta":  # around a first call that only asks for shapes
            stack.enter_context(torch.device("cpu"))
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            torch.set_autocast_cache_enabled(casts_kept)


@contextmanager
def _no_saving_hooks() -> Iterator[None]:
    """What the caller does with tensors saved for a derivative (checkpoints count them) is for its own pass.

    Taken off, not covered: hooks that hand on what they get keep it alive for good. PyTorch tells them from 2.8 on.
    """
    autograd = torch._C._autograd
    top = getattr(autograd, "_top_saved_tensors_default_hooks", lambda _: None)
    hooks = []
    while (pair := top(True)) is not None:
        hooks.append(pair)
        autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pair in reversed(hooks):
            autograd._push_saved_tensors_default_hooks(*pair)


def called(
    model: nn.Module, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What the model gives with these tensors, in a context that takes its changes of context variables along."""
    context = copy_context()
    context.run(_ISOLATED.set, True)
    return context.run(torch.func.functional_call, model, tensors, args, kwargs)


def is_isolated() -> bool:
    """Whether a model runs here for its graph, and not for its user."""
    return _ISOLATED.get()


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
